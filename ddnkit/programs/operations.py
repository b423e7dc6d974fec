"""The operations of a program: a step, what it refers to, and what holds of each operation of torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


class NotAProgramError(Exception):
    """A function that cannot be followed, or is not the same at each call. The text says why."""


class InPlaceError(NotAProgramError):
    """An operation writes over what is used later."""


@dataclass(frozen=True)
class Ref:
    """The result of a step, or an input."""

    index: int


class Step(NamedTuple):
    """One call of an operation."""

    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def shares_entries(x: Tensor) -> bool:
    """Whether an entry in memory stands for several."""
    return any(step == 0 and n > 1 for step, n in zip(x.stride(), x.shape, strict=True))


def references(step: Step) -> list[int]:
    """The steps and inputs that it takes."""
    leaves = pytree.tree_leaves((step.args, step.kwargs))
    return [x.index for x in leaves if isinstance(x, Ref)]


def held_tensor(module: torch.fx.GraphModule, target: str) -> Any:
    """A copy of a tensor that a graph keeps as a constant."""
    value: Any = module
    for part in target.split("."):
        value = getattr(value, part)
    if not isinstance(value, Tensor):
        raise NotAProgramError(f"it holds a {type(value).__name__}")
    if value.requires_grad:
        raise NotAProgramError("it uses a tensor that requires a gradient and cannot be traced")
    return value.detach().clone()


def out_of_place(
    module: torch.fx.GraphModule, inputs: Sequence[Tensor]
) -> dict[torch.fx.Node, torch._ops.OpOverload]:
    """For each operation that writes over what came of the inputs, the one that makes a new tensor.

    Where the tensor is an intermediate result, and nothing that shares its memory is used later, nobody
    sees the difference; where only its shape is written over, never. Autograd's own formulas do both.

    Raises:
        NotAProgramError: somebody would.
    """
    nodes = list(module.graph.nodes)
    mutable = [n for n in nodes if isinstance(n.target, torch._ops.OpOverload)
               and n.target._schema.is_mutable]  # fmt: skip
    if not mutable:
        return {}
    at = {node: k for k, node in enumerate(nodes)}
    values: dict[torch.fx.Node, Any] = {}
    moving: set[torch.fx.Node] = set()
    given = iter(inputs)
    new: dict[torch.fx.Node, torch._ops.OpOverload] = {}
    for node in nodes:
        if node.op == "placeholder":
            values[node] = next(given).clone()
            moving.add(node)
        elif node.op == "get_attr":
            values[node] = held_tensor(module, str(node.target))
        elif node.op == "call_function":
            if moving.intersection(node.all_input_nodes) and node.target not in SHAPE_ALONE:
                moving.add(node)
                if node in mutable:
                    new[node] = _replacement(node, values, at)
            target, args = node.target, torch.fx.node.map_arg(node.args, values.__getitem__)
            kwargs = torch.fx.node.map_arg(node.kwargs, values.__getitem__)
            assert callable(target)
            values[node] = target(*args, **kwargs)
    return new


def _replacement(
    node: torch.fx.Node, values: Mapping[torch.fx.Node, Any], at: Mapping[torch.fx.Node, int]
) -> torch._ops.OpOverload:
    target = node.target
    assert isinstance(target, torch._ops.OpOverload)
    name = target._schema.name.partition("::")[2]
    found = _overload(getattr(aten, name.removesuffix("_"), None), target)
    first = node.args[0] if node.args else None
    refused = InPlaceError(f"it works in place ({target})")
    if not name.endswith("_") or found is None or not isinstance(first, torch.fx.Node):
        raise refused
    if first.op != "call_function":
        raise refused
    if name in SHAPE_WRITING:
        return found
    memory = values[first].untyped_storage().data_ptr()
    for other, value in values.items():
        shared = isinstance(value, Tensor) and value.untyped_storage().data_ptr() == memory
        if shared and other is not first and any(at[user] > at[node] for user in other.users):
            raise refused
    return found


def _overload(packet: Any, target: torch._ops.OpOverload) -> torch._ops.OpOverload | None:
    """The one that takes what ``target`` takes: it may have another name, as pow_.Scalar has."""
    wanted = [str(x.type) for x in target._schema.arguments]
    for name in packet.overloads() if packet is not None else ():
        found: torch._ops.OpOverload = getattr(packet, name)
        if [str(x.type) for x in found._schema.arguments] == wanted:
            return None if found._schema.is_mutable else found
    return None


def refuse_impure(target: torch._ops.OpOverload, given: Sequence[Any] = ()) -> None:
    """Raise where an operation does more than to give a result, or another one at each call."""
    if target._schema.is_mutable:
        raise InPlaceError(f"it works in place ({target})")
    tags = set(target.tags)
    if torch.Tag.nondeterministic_seeded in tags:
        raise NotAProgramError(f"it draws random numbers ({target})")
    if target is aten.index.Tensor and not any(
        isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in given
    ):
        return  # by whole numbers: as many entries as there are of these
    if torch.Tag.dynamic_output_shape in tags or torch.Tag.data_dependent_output in tags:
        raise NotAProgramError(f"its shapes depend on values ({target})")
    if target.namespace not in ("aten", "prims"):
        raise NotAProgramError(f"it calls an operation that is not torch's own ({target})")


def plain_value(x: Any) -> Any:
    """Lists and tuples of fx as Python's."""
    if isinstance(x, Ref):
        return x
    if isinstance(x, tuple):
        return tuple(map(plain_value, x))
    return [plain_value(y) for y in x] if isinstance(x, list) else x


def step_key(x: Any) -> Any:
    """What is equal for steps that compute the same; None where that cannot be told."""
    if isinstance(x, Ref):
        return x
    if isinstance(x, (list, tuple)):
        return tuple(map(step_key, x))
    if isinstance(x, Tensor):
        if x.numel() <= 64 and x.device.type == "cpu":
            return "tensor", x.dtype, tuple(x.shape), x.stride(), x.numpy(force=True).tobytes()
        return "tensor", id(x)
    if isinstance(x, dict):
        return tuple((k, step_key(v)) for k, v in sorted(x.items()))
    return type(x), x


def keeps_items(target: Any, args: tuple[Any, ...], first: Tensor, value: Tensor) -> bool:
    """Whether an operation of `PER_ITEM` leaves the first dimension alone."""
    if target in ELEMENTWISE:
        return True
    if target in RESHAPES:
        return first.ndim > 0 and bool(first.shape[0] == value.shape[0] == args[1][0])
    if target is aten.permute.default:
        return args[1][0] in (0, -first.ndim)
    if target is aten.diagonal.default:
        named = args[2:4] if len(args) == 4 else (0, 1)
    elif target in OF_MATRICES:
        return first.ndim > 2 and value.ndim > 1
    elif target is aten.transpose.int:
        named = args[1:3]
    else:
        at = 2 if target is aten.linalg_vector_norm.default else 1
        named = args[at : at + 1]
    dims = [d for x in named for d in (x if isinstance(x, (list, tuple)) else [x])]
    size = first.ndim + (target is aten.unsqueeze.default)
    return bool(dims) and all(isinstance(d, int) and d % size != 0 for d in dims)


def is_one_number(x: Tensor) -> bool:
    """Whether all entries are the same number, as text gives it."""
    if x.numel() == 0 or not bool((x == x.flatten()[0]).all()):
        return False
    return bool(x.isfinite().all()) and not bool(x.is_complex())


def is_one(x: Any) -> bool:
    """Whether it is the number 1, or a tensor of ones."""
    if isinstance(x, Tensor):
        return x.numel() > 0 and bool((x == 1).all())
    return isinstance(x, (int, float)) and not isinstance(x, bool) and x == 1


def collapse(x: Tensor) -> Tensor:
    """An expanded constant without its repetitions."""
    for dim in range(x.ndim):
        if x.shape[dim] > 1 and x.stride(dim) == 0:
            x = x.narrow(dim, 0, 1)
    return x.clone() if x._is_view() else x


def keeps_type(values: Sequence[Any], small: Tensor, at: int) -> bool:
    """Whether the result keeps its type if ``small`` stands at that place: numbers have less say."""
    before: list[Any] = [x for x in values if isinstance(x, (Tensor, int, float))]
    changed = list(values)
    changed[at] = small
    after: list[Any] = [x for x in changed if isinstance(x, (Tensor, int, float))]
    if len(before) != 2:
        return all(x.dtype == small.dtype for x in before if isinstance(x, Tensor))
    return torch.result_type(*before) == torch.result_type(*after)


aten = torch.ops.aten

#: What changes nothing here: there is no graph.
NOTHING = {
    aten.alias.default,
    aten.detach.default,
    aten.lift_fresh.default,
    aten.lift_fresh_copy.default,
}

#: What a tensor's shape and type decide alone.
SHAPE_ALONE = {
    aten.ones_like.default, aten.zeros_like.default, aten.full_like.default,
    aten.new_zeros.default, aten.new_ones.default, aten.new_full.default,
}  # fmt: skip

#: What writes over a tensor's shape alone.
SHAPE_WRITING = {"squeeze_", "unsqueeze_", "t_", "transpose_"}

PRODUCTS = {aten.mul.Tensor, aten.mul.Scalar}

AND = {aten.bitwise_and.Tensor, aten.logical_and.default}

#: What gives back its argument where each sum, or the like, is of one entry.
OVER_DIMENSIONS = {
    aten.sum.dim_IntList, aten.mean.dim, aten.amax.default, aten.amin.default, aten.all.dim, aten.any.dim,
    aten.prod.dim_int,
}  # fmt: skip

#: Of each entry by itself, broadcast.
ELEMENTWISE = {
    aten.mul.Tensor, aten.mul.Scalar, aten.add.Tensor, aten.sub.Tensor, aten.div.Tensor, aten.neg.default,
    aten.abs.default, aten.exp.default, aten.log.default, aten.reciprocal.default, aten.sqrt.default,
    aten.rsqrt.default, aten.pow.Tensor_Scalar, aten.sin.default, aten.cos.default, aten.tanh.default,
    aten.sigmoid.default, aten.where.self, aten.maximum.default, aten.minimum.default, aten.le.Tensor,
    aten.le.Scalar, aten.ge.Scalar, aten.ge.Tensor, aten.gt.Scalar, aten.gt.Tensor, aten.lt.Scalar,
    aten.eq.Scalar, aten.bitwise_and.Tensor, aten.bitwise_or.Tensor, aten.bitwise_not.default,
    aten._to_copy.default,
}  # fmt: skip

#: Of the matrices (..., n, k) in the last two dimensions.
OF_MATRICES = {
    aten.bmm.default, aten.linalg_cholesky_ex.default, aten.linalg_solve_triangular.default,
    aten.cholesky_solve.default, aten._linalg_eigh.default, aten.diagonal.default,
}  # fmt: skip

CONTIGUOUS = {"memory_format": torch.contiguous_format}

#: What depends on how a tensor lies in memory.
OF_MEMORY = {aten.as_strided.default, aten._reshape_alias.default, aten.view.dtype}

#: Given the shape of what they return.
RESHAPES = {aten.view.default, aten._unsafe_view.default, aten.reshape.default}

#: What may leave the first dimension alone: see `keeps_items`.
PER_ITEM = ELEMENTWISE | OF_MATRICES | RESHAPES | OVER_DIMENSIONS | {
    aten.permute.default, aten.transpose.int, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims,
    aten.linalg_vector_norm.default,
}  # fmt: skip

VIEWS = {
    aten.view.default, aten._unsafe_view.default, aten.unsqueeze.default, aten.squeeze.dim,
    aten.squeeze.dims, aten.squeeze.default, aten.expand.default, aten.permute.default,
    aten.transpose.int, aten.t.default, aten.select.int, aten.slice.Tensor, aten.reshape.default,
}  # fmt: skip

BROADCASTING = {
    aten.mul.Tensor, aten.add.Tensor, aten.sub.Tensor, aten.div.Tensor, aten.where.self,
    aten.maximum.default, aten.minimum.default,
}  # fmt: skip

#: Called by a shorter way than their overload, which looks at every argument anew.
SHORT: dict[Any, Callable[..., Any]] = {
    aten.mul.Tensor: torch.mul, aten.mul.Scalar: torch.mul, aten.add.Tensor: torch.add,
    aten.sub.Tensor: torch.sub, aten.div.Tensor: torch.div, aten.neg.default: torch.neg,
    aten.sum.default: torch.sum, aten.sum.dim_IntList: torch.sum, aten.bmm.default: torch.bmm,
    aten.mm.default: torch.mm, aten.abs.default: torch.abs, aten.exp.default: torch.exp,
    aten.log.default: torch.log, aten.reciprocal.default: torch.reciprocal,
    aten.sqrt.default: torch.sqrt, aten.rsqrt.default: torch.rsqrt, aten.pow.Tensor_Scalar: torch.pow,
    aten.view.default: torch.Tensor.view, aten.unsqueeze.default: torch.unsqueeze,
    aten.squeeze.dim: torch.squeeze, aten.expand.default: torch.Tensor.expand,
    aten.permute.default: torch.permute, aten.transpose.int: torch.transpose, aten.cat.default: torch.cat,
    aten.select.int: torch.select, aten.where.self: torch.where, aten.le.Tensor: torch.le,
    aten.le.Scalar: torch.le, aten.ge.Scalar: torch.ge, aten.gt.Scalar: torch.gt,
    aten.logical_and.default: torch.logical_and, aten.sigmoid.default: torch.sigmoid,
    aten.tanh.default: torch.tanh, aten.sin.default: torch.sin, aten.cos.default: torch.cos,
    aten.maximum.default: torch.maximum, aten.minimum.default: torch.minimum,
    aten.addmm.default: torch.addmm, aten.baddbmm.default: torch.baddbmm,
    aten.addcmul.default: torch.addcmul, aten.t.default: torch.t, aten.amax.default: torch.amax,
    aten.diagonal.default: torch.diagonal, aten.eq.Scalar: torch.eq, aten.amin.default: torch.amin,
    aten.stack.default: torch.stack, aten.all.default: torch.all, aten.any.default: torch.any,
    aten.bitwise_and.Tensor: torch.bitwise_and, aten.bitwise_or.Tensor: torch.bitwise_or,
    aten.bitwise_not.default: torch.bitwise_not, aten.ge.Tensor: torch.ge, aten.lt.Scalar: torch.lt,
    aten.gt.Tensor: torch.gt, aten.clamp_max.default: torch.clamp_max,
    aten.clamp_min.default: torch.clamp_min, aten.linalg_vector_norm.default: torch.linalg.vector_norm,
    aten.linalg_cholesky_ex.default: torch.linalg.cholesky_ex,
    aten.linalg_solve_triangular.default: torch.linalg.solve_triangular,
}  # fmt: skip

#: Their second argument may be a number.
OF_A_NUMBER = {
    aten.mul.Tensor, aten.mul.Scalar, aten.add.Tensor, aten.sub.Tensor, aten.div.Tensor, aten.le.Scalar,
    aten.ge.Scalar, aten.gt.Scalar, aten.lt.Scalar, aten.eq.Scalar,
}  # fmt: skip

#: Named arguments that the shorter ways have too.
KEPT_NAMES = {"upper", "alpha", "beta", "value"}


#: What may write over its first argument.
WRITING: dict[Any, Callable[..., Any]] = {
    aten.mul.Tensor: torch.Tensor.mul_, aten.add.Tensor: torch.Tensor.add_,
    aten.sub.Tensor: torch.Tensor.sub_, aten.div.Tensor: torch.Tensor.div_,
    aten.neg.default: torch.Tensor.neg_, aten.abs.default: torch.Tensor.abs_,
}  # fmt: skip

#: Entries from which on memory is worth that.
WORTH_REUSE = 4_096


def quickest_call(step: Step) -> tuple[Any, tuple[Any, ...], Mapping[str, Any]]:
    """The quickest call that does the same: function, arguments, named arguments."""
    if step.target is aten._to_copy.default and step.kwargs.keys() == {"dtype"}:
        return torch.Tensor.to, (step.args[0], step.kwargs["dtype"]), {}
    if step.kwargs.keys() <= KEPT_NAMES:
        return SHORT.get(step.target, step.target), step.args, step.kwargs
    return step.target, step.args, step.kwargs
