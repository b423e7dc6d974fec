"""Program: a function of tensors as the list of operations that it takes, found once and run again.

Python, autograd and vmap cost some ten times what the operations on a small batch cost. A program has
them behind it: `traced` follows the function once, with its derivatives (`make_fx`), simplifies what it
finds, and writes a Python function that calls the operations one after the other. It holds for inputs of the
same shapes, types and device alone, and as long as the function is the same: whoever keeps one must see to
that (`ddnkit.programs.evaluation`).

Simplified is what the transforms leave behind and no compiler of Python removes: constants that are
computed anew, products with ones, powers of 0 and 1, sums of one entry, views of views, expansions before an
operation that broadcasts, what is computed twice, and what is computed for each item though it is the same
for all. Every rule is exact: the numbers are those of the function, bit for bit but for the sign of a zero
and, of a matrix that all items share, the order in which a library adds up.
"""

from __future__ import annotations

import operator
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .written_out import MOST_ROWS, WRITTEN_OUT

#: Operations beyond which a program is none: a loop over items, say, that was unrolled.
MOST_STEPS = 3_000

#: One trace at a time: torch's tracer is not made for more.
_TRACING = threading.Lock()


if hasattr(os, "register_at_fork"):
    # What another thread was tracing when a process was forked, no thread of the new one will finish.
    os.register_at_fork(after_in_child=lambda: globals().update(_TRACING=threading.Lock()))


class NotAProgramError(Exception):
    """A function that cannot be followed, or is not the same at each call. The text says why."""


class _InPlaceError(NotAProgramError):
    """An operation writes over what is used later."""


class BusyError(NotAProgramError):
    """Another thread is tracing: there may well be a program, later."""


class Program:
    """The operations of a function; a call gives what the function gave, as plain tensors.

    Attributes:
        source: the Python text that runs.
        steps: how many operations it calls.
        constant: for each output, its value if it depends on no input.
    """

    def __init__(self, code: _Code, for_compiler: _Code):
        self.steps = len(code.lines)
        self.source = code.source
        self.constant = code.constant_outputs
        self._run = code.function()
        self._for_compiler = for_compiler

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        """The outputs for inputs that lie in memory as the examples did, without a graph."""
        return self._run(*inputs)

    def compile(self, examples: Sequence[Tensor]) -> None:
        """Have the operations run as one, by torch's compiler, for inputs like the examples.

        It takes seconds, less where torch finds in its cache on disk what it has compiled before.

        Raises:
            NotAProgramError: there is no compiler, or it fails; the program runs as before.
        """
        from torch._inductor.compile_fx import compile_fx
        from torch.fx.experimental.proxy_tensor import make_fx

        own = [x.detach().clone() for x in examples]
        with _TRACING:
            try:
                with torch.no_grad():
                    compiled: Any = compile_fx(make_fx(self._for_compiler.function())(*own), own)
                    compiled(*own)
            except Exception as error:  # whatever it is: a compiler is many programs
                text = str(error).strip().splitlines() or [type(error).__name__]
                raise NotAProgramError(f"torch cannot compile it: {text[0]}") from error
        self._run = compiled


def trace(
    function: Callable[..., Sequence[Tensor]],
    examples: Sequence[Tensor],
    shown: int | None = None,
) -> Program:
    """The program of ``function`` for inputs like the examples.

    Args:
        function: of tensors, returns tensors. It may take derivatives by torch.func.
        shown: how many of the outputs come into other hands, all if None: each in memory of its own,
            at each call, as those hands may write on it. The rest may share it, with constants too, and is
            of shape (1, ...) where it is the same for all items.

    Raises:
        NotAProgramError: there is none.
        BusyError: not now.
    """
    # Each of its own: a tensor that is given twice would be one input, and one that the function
    # knows by another way a constant.
    own = [x.detach().clone() for x in examples]
    if not _TRACING.acquire(blocking=False):
        raise BusyError("another thread is tracing")
    try:
        try:
            return _program(_graph_of(function, own), own, shown)
        except _InPlaceError:
            # A part of an intermediate result that is written over: torch's own way to undo that.
            function = torch.func.functionalize(function, remove="mutations")
            return _program(_graph_of(function, own), own, shown)
    finally:
        _TRACING.release()


def _program(graph: torch.fx.GraphModule, inputs: Sequence[Tensor], shown: int | None) -> Program:
    simplified = _Simplified(graph, inputs)
    return Program(simplified.code(shown), simplified.code(shown, for_compiler=True))


def _graph_of(
    function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]
) -> torch.fx.GraphModule:
    # Loads torch's compiler, which takes a second: for those who come this far.
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
    from torch.fx.experimental.proxy_tensor import make_fx

    try:
        # The transforms that are at work would be followed too, and the first input with them.
        with temporarily_clear_interpreter_stack(), torch.enable_grad():
            return make_fx(function, decomposition_table=_decompositions())(*inputs)
    except NotAProgramError:
        raise
    except Exception as error:
        text = str(error).strip().splitlines() or [type(error).__name__]
        raise NotAProgramError(f"it cannot be followed: {text[0]}") from error


def _decompositions() -> Any:
    """Of the norms whose third derivative torch gets wrong."""
    from torch._decomp import get_decompositions

    aten = torch.ops.aten
    return get_decompositions(
        [
            aten.native_layer_norm,
            aten.native_layer_norm_backward,
            aten.native_batch_norm,
            aten.native_batch_norm_backward,
        ]
    )


@dataclass(frozen=True)
class _Ref:
    """The result of a step, or an input."""

    index: int


class _Code(NamedTuple):
    lines: list[str]
    source: str
    scope: dict[str, Any]
    constant_outputs: list[Tensor | None]

    def function(self) -> Callable[..., Sequence[Tensor]]:
        """What the text defines."""
        scope = dict(self.scope)
        exec(compile(self.source, "<a ddnkit program>", "exec"), scope)
        found: Callable[..., Sequence[Tensor]] = scope["run"]
        return found


class _Step(NamedTuple):
    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Simplified:
    """The steps of a graph, each simplified as it comes: what it is made of is simple by then.

    Each is run on the examples as well, which tells shapes, and which results are constant.
    """

    def __init__(self, module: torch.fx.GraphModule, inputs: Sequence[Tensor]):
        self.values: list[Any] = list(inputs)
        self.steps: list[_Step | None] = [None] * len(inputs)
        self.inputs = len(inputs)
        self._same: dict[Any, _Ref] = {}
        # Of results that are the same for each item (along the first dimension): that of one (1, ...).
        self._one: dict[int, _Ref] = {}
        found: dict[torch.fx.Node, Any] = {}
        given = iter(range(len(inputs)))
        self.outputs: list[Any] = []
        if len(module.graph.nodes) > MOST_STEPS:
            raise NotAProgramError(f"it takes {len(module.graph.nodes)} operations")
        with torch.no_grad():
            written = _out_of_place(module, inputs)
            for node in module.graph.nodes:
                if node.op == "placeholder":
                    found[node] = _Ref(next(given))
                elif node.op == "get_attr":
                    found[node] = _attribute(module, node.target)
                elif node.op == "output":
                    self.outputs = [
                        found[x] if isinstance(x, torch.fx.Node) else x
                        for x in pytree.tree_leaves(node.args[0])
                    ]
                elif node.op == "call_function":
                    args = torch.fx.node.map_arg(node.args, found.__getitem__)
                    kwargs = torch.fx.node.map_arg(node.kwargs, found.__getitem__)
                    target = written.get(node, node.target)
                    found[node] = self._enter(target, tuple(args), dict(kwargs))
                    if target is not node.target:  # whoever looks there later sees what was written
                        found[node.args[0]] = found[node]
                else:
                    raise NotAProgramError(f"it has a step of the kind {node.op}")

    def value(self, x: Any) -> Any:
        """What an argument is in the example."""
        return self.values[x.index] if isinstance(x, _Ref) else x

    def _enter(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of one operation: a reference, or a constant."""
        if target is operator.getitem and not isinstance(args[0], _Ref):
            return args[0][args[1]]
        refs = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, _Ref)]
        if isinstance(target, torch._ops.OpOverload):
            if not (target._schema.is_mutable and not refs and self._unused(args[0])):
                given = [self.value(x) for x in pytree.tree_leaves(args)]
                _refuse_impure(target, given)
        elif target is not operator.getitem:
            raise NotAProgramError(f"it calls {target}")
        args = self._laid_out(target, _plain(args))
        value = target(*self._values_of(args), **self._values_of(kwargs))
        if not refs or target in _SHAPE_ALONE:
            return value
        if isinstance(value, Tensor):
            simple = self._simple(target, args, kwargs, value)
            if simple is not None:
                return simple
        if target is aten.expand.default and isinstance(args[0], _Ref):
            expanded = self._expand(args[0], value)
            if expanded is not None:
                return expanded
        once = self._once(target, args, kwargs, value)
        if once is not None:
            return once
        if isinstance(value, Tensor):
            args = self._without_expansions(target, args, value)
        return self._step(target, args, kwargs, value)

    def _unused(self, constant: Any) -> bool:
        """Whether no step has taken a constant yet, which may then still be filled, as a basis is."""
        if not isinstance(constant, Tensor):
            return False
        memory = constant.untyped_storage().data_ptr()
        taken = (
            x for s in self.steps if s is not None for x in pytree.tree_leaves((s.args, s.kwargs))
        )
        return not any(
            isinstance(x, Tensor) and x.untyped_storage().data_ptr() == memory for x in taken
        )

    def _values_of(self, given: Any) -> Any:
        return pytree.tree_map(self.value, given)

    def _step(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> _Ref:
        key = (target, _key(args), _key(tuple(sorted(kwargs.items()))))
        if key not in self._same:
            self.steps.append(_Step(target, args, kwargs))
            self.values.append(value)
            self._same[key] = _Ref(len(self.steps) - 1)
        return self._same[key]

    # -- rules ----------------------------------------------------------------------------------

    def _simple(
        self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], value: Tensor
    ) -> Any:
        """The result by less than this operation, or None."""
        first = args[0] if args else None
        if target in _NOTHING:
            return first
        if target is aten.pow.Tensor_Scalar and args[1] in (0, 1):
            return torch.ones_like(value) if args[1] == 0 else self._if_alike(first, value)
        if target in _PRODUCTS and not kwargs:
            for x, one in ((first, args[1]), (args[1], first)):
                if isinstance(x, _Ref) and _is_one(one):
                    return self._if_alike(x, value)
            joined = self._joined_factors(first, args[1])
            if joined is not None:
                return self._step(aten.mul.Tensor, joined, {}, value)
        if target is aten.div.Tensor and not kwargs and _is_one(args[1]):
            return self._if_alike(first, value)
        if target in _AND:
            for x, true in ((first, args[1]), (args[1], first)):
                if isinstance(true, Tensor) and true.dtype == torch.bool and bool(true.all()):
                    return self._if_alike(x, value)
        if target in _OVER_DIMENSIONS and not kwargs and isinstance(first, _Ref):
            # Of one entry each.
            there = self.values[first.index]
            same = there.numel() == value.numel() > 0 and there.dtype == value.dtype
            if same and there.is_contiguous() and value.is_contiguous():
                return self._view(first, value, aten.view.default, args)
        if isinstance(first, _Ref) and target in _VIEWS:
            return self._view(first, value, target, args)
        return None

    def _laid_out(self, target: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments, one that repeats an item as often as it is there where memory counts."""
        if not args or not isinstance(args[0], _Ref) or args[0].index not in self._one:
            return args
        if target in _OF_MEMORY:
            raise NotAProgramError(f"it looks at memory ({target})")
        first = self.values[args[0].index]
        if target not in _RESHAPES or (len(args[1]) > 1 and args[1][0] == first.shape[0]):
            return args
        whole = first.contiguous()
        return self._step(aten.clone.default, args[:1], _CONTIGUOUS, whole), *args[1:]

    def _once(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> Any:
        """The result by the same operation on one item, where it is the same for each.

        A matrix that all items share, in a Hessian say, is so factorise once.
        """
        results = list(value) if isinstance(value, (tuple, list)) else [value]
        if not all(isinstance(x, Tensor) and x.ndim > 0 for x in results):
            return None
        count = results[0].shape[0]
        if count < 2 or any(x.shape[0] != count for x in results):
            return None
        of_one = self._arguments_of_one(target, args, results[0])
        if of_one is None:
            return None
        alone = target(*self._values_of(of_one), **self._values_of(kwargs))
        found = list(alone) if isinstance(alone, (tuple, list)) else [alone]
        for x, one in zip(results, found, strict=True):
            # As the operation treats the first dimension here, so it treats it always: a check of the lists.
            close = torch.finfo(x.dtype).eps ** 0.5 if x.is_floating_point() else 0.0
            if one.shape != (1, *x.shape[1:]) or not torch.allclose(
                one.expand_as(x), x, rtol=close, atol=0.0, equal_nan=True
            ):
                return None
        if isinstance(value, Tensor):
            return self._repeat_result(self._enter(target, of_one, kwargs), value)
        several = self._step(target, of_one, kwargs, alone)
        parts = [self._step(operator.getitem, (several, k), {}, x) for k, x in enumerate(found)]
        return tuple(self._repeat_result(part, x) for part, x in zip(parts, results, strict=True))

    def _repeat_result(self, one: Any, value: Tensor) -> Any:
        """A result of one item for all of them."""
        if not isinstance(one, _Ref):
            return one.expand_as(value)
        there = self.values[one.index].expand(value.shape)
        whole = self._step(aten.expand.default, (one, list(value.shape)), {}, there)
        self._one[whole.index] = one
        return whole

    def _arguments_of_one(
        self, target: Any, args: tuple[Any, ...], value: Tensor
    ) -> tuple[Any, ...] | None:
        """The arguments for one item, where they are the same for each; None where items may be mixed."""
        first = args[0] if args else None
        if not isinstance(self.value(first), Tensor):
            return None
        if target not in _PER_ITEM or not _keeps_items(target, args, self.value(first), value):
            return None
        found: list[Any] = []
        for x in args:
            there = self.value(x)
            if not isinstance(there, Tensor):
                found.append(x)
                continue
            one = self._of_one(x, there, value, broadcasts=target in _ELEMENTWISE)
            if one is None:
                return None
            found.append(one)
        if target in _RESHAPES:
            found[1] = [1, *args[1][1:]]
        return tuple(found)

    def _of_one(self, x: Any, there: Tensor, value: Tensor, *, broadcasts: bool) -> Any:
        if broadcasts and (there.ndim < value.ndim or there.shape[0] == 1):
            return x
        if isinstance(x, _Ref):
            return self._one.get(x.index)
        same = there.ndim > 0 and there.shape[0] == value.shape[0] and (there == there[:1]).all()
        return there[:1].clone() if bool(same) else None

    def _expand(self, x: _Ref, value: Tensor) -> Any:
        """An expansion along the first dimension, as one of a single item."""
        if value.ndim == 0 or value.shape[0] < 2:
            return None
        one = self._one.get(x.index, x)
        there = self.values[one.index]
        if there.ndim == value.ndim and there.shape[0] != 1:
            return None
        while self.values[one.index].ndim < value.ndim:
            one = self._step(
                aten.unsqueeze.default, (one, 0), {}, self.values[one.index].unsqueeze(0)
            )
        wanted = value[:1]
        if self.values[one.index].shape != wanted.shape:
            one = self._step(
                aten.expand.default,
                (one, list(wanted.shape)),
                {},
                self.values[one.index].expand(wanted.shape),
            )
        return self._repeat_result(one, value)

    def _joined_factors(self, x: Any, factor: Any) -> tuple[Any, Any] | None:
        """(M v) c as (M c) v, where M is a constant of zeros and ones, as of a derivative along axes."""
        step = self.steps[x.index] if isinstance(x, _Ref) else None
        if step is None or not isinstance(factor, (int, float)) or step.target not in _PRODUCTS:
            return None
        mask, v = step.args
        if not isinstance(mask, Tensor) or not isinstance(v, _Ref):
            return None
        same = mask.dtype == self.values[v.index].dtype
        return (mask * factor, v) if same and bool(((mask == 0) | (mask == 1)).all()) else None

    def _if_alike(self, x: Any, value: Tensor) -> Any:
        there = self.value(x)
        alike = there.shape == value.shape and there.dtype == value.dtype
        return x if alike else None

    def _view(self, x: _Ref, value: Tensor, target: Any, args: tuple[Any, ...]) -> Any:
        """One view of what the whole chain of views shows."""
        root = x
        while (step := self.steps[root.index]) is not None and step.target in _VIEWS:
            if not self.values[step.args[0].index].is_contiguous():
                break
            root = step.args[0]
        there = self.values[root.index]
        if there.is_contiguous() and value.is_contiguous() and there.numel() == value.numel():
            # Of a tensor without entries no view is wrong.
            if there.shape == value.shape:
                return root
            return self._step(aten.view.default, (root, list(value.shape)), {}, value)
        if target is aten.expand.default and self.values[x.index].shape == value.shape:
            return x
        if target is aten.transpose.int or target is aten.permute.default:
            # A transpose of a transpose.
            before = self.steps[x.index]
            if before is not None and before.target in (aten.transpose.int, aten.permute.default):
                whole = self.values[before.args[0].index]
                if whole.shape == value.shape and whole.stride() == value.stride():
                    return before.args[0]
        return None

    def _without_expansions(
        self, target: Any, args: tuple[Any, ...], value: Tensor
    ) -> tuple[Any, ...]:
        """An elementwise operation broadcasts by itself."""
        if target not in _BROADCASTING:
            return args
        kept = list(args)
        for k, x in enumerate(args):
            if isinstance(x, Tensor):
                small = _collapse(x)
            elif isinstance(x, _Ref) and (step := self.steps[x.index]) is not None:
                if step.target is not aten.expand.default:
                    continue
                small = step.args[0]
            else:
                continue
            others = [self.value(z).shape for z in kept if isinstance(self.value(z), Tensor)]
            others[sum(isinstance(self.value(z), Tensor) for z in args[:k])] = self.value(
                small
            ).shape
            if torch.broadcast_shapes(*others) == value.shape and _same_type(
                [self.value(z) for z in kept], self.value(small), k
            ):
                kept[k] = small
        return tuple(kept)

    # -- text -----------------------------------------------------------------------------------

    def code(self, shown: int | None = None, for_compiler: bool = False) -> _Code:
        """The Python text of the steps that the outputs need, and what its names stand for.

        Args:
            shown: see `traced`.
            for_compiler: as a compiler likes them: it has its own ways with numbers and memory, and makes
                one loop of what is written out.
        """
        # In other hands a result has its shape; the rest may be of one item, for all.
        hidden = [] if shown is None else self.outputs[shown:]
        outputs = self.outputs[: len(self.outputs) - len(hidden)]
        outputs += [self._one.get(x.index, x) if isinstance(x, _Ref) else x for x in hidden]
        needed: set[int] = set()
        ahead = [x.index for x in outputs if isinstance(x, _Ref)]
        while ahead:
            k = ahead.pop()
            if k in needed:
                continue
            needed.add(k)
            step = self.steps[k]
            if step is not None:
                ahead += _refs(step)
        scope: dict[str, Any] = {"full": torch.full, "torch": torch} if for_compiler else {}
        names: dict[int, str] = {}

        def text(x: Any) -> str:
            if isinstance(x, _Ref):
                return f"v{x.index}"
            if isinstance(x, (list, tuple)) and not isinstance(x, torch.Size):
                inner = ", ".join(map(text, x))
                return f"[{inner}]"
            if isinstance(x, (bool, int, str)) or x is None:
                return repr(x)
            if isinstance(x, float) and x == x and abs(x) != float("inf"):
                return repr(x)
            if for_compiler and isinstance(x, Tensor) and _is_one_number(x):
                shape, number = tuple(x.shape), x.flatten()[0].item()
                return f"full({shape}, {number}, dtype={x.dtype}, device='{x.device}')"
            if id(x) not in names:
                names[id(x)] = f"c{len(names)}"
                scope[names[id(x)]] = x
            return names[id(x)]

        last: dict[int, int] = {}
        for k in sorted(needed):
            step = self.steps[k]
            if step is not None:
                last.update((i, k) for i in _refs(step))
        kept = {x.index for x in outputs if isinstance(x, _Ref)}
        lines = []
        for k in sorted(needed):
            step = self.steps[k]
            if step is None:
                continue
            over = [i for i, at in last.items() if at == k and i not in kept and i >= self.inputs]
            call, args, kwargs = _fast(step)
            if for_compiler:
                call = self._written_out(step) or call
            else:
                args = self._numbers_as_tensors(step.target, args)
                call = self._in_place(k, over, last, kept) or call
            arguments = [text(x) for x in args]
            arguments += [f"{name}={text(x)}" for name, x in kwargs.items()]
            line = f"v{k} = {text(call)}({', '.join(arguments)})"
            lines.append(line + "".join(f"; v{i} = None" for i in over))
        taken = {self.values[k].untyped_storage().data_ptr() for k in range(self.inputs)}
        results = []
        for x in outputs[:shown]:
            memory = self.value(x).untyped_storage().data_ptr()
            own = isinstance(x, _Ref) and memory not in taken and not _repeats(self.value(x))
            results.append(text(x) if own else f"{text(x)}.clone()")
            taken.add(memory)
        results += [self._output(x, text) for x in outputs[len(results) :]]
        given = ", ".join(f"v{k}" for k in range(self.inputs))
        body = "".join(f"    {line}\n" for line in lines)
        source = f"def run({given}):\n{body}    return ({''.join(r + ', ' for r in results)})\n"
        constant = [None if isinstance(x, _Ref) else x for x in outputs]
        return _Code(lines, source, scope, constant)

    def _numbers_as_tensors(self, target: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """A number as the tensor that torch would make of it at each call."""
        if target not in _OF_A_NUMBER or len(args) != 2 or not isinstance(args[0], _Ref):
            return args
        first, second = self.values[args[0].index], args[1]
        if not isinstance(second, (int, float)) or isinstance(second, bool):
            return args
        if not first.is_floating_point():
            return args
        return args[0], torch.tensor(second, dtype=first.dtype, device=first.device)

    def _written_out(self, step: _Step) -> Callable[..., Any] | None:
        """What is done with small matrices by their entries, each of all items: see `written_out`."""
        found = WRITTEN_OUT.get(step.target)
        if found is None:
            return None
        shapes = [self.value(x).shape for x in step.args if isinstance(x, (_Ref, Tensor))]
        return found if all(max(shape[-2:]) <= MOST_ROWS for shape in shapes) else None

    def _in_place(
        self, k: int, over: Sequence[int], last: Mapping[int, int], kept: set[int]
    ) -> Callable[..., Any] | None:
        """The operation that writes over its first argument, if nothing else needs what that holds.

        Memory of a new size is the dearest part of an operation on a large batch.
        """
        step = self.steps[k]
        assert step is not None
        first = step.args[0] if step.args else None
        writing = _WRITING.get(step.target)
        if writing is None or step.kwargs or not isinstance(first, _Ref) or first.index not in over:
            return None
        if sum(isinstance(x, _Ref) and x.index == first.index for x in step.args) > 1:
            return None
        mine, value = self.values[first.index], self.values[k]
        if mine.shape != value.shape or mine.dtype != value.dtype or mine.numel() < _WORTH_REUSE:
            return None
        whole = mine.numel() * mine.element_size() == mine.untyped_storage().nbytes()
        if (
            not whole or mine.stride() != value.stride()
        ):  # a part, or one number that stands for many
            return None
        memory = mine.untyped_storage().data_ptr()
        for i, other in enumerate(self.values):
            used = i in kept or i < self.inputs or last.get(i, -1) > k or i in _refs(step)
            if i == first.index or not used or not isinstance(other, Tensor):
                continue
            if other.untyped_storage().data_ptr() == memory:
                return None
        return writing

    def _output(self, x: Any, text: Callable[[Any], str]) -> str:
        """An output in memory of its own where it would be an input's, each entry at its own place."""
        if _repeats(self.value(x)):
            return f"{text(x)}.contiguous()" if isinstance(x, _Ref) else text(x.contiguous())
        if isinstance(x, _Ref):
            mine = self.values[x.index].untyped_storage().data_ptr()
            if any(mine == self.values[k].untyped_storage().data_ptr() for k in range(self.inputs)):
                return f"{text(x)}.clone()"
        return text(x)


def _repeats(x: Tensor) -> bool:
    """Whether an entry in memory stands for several."""
    return any(step == 0 and n > 1 for step, n in zip(x.stride(), x.shape, strict=True))


def _refs(step: _Step) -> list[int]:
    leaves = pytree.tree_leaves((step.args, step.kwargs))
    return [x.index for x in leaves if isinstance(x, _Ref)]


def _attribute(module: torch.fx.GraphModule, target: str) -> Any:
    value: Any = module
    for part in target.split("."):
        value = getattr(value, part)
    if not isinstance(value, Tensor):
        raise NotAProgramError(f"it holds a {type(value).__name__}")
    if value.requires_grad:
        raise NotAProgramError("it uses a tensor that wants a gradient and cannot be seen")
    return value.detach().clone()


def _out_of_place(
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
            values[node] = _attribute(module, str(node.target))
        elif node.op == "call_function":
            if moving.intersection(node.all_input_nodes) and node.target not in _SHAPE_ALONE:
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
    refused = _InPlaceError(f"it works in place ({target})")
    if not name.endswith("_") or found is None or not isinstance(first, torch.fx.Node):
        raise refused
    if first.op != "call_function":
        raise refused
    if name in _SHAPE_WRITING:
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


def _refuse_impure(target: torch._ops.OpOverload, given: Sequence[Any] = ()) -> None:
    if target._schema.is_mutable:
        raise _InPlaceError(f"it works in place ({target})")
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


def _plain(x: Any) -> Any:
    """Lists and tuples of fx as Python's."""
    if isinstance(x, _Ref):
        return x
    if isinstance(x, tuple):
        return tuple(map(_plain, x))
    return [_plain(y) for y in x] if isinstance(x, list) else x


def _key(x: Any) -> Any:
    if isinstance(x, _Ref):
        return x
    if isinstance(x, (list, tuple)):
        return tuple(map(_key, x))
    if isinstance(x, Tensor):
        if x.numel() <= 64 and x.device.type == "cpu":
            return "tensor", x.dtype, tuple(x.shape), x.stride(), x.numpy(force=True).tobytes()
        return "tensor", id(x)
    if isinstance(x, dict):
        return tuple((k, _key(v)) for k, v in sorted(x.items()))
    return type(x), x


def _keeps_items(target: Any, args: tuple[Any, ...], first: Tensor, value: Tensor) -> bool:
    """Whether an operation of `_PER_ITEM` leaves the first dimension alone."""
    if target in _ELEMENTWISE:
        return True
    if target in _RESHAPES:
        return first.ndim > 0 and bool(first.shape[0] == value.shape[0] == args[1][0])
    if target is aten.permute.default:
        return args[1][0] in (0, -first.ndim)
    if target is aten.diagonal.default:
        named = args[2:4] if len(args) == 4 else (0, 1)
    elif target in _OF_MATRICES:
        return first.ndim > 2 and value.ndim > 1
    elif target is aten.transpose.int:
        named = args[1:3]
    else:
        at = 2 if target is aten.linalg_vector_norm.default else 1
        named = args[at : at + 1]
    dims = [d for x in named for d in (x if isinstance(x, (list, tuple)) else [x])]
    size = first.ndim + (target is aten.unsqueeze.default)
    return bool(dims) and all(isinstance(d, int) and d % size != 0 for d in dims)


def _is_one_number(x: Tensor) -> bool:
    """Whether all entries are the same number, as text gives it."""
    if x.numel() == 0 or not bool((x == x.flatten()[0]).all()):
        return False
    return bool(x.isfinite().all()) and not bool(x.is_complex())


def _is_one(x: Any) -> bool:
    if isinstance(x, Tensor):
        return x.numel() > 0 and bool((x == 1).all())
    return isinstance(x, (int, float)) and not isinstance(x, bool) and x == 1


def _collapse(x: Tensor) -> Tensor:
    """An expanded constant without its repetitions."""
    for dim in range(x.ndim):
        if x.shape[dim] > 1 and x.stride(dim) == 0:
            x = x.narrow(dim, 0, 1)
    return x.clone() if x._is_view() else x


def _same_type(values: Sequence[Any], small: Tensor, at: int) -> bool:
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
_NOTHING = {
    aten.alias.default,
    aten.detach.default,
    aten.lift_fresh.default,
    aten.lift_fresh_copy.default,
}

#: What a tensor's shape and type decide alone.
_SHAPE_ALONE = {
    aten.ones_like.default, aten.zeros_like.default, aten.full_like.default,
    aten.new_zeros.default, aten.new_ones.default, aten.new_full.default,
}  # fmt: skip

#: What writes over a tensor's shape alone.
_SHAPE_WRITING = {"squeeze_", "unsqueeze_", "t_", "transpose_"}

_PRODUCTS = {aten.mul.Tensor, aten.mul.Scalar}

_AND = {aten.bitwise_and.Tensor, aten.logical_and.default}

#: What gives back its argument where each sum, or the like, is of one entry.
_OVER_DIMENSIONS = {
    aten.sum.dim_IntList, aten.mean.dim, aten.amax.default, aten.amin.default, aten.all.dim, aten.any.dim,
    aten.prod.dim_int,
}  # fmt: skip

#: Of each entry by itself, broadcast.
_ELEMENTWISE = {
    aten.mul.Tensor, aten.mul.Scalar, aten.add.Tensor, aten.sub.Tensor, aten.div.Tensor, aten.neg.default,
    aten.abs.default, aten.exp.default, aten.log.default, aten.reciprocal.default, aten.sqrt.default,
    aten.rsqrt.default, aten.pow.Tensor_Scalar, aten.sin.default, aten.cos.default, aten.tanh.default,
    aten.sigmoid.default, aten.where.self, aten.maximum.default, aten.minimum.default, aten.le.Tensor,
    aten.le.Scalar, aten.ge.Scalar, aten.ge.Tensor, aten.gt.Scalar, aten.gt.Tensor, aten.lt.Scalar,
    aten.eq.Scalar, aten.bitwise_and.Tensor, aten.bitwise_or.Tensor, aten.bitwise_not.default,
    aten._to_copy.default,
}  # fmt: skip

#: Of the matrices (..., n, k) in the last two dimensions.
_OF_MATRICES = {
    aten.bmm.default, aten.linalg_cholesky_ex.default, aten.linalg_solve_triangular.default,
    aten.cholesky_solve.default, aten._linalg_eigh.default, aten.diagonal.default,
}  # fmt: skip

_CONTIGUOUS = {"memory_format": torch.contiguous_format}

#: What depends on how a tensor lies in memory.
_OF_MEMORY = {aten.as_strided.default, aten._reshape_alias.default, aten.view.dtype}

#: Given the shape of what they return.
_RESHAPES = {aten.view.default, aten._unsafe_view.default, aten.reshape.default}

#: What may leave the first dimension alone: see `_keeps_items`.
_PER_ITEM = _ELEMENTWISE | _OF_MATRICES | _RESHAPES | _OVER_DIMENSIONS | {
    aten.permute.default, aten.transpose.int, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims,
    aten.linalg_vector_norm.default,
}  # fmt: skip

_VIEWS = {
    aten.view.default, aten._unsafe_view.default, aten.unsqueeze.default, aten.squeeze.dim,
    aten.squeeze.dims, aten.squeeze.default, aten.expand.default, aten.permute.default,
    aten.transpose.int, aten.t.default, aten.select.int, aten.slice.Tensor, aten.reshape.default,
}  # fmt: skip

_BROADCASTING = {
    aten.mul.Tensor, aten.add.Tensor, aten.sub.Tensor, aten.div.Tensor, aten.where.self,
    aten.maximum.default, aten.minimum.default,
}  # fmt: skip

#: Called by a shorter way than their overload, which looks at every argument anew.
_SHORT: dict[Any, Callable[..., Any]] = {
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
_OF_A_NUMBER = {
    aten.mul.Tensor, aten.mul.Scalar, aten.add.Tensor, aten.sub.Tensor, aten.div.Tensor, aten.le.Scalar,
    aten.ge.Scalar, aten.gt.Scalar, aten.lt.Scalar, aten.eq.Scalar,
}  # fmt: skip

#: Named arguments that the shorter ways have too.
_KEPT_NAMES = {"upper", "alpha", "beta", "value"}


#: What may write over its first argument.
_WRITING: dict[Any, Callable[..., Any]] = {
    aten.mul.Tensor: torch.Tensor.mul_, aten.add.Tensor: torch.Tensor.add_,
    aten.sub.Tensor: torch.Tensor.sub_, aten.div.Tensor: torch.Tensor.div_,
    aten.neg.default: torch.Tensor.neg_, aten.abs.default: torch.Tensor.abs_,
}  # fmt: skip

#: Entries from which on memory is worth that.
_WORTH_REUSE = 4_096


def _fast(step: _Step) -> tuple[Any, tuple[Any, ...], Mapping[str, Any]]:
    """The quickest call that does the same: function, arguments, named arguments."""
    if step.target is aten._to_copy.default and step.kwargs.keys() == {"dtype"}:
        return torch.Tensor.to, (step.args[0], step.kwargs["dtype"]), {}
    if step.kwargs.keys() <= _KEPT_NAMES:
        return _SHORT.get(step.target, step.target), step.args, step.kwargs
    return step.target, step.args, step.kwargs
