"""A graph of operations made simple (the rules: `ddnkit.programs.program`), and written as a function."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .operations import (
    AND,
    BROADCASTING,
    CONTIGUOUS,
    ELEMENTWISE,
    NOTHING,
    OF_A_NUMBER,
    OF_MEMORY,
    OVER_DIMENSIONS,
    PER_ITEM,
    PRODUCTS,
    RESHAPES,
    SHAPE_ALONE,
    VIEWS,
    WORTH_REUSE,
    WRITING,
    NotAProgramError,
    Ref,
    Step,
    aten,
    collapse,
    held_tensor,
    is_one,
    is_one_number,
    keeps_items,
    keeps_type,
    out_of_place,
    plain_value,
    quickest_call,
    references,
    refuse_impure,
    shares_entries,
    step_key,
)
from .written_out import MOST_ROWS, WRITTEN_OUT

#: Operations beyond which a program is none: a loop over items, say, that was unrolled.
MOST_STEPS = 3_000


class Code(NamedTuple):
    """The text of a program, and what its names stand for."""

    lines: list[str]
    source: str
    scope: dict[str, Any]
    constant_outputs: list[Tensor | None]
    inputs_of_outputs: list[set[int]]

    def function(self) -> Callable[..., Sequence[Tensor]]:
        """What the text defines."""
        scope = dict(self.scope)
        exec(compile(self.source, "<a ddnkit program>", "exec"), scope)
        found: Callable[..., Sequence[Tensor]] = scope["run"]
        return found


class SimplifiedSteps:
    """The steps of a graph, each simplified as it comes: what it is made of is simple by then.

    Each is run on the examples as well, which tells shapes, and which results are constant.
    """

    def __init__(self, module: torch.fx.GraphModule, inputs: Sequence[Tensor]):
        self.values: list[Any] = list(inputs)
        self.steps: list[Step | None] = [None] * len(inputs)
        self.inputs = len(inputs)
        self._same: dict[Any, Ref] = {}
        # Of results that are the same for each item (along the first dimension): that of one (1, ...).
        self._one: dict[int, Ref] = {}
        found: dict[torch.fx.Node, Any] = {}
        given = iter(range(len(inputs)))
        self.outputs: list[Any] = []
        if len(module.graph.nodes) > MOST_STEPS:
            raise NotAProgramError(f"it takes {len(module.graph.nodes)} operations")
        with torch.no_grad():
            written = out_of_place(module, inputs)
            for node in module.graph.nodes:
                if node.op == "placeholder":
                    found[node] = Ref(next(given))
                elif node.op == "get_attr":
                    found[node] = held_tensor(module, node.target)
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
        return self.values[x.index] if isinstance(x, Ref) else x

    def _enter(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of one operation: a reference, or a constant."""
        if target is operator.getitem and not isinstance(args[0], Ref):
            return args[0][args[1]]
        refs = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Ref)]
        if isinstance(target, torch._ops.OpOverload):
            if not (target._schema.is_mutable and not refs and self._unused(args[0])):
                given = [self.value(x) for x in pytree.tree_leaves(args)]
                refuse_impure(target, given)
        elif target is not operator.getitem:
            raise NotAProgramError(f"it calls {target}")
        args = self._laid_out(target, plain_value(args))
        value = target(*self._values_of(args), **self._values_of(kwargs))
        if not refs or target in SHAPE_ALONE:
            return value
        if isinstance(value, Tensor):
            simple = self._simple(target, args, kwargs, value)
            if simple is not None:
                return simple
        if target is aten.expand.default and isinstance(args[0], Ref):
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

    def _step(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> Ref:
        key = (target, step_key(args), step_key(tuple(sorted(kwargs.items()))))
        if key not in self._same:
            self.steps.append(Step(target, args, kwargs))
            self.values.append(value)
            self._same[key] = Ref(len(self.steps) - 1)
        return self._same[key]

    # -- rules ----------------------------------------------------------------------------------

    def _simple(
        self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], value: Tensor
    ) -> Any:
        """The result by less than this operation, or None."""
        first = args[0] if args else None
        if target in NOTHING:
            return first
        if target is aten.pow.Tensor_Scalar and args[1] in (0, 1):
            return torch.ones_like(value) if args[1] == 0 else self._if_alike(first, value)
        if target in PRODUCTS and not kwargs:
            for x, one in ((first, args[1]), (args[1], first)):
                if isinstance(x, Ref) and is_one(one):
                    return self._if_alike(x, value)
            joined = self._joined_factors(first, args[1])
            if joined is not None:
                return self._step(aten.mul.Tensor, joined, {}, value)
        if target is aten.div.Tensor and not kwargs and is_one(args[1]):
            return self._if_alike(first, value)
        if target in AND:
            for x, true in ((first, args[1]), (args[1], first)):
                if isinstance(true, Tensor) and true.dtype == torch.bool and bool(true.all()):
                    return self._if_alike(x, value)
        if target in OVER_DIMENSIONS and not kwargs and isinstance(first, Ref):
            # Of one entry each.
            there = self.values[first.index]
            same = there.numel() == value.numel() > 0 and there.dtype == value.dtype
            if same and there.is_contiguous() and value.is_contiguous():
                return self._view(first, value, aten.view.default, args)
        if isinstance(first, Ref) and target in VIEWS:
            return self._view(first, value, target, args)
        return None

    def _laid_out(self, target: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments, one that repeats an item as often as it is there where memory counts."""
        if not args or not isinstance(args[0], Ref) or args[0].index not in self._one:
            return args
        if target in OF_MEMORY:
            raise NotAProgramError(f"it depends on memory layout ({target})")
        first = self.values[args[0].index]
        if target not in RESHAPES or (len(args[1]) > 1 and args[1][0] == first.shape[0]):
            return args
        whole = first.contiguous()
        return self._step(aten.clone.default, args[:1], CONTIGUOUS, whole), *args[1:]

    def _once(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> Any:
        """The result by the same operation on one item, where it is the same for each.

        A matrix that all items share, in a Hessian say, is so factorised once.
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
        if not isinstance(one, Ref):
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
        if target not in PER_ITEM or not keeps_items(target, args, self.value(first), value):
            return None
        found: list[Any] = []
        for x in args:
            there = self.value(x)
            if not isinstance(there, Tensor):
                found.append(x)
                continue
            one = self._of_one(x, there, value, broadcasts=target in ELEMENTWISE)
            if one is None:
                return None
            found.append(one)
        if target in RESHAPES:
            found[1] = [1, *args[1][1:]]
        return tuple(found)

    def _of_one(self, x: Any, there: Tensor, value: Tensor, *, broadcasts: bool) -> Any:
        if broadcasts and (there.ndim < value.ndim or there.shape[0] == 1):
            return x
        if isinstance(x, Ref):
            return self._one.get(x.index)
        same = there.ndim > 0 and there.shape[0] == value.shape[0] and (there == there[:1]).all()
        return there[:1].clone() if bool(same) else None

    def _expand(self, x: Ref, value: Tensor) -> Any:
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
        step = self.steps[x.index] if isinstance(x, Ref) else None
        if step is None or not isinstance(factor, (int, float)) or step.target not in PRODUCTS:
            return None
        mask, v = step.args
        if not isinstance(mask, Tensor) or not isinstance(v, Ref):
            return None
        same = mask.dtype == self.values[v.index].dtype
        return (mask * factor, v) if same and bool(((mask == 0) | (mask == 1)).all()) else None

    def _if_alike(self, x: Any, value: Tensor) -> Any:
        there = self.value(x)
        alike = there.shape == value.shape and there.dtype == value.dtype
        return x if alike else None

    def _view(self, x: Ref, value: Tensor, target: Any, args: tuple[Any, ...]) -> Any:
        """One view of what the whole chain of views shows."""
        root = x
        while (step := self.steps[root.index]) is not None and step.target in VIEWS:
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
        if target not in BROADCASTING:
            return args
        kept = list(args)
        for k, x in enumerate(args):
            if isinstance(x, Tensor):
                small = collapse(x)
            elif isinstance(x, Ref) and (step := self.steps[x.index]) is not None:
                if step.target is not aten.expand.default:
                    continue
                small = step.args[0]
            else:
                continue
            others = [self.value(z).shape for z in kept if isinstance(self.value(z), Tensor)]
            others[sum(isinstance(self.value(z), Tensor) for z in args[:k])] = self.value(
                small
            ).shape
            if torch.broadcast_shapes(*others) == value.shape and keeps_type(
                [self.value(z) for z in kept], self.value(small), k
            ):
                kept[k] = small
        return tuple(kept)

    # -- text -----------------------------------------------------------------------------------

    def code(self, shown: int | None = None, for_compiler: bool = False) -> Code:
        """The Python text of the steps that the outputs need, and what its names stand for.

        Args:
            shown: see `ddnkit.programs.program.trace`.
            for_compiler: as a compiler likes them: it has its own ways with numbers and memory, and makes
                one loop of what is written out.
        """
        # In other hands a result has its shape; the rest may be of one item, for all.
        hidden = [] if shown is None else self.outputs[shown:]
        outputs = self.outputs[: len(self.outputs) - len(hidden)]
        outputs += [self._one.get(x.index, x) if isinstance(x, Ref) else x for x in hidden]
        needed = self._needed(outputs)
        scope: dict[str, Any] = {"full": torch.full, "torch": torch} if for_compiler else {}
        names: dict[int, str] = {}

        def text(x: Any) -> str:
            if isinstance(x, Ref):
                return f"v{x.index}"
            if isinstance(x, (list, tuple)) and not isinstance(x, torch.Size):
                inner = ", ".join(map(text, x))
                return f"[{inner}]"
            if isinstance(x, (bool, int, str)) or x is None:
                return repr(x)
            if isinstance(x, float) and x == x and abs(x) != float("inf"):
                return repr(x)
            if for_compiler and isinstance(x, Tensor) and is_one_number(x):
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
                last.update((i, k) for i in references(step))
        kept = {x.index for x in outputs if isinstance(x, Ref)}
        lines = []
        for k in sorted(needed):
            step = self.steps[k]
            if step is None:
                continue
            over = [i for i, at in last.items() if at == k and i not in kept and i >= self.inputs]
            call, args, kwargs = quickest_call(step)
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
            own = isinstance(x, Ref) and memory not in taken and not shares_entries(self.value(x))
            results.append(text(x) if own else f"{text(x)}.clone()")
            taken.add(memory)
        results += [self._output(x, text) for x in outputs[len(results) :]]
        given = ", ".join(f"v{k}" for k in range(self.inputs))
        body = "".join(f"    {line}\n" for line in lines)
        source = f"def run({given}):\n{body}    return ({''.join(r + ', ' for r in results)})\n"
        constant = [None if isinstance(x, Ref) else x for x in outputs]
        return Code(lines, source, scope, constant, [self._inputs_of(x) for x in outputs])

    def _inputs_of(self, x: Any) -> set[int]:
        """Those that a result is made of."""
        return {k for k in self._needed([x]) if k < self.inputs}

    def _needed(self, results: Sequence[Any]) -> set[int]:
        """The steps and inputs that results are made of."""
        needed: set[int] = set()
        ahead = [x.index for x in results if isinstance(x, Ref)]
        while ahead:
            k = ahead.pop()
            if k in needed:
                continue
            needed.add(k)
            step = self.steps[k]
            if step is not None:
                ahead += references(step)
        return needed

    def _numbers_as_tensors(self, target: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """A number as the tensor that torch would make of it at each call."""
        if target not in OF_A_NUMBER or len(args) != 2 or not isinstance(args[0], Ref):
            return args
        first, second = self.values[args[0].index], args[1]
        if not isinstance(second, (int, float)) or isinstance(second, bool):
            return args
        if not first.is_floating_point():
            return args
        return args[0], torch.tensor(second, dtype=first.dtype, device=first.device)

    def _written_out(self, step: Step) -> Callable[..., Any] | None:
        """What is done with small matrices by their entries, each of all items: see `written_out`."""
        found = WRITTEN_OUT.get(step.target)
        if found is None:
            return None
        shapes = [self.value(x).shape for x in step.args if isinstance(x, (Ref, Tensor))]
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
        writing = WRITING.get(step.target)
        if writing is None or step.kwargs or not isinstance(first, Ref) or first.index not in over:
            return None
        if sum(isinstance(x, Ref) and x.index == first.index for x in step.args) > 1:
            return None
        mine, value = self.values[first.index], self.values[k]
        if mine.shape != value.shape or mine.dtype != value.dtype or mine.numel() < WORTH_REUSE:
            return None
        whole = mine.numel() * mine.element_size() == mine.untyped_storage().nbytes()
        if (
            not whole or mine.stride() != value.stride()
        ):  # a part, or one number that stands for many
            return None
        memory = mine.untyped_storage().data_ptr()
        for i, other in enumerate(self.values):
            used = i in kept or i < self.inputs or last.get(i, -1) > k or i in references(step)
            if i == first.index or not used or not isinstance(other, Tensor):
                continue
            if other.untyped_storage().data_ptr() == memory:
                return None
        return writing

    def _output(self, x: Any, text: Callable[[Any], str]) -> str:
        """An output in memory of its own where it would be an input's, each entry at its own place."""
        if shares_entries(self.value(x)):
            return f"{text(x)}.contiguous()" if isinstance(x, Ref) else text(x.contiguous())
        if isinstance(x, Ref):
            mine = self.values[x.index].untyped_storage().data_ptr()
            if any(mine == self.values[k].untyped_storage().data_ptr() for k in range(self.inputs)):
                return f"{text(x)}.clone()"
        return text(x)
