"""Problem: one batch of instances of a node, with the derivatives that everything else is built on.

The user's objective takes one problem. Here it is evaluated for B at once (by vmap, or one by one
where it does not allow that), and differentiated. Because the problems are independent,
the gradient of the sum of the objectives holds each item's own gradient.

Its *operands* are all tensors that the solution depends on: the tensor inputs, which carry the batch
dimension in front, and the captured tensors (see `captured`), which the items share unless a
transform gave each its own.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .captured import Captured, InFloat64, substitute
from .errors import InputError
from .recording import Held, Recorder, Trace
from .renamed import OldMethod
from .solution import Solution
from .structure import Structure

if TYPE_CHECKING:
    from .active_set import ActiveSet
    from .kinks import Kinks
    from .node import DeclarativeNode
    from .selection import Selection


class Problem:
    """B instances of a node: tensor inputs carry one batch dimension in front.

    Attributes:
        node: the node.
        inputs: its inputs; tensors of shape (B, ...), anything else as it was given.
        batch_size: B.
        structure: the parts of y, where it has several; y is then one vector here.
        originals: captured tensors, as the node's functions see them.
        captured: what stands for them here; shared by the items, or with a batch dimension.
        captured_batched: which of the two, one flag each.
        active_set: the inequality constraints that are active at the solution, where it is known: they are
            equations then (`ddnkit.active_set`).
        kinks: of the node's functions, where one evaluation has shown some; those that are active
            are constraints (`ddnkit.kinks`).
        known: what was found of the solution before, which its solve goes on from; None elsewhere.
        selection: what makes it the problem of the solution of least norm, where the node's solutions are
            a set (`ddnkit.selection`); active_set is then that of this problem.
    """

    def __init__(self, node: DeclarativeNode, inputs: Sequence[Any], batch_size: int):
        self.node = node
        self.inputs = tuple(inputs)
        self.batch_size = batch_size
        self.structure: Structure | None = None
        self.originals: tuple[Captured, ...] = ()
        self.captured: tuple[Tensor, ...] = ()
        self.captured_batched: tuple[bool, ...] = ()
        self.kinks: Kinks | None = None
        self.active_set: ActiveSet | None = None
        self.selection: Selection | None = None
        self.known: Solution | None = None
        self._traces: list[Trace] | None = None
        self._wide = False
        # What one evaluation has shown, shared by all that is made from this problem.
        self._shown: dict[str, Any] = {}

    @classmethod
    def single(cls, node: DeclarativeNode, inputs: Sequence[Any]) -> Problem:
        """One instance, from inputs without a batch dimension."""
        return cls(node, [x.unsqueeze(0) if isinstance(x, Tensor) else x for x in inputs], 1)

    @property
    def manifold(self) -> Any:
        """The node's manifold, or None; of a y of several parts, that of the vector they are laid in."""
        manifold = self.node.manifold
        if manifold is None or self.structure is None:
            return manifold
        return manifold.of_parts(self.structure.shapes)

    def item(self, index: int) -> tuple[Any, ...]:
        """The inputs of one instance."""
        return tuple(x[index] if isinstance(x, Tensor) else x for x in self.inputs)

    # -- the same problem, otherwise ------------------------------------------------------------

    def with_inputs(self, inputs: Sequence[Any]) -> Problem:
        """The same batch with other inputs."""
        return self._replace(inputs=tuple(inputs))

    def with_structure(self, structure: Structure | None) -> Problem:
        """The same batch with a y of these parts."""
        return self._replace(structure=structure)

    def with_captured(self, originals: Sequence[Captured], values: Sequence[Tensor]) -> Problem:
        """The same batch with ``values``, shared by the items, in place of captured tensors."""
        return self._replace(
            originals=tuple(originals),
            captured=tuple(values),
            captured_batched=(False,) * len(values),
        )

    def in_float64(self) -> Problem:
        """The same batch in float64, with all tensors of float32 that its functions use."""
        operands = [x.double() if x.dtype == torch.float32 else x for x in self.operands]
        problem = self.with_operands(operands)
        problem._wide = True
        return problem

    def with_node(self, node: DeclarativeNode) -> Problem:
        """The same batch of another node of the class."""
        return self._replace(node=node)

    def with_kinks(self, kinks: Kinks | None) -> Problem:
        """The same batch, whose active kinks are known."""
        return self._replace(kinks=kinks)

    def with_active_set(self, active_set: ActiveSet | None) -> Problem:
        """The same batch, whose active inequality constraints are known."""
        return self._replace(active_set=active_set)

    def with_known(self, solution: Solution | None) -> Problem:
        """The same batch, of whose solution something is known: for a solve alone."""
        return self._replace(known=solution)

    def with_selection(self, selection: Selection | None) -> Problem:
        """The problem of the one of its solutions that is meant, see `selection`."""
        return self._replace(selection=selection)

    @property
    def stated(self) -> Problem:
        """The problem as the node states it, with what holds as an equation for all of its solutions; itself
        without a `selection`."""
        if self.selection is None:
            return self
        held, kinks = self.selection.held, self.selection.kinks
        return self._replace(selection=None, active_set=held, kinks=kinks)

    def without_scoped(self) -> Problem:
        """The same batch with the captured tensors of enclosing scopes left as the node sees them."""
        kept = [i for i, c in enumerate(self.originals) if c.path is not None]
        return self._replace(
            originals=tuple(self.originals[i] for i in kept),
            captured=tuple(self.captured[i] for i in kept),
            captured_batched=tuple(self.captured_batched[i] for i in kept),
        )

    @property
    def operands(self) -> list[Tensor]:
        """All tensors that the solution depends on: tensor inputs, captured ones, and `masks`."""
        inputs = [x for x in self.inputs if isinstance(x, Tensor)]
        return [*inputs, *self.captured, *self.masks]

    @property
    def masks(self) -> list[Tensor]:
        """Which constraints are active in which items, (B, k) each: operands without a derivative.

        As operands they go through transforms with the batch.
        """
        held = (self.active_set, self.kinks)
        own = [x.active for x in held if x is not None and x.count]
        return own if self.selection is None else [*self.selection.masks, *own]

    @property
    def input_count(self) -> int:
        """How many of the operands are inputs; the captured tensors follow."""
        return sum(isinstance(x, Tensor) for x in self.inputs)

    @property
    def operands_batched(self) -> list[bool]:
        """For each operand, whether it carries the batch dimension."""
        inputs, masks = [True] * self.input_count, [True] * len(self.masks)
        return [*inputs, *self.captured_batched, *masks]

    def with_operands(self, operands: Sequence[Tensor]) -> Problem:
        """The same batch with other tensors in place of its operands."""
        rest = iter(operands)
        inputs = tuple(next(rest) if isinstance(x, Tensor) else x for x in self.inputs)
        problem = self._replace(inputs=inputs, captured=tuple(next(rest) for _ in self.captured))
        if self.selection is not None:
            problem.selection = self.selection.with_masks(rest)
        for name in ("active_set", "kinks"):
            held = getattr(self, name)
            if held is not None and held.count:
                setattr(problem, name, held.with_mask(next(rest)))
        return problem

    def resize(
        self, operands: Sequence[Tensor], batch_size: int, batched: Sequence[bool]
    ) -> Problem:
        """Another batch of the same node, from operands of that size."""
        problem = self.with_operands(operands)
        problem.batch_size = batch_size
        first = self.input_count
        problem.captured_batched = tuple(batched[first : first + len(self.captured)])
        return problem

    def _replace(self, **attributes: Any) -> Problem:
        problem = copy.copy(self)
        for name, value in attributes.items():
            setattr(problem, name, value)
        return problem

    def at(self, index: int) -> Problem:
        """One item as a batch of its own."""
        flags = self.operands_batched
        operands = [
            x[index : index + 1] if own else x for x, own in zip(self.operands, flags, strict=True)
        ]
        single = self.with_operands(operands)
        single.batch_size = 1
        single.captured = tuple(self._captured_of(index))
        single.captured_batched = (False,) * len(self.captured)
        if self.kinks is not None:
            single.kinks = self.kinks.of_items(slice(index, index + 1))
        if self.active_set is not None:
            single.active_set = self.active_set.of_items(slice(index, index + 1))
        if self.selection is not None:
            single.selection = self.selection.of_items(slice(index, index + 1))
        return single

    def substitute(self, index: int | None = None) -> Any:
        """A context in which the node sees this problem's, or one item's, captured tensors."""
        values = self.captured if index is None else self._captured_of(index)
        return substitute(self.node, self.originals, values)

    @property
    def shares_captured(self) -> bool:
        """Whether the items have their captured tensors in common."""
        return not any(self.captured_batched)

    def _captured_of(self, index: int) -> list[Tensor]:
        pairs = zip(self.captured, self.captured_batched, strict=True)
        return [c[index] if own else c for c, own in pairs]

    @staticmethod
    def item_solution(solution: Solution) -> Solution:
        """The Solution of a batch of one, without its batch dimension."""
        return solution.of_items(0)

    def start(self) -> Tensor:
        """(B, *y): the node's initial point of each item. Settles the structure of y."""
        points = []
        for i in range(self.batch_size):
            with self.substitute(i):
                points.append(self.node.initial_point(*self.item(i)))
        self.structure = Structure.of(points[0], f"{type(self.node).__name__}.initial_point")
        structure = self.structure
        start = torch.stack([p if structure is None else structure.join(p) for p in points])
        if not start.is_floating_point():
            raise InputError(
                f"{type(self.node).__name__}.initial_point returned dtype {start.dtype}; y must be floating"
            )
        manifold = self.manifold
        if manifold is not None and start.ndim != manifold.event_dims + 1:
            raise InputError(
                f"{type(self.node).__name__}.initial_point returned shape {tuple(start.shape[1:])}; a "
                f"point of {manifold!r} has {manifold.event_dims} dimensions (ddnkit_manifolds.Copies is for "
                "several points as one y)"
            )
        return start

    # -- values ---------------------------------------------------------------------------------

    def objective(self, y: Tensor) -> Tensor:
        """f of each item, shape (B,)."""
        if self.selection is not None:
            return self.selection.objective(y)
        values = self._each(self.node.objective, y)
        if values.shape != (self.batch_size,):
            raise InputError(
                f"{type(self.node).__name__}.objective must return a scalar for one problem; "
                f"it returned shape {tuple(values.shape[1:])}"
            )
        return values

    def constraints(self, y: Tensor) -> Tensor | None:
        """h of each item, shape (B, p), without the manifold's; None where there are none.

        Active inequality constraints follow the node's own equations, and the arguments of active kinks
        come last.
        """
        own = self._own_constraints(y) if self.selection is None else self._selecting(y)
        parts = [] if own is None else [own]
        if self.active_set is not None and self.active_set.count:
            parts.append(self.active_set.values(self, y))
        if self.kinks is not None and self.kinks.count:
            parts.append(self.kinks.arguments(self, y))
        return torch.cat(parts, dim=-1) if len(parts) > 1 else (parts[0] if parts else None)

    def _selecting(self, y: Tensor) -> Tensor | None:
        """The equations whose solutions are those of the problem as it is stated."""
        assert self.selection is not None
        stated = self.stated
        h = stated.constraints(y)
        parts = [] if h is None else [h]
        if self.selection.directions:
            parts.append(self.selection.values(stated, y))
        return torch.cat(parts, dim=-1) if len(parts) > 1 else (parts[0] if parts else None)

    def _own_constraints(self, y: Tensor) -> Tensor | None:
        if "stated" not in self._shown:  # asking the node takes longer
            self._shown["stated"] = self.node.constrained
        if not self._shown["stated"]:
            self._shown["constraints"] = False
            return None
        values = flat(self._each(self._flat_constraints, y))
        self._shown["constraints"] = values.shape[-1] > 0
        return values if values.shape[-1] else None

    def has_constraints(self, y: Tensor) -> bool:
        """Whether there are constraints beside a manifold's for these inputs."""
        if self.kinks is not None and self.kinks.count:
            return True
        if self.active_set is not None and self.active_set.count:
            return True
        if self.selection is not None:
            return self.selection.directions > 0 or self.stated.has_constraints(y)
        if "constraints" not in self._shown:
            self._own_constraints(y)
        return bool(self._shown["constraints"])

    def _flat_constraints(self, *xs: Any, y: Any) -> Tensor:
        values = self.node.equality_constraints(*xs, y=y)
        if values is None:
            first = y if isinstance(y, Tensor) else next(iter(_parts(y)))
            return first.new_zeros(0)
        return _tensor(self.node.equality_constraints, values).reshape(-1)

    def inequalities(self, y: Tensor) -> Tensor | None:
        """g of each item, (B, q), nonpositive where feasible: the node's own, then lower − y and y − upper of
        each entry; −inf where there is no bound. None without inequality constraints."""
        if not self.node.has_inequalities:
            return None
        if self.selection is not None:
            return self.selection.inequalities(self.stated, y)
        values = flat(self._each(self._flat_inequalities, y))
        return values if values.shape[-1] else None

    def _flat_inequalities(self, *xs: Any, y: Any) -> Tensor:
        own = self.node.inequality_constraints(*xs, y=y)
        parts = [_parts_of(y)[0].new_zeros(0)]
        if own is not None:
            parts = [_tensor(self.node.inequality_constraints, own).reshape(-1)]
        entries = torch.cat([part.reshape(-1) for part in _parts_of(y)])
        lower, upper = self._flat_bounds(*xs, y=y)
        self._shown["inequalities"] = [len(parts[0]), len(lower), len(upper)]
        if len(lower):
            parts += [lower - entries, entries - upper]
        return torch.cat(parts)

    def bounds(self, y: Tensor) -> tuple[Tensor, Tensor] | None:
        """The least and the largest y of each item, (B, m) each, infinite where there is none; None without
        bounds."""
        if self.node.bounds is None:
            return None
        if self.selection is not None:
            return self.selection.bounds(self.stated, y)
        found = self._each(self._flat_bounds, y)
        return (found[:, 0], found[:, 1]) if found.shape[-1] else None

    def _flat_bounds(self, *xs: Any, y: Any) -> Tensor:
        """Both of one problem, (2, m); (2, 0) without bounds."""
        bounds = self.node.bounds
        pair = bounds(*xs) if callable(bounds) else bounds
        self._shown["sides"] = [
            pair is not None and end is not None for end in pair or (None, None)
        ]
        if pair is None:
            return _parts_of(y)[0].new_zeros(2, 0)
        rows = [
            torch.cat([self._fill_bound(bound, part, free) for bound, part in _paired(side, y)])
            for side, free in zip(pair, (-torch.inf, torch.inf), strict=True)
        ]
        return torch.stack(rows)

    def _fill_bound(self, bound: Any, y: Tensor, free: float) -> Tensor:
        """A bound of one part of y, flat; ``free`` where there is none."""
        try:
            end = torch.as_tensor(free if bound is None else bound, dtype=y.dtype, device=y.device)
            return end.expand(y.shape).reshape(-1)
        except (RuntimeError, TypeError, ValueError):
            shape = tuple(bound.shape) if isinstance(bound, Tensor) else None
            given = repr(bound) if shape is None else f"of shape {shape}"
            raise InputError(
                f"{type(self.node).__name__}.bounds: a bound is {given}; expected None, a number or a tensor "
                f"that broadcasts to y of shape {tuple(y.shape)}"
            ) from None

    def inequality_sizes(self, y: Tensor) -> list[int]:
        """How many of `inequalities` are the node's own, lower bounds and upper bounds."""
        if self.inequalities(y) is None:
            return [0, 0, 0]
        return list(self._shown["inequalities"])

    def bound_sides(self, y: Tensor) -> list[bool]:
        """Whether the node states lower bounds, and upper ones."""
        return list(self._shown["sides"]) if self.inequalities(y) is not None else [False, False]

    def all_constraints(self, y: Tensor) -> Tensor | None:
        """h with the manifold's independent equations appended, shape (B, p), or None."""
        own = self.constraints(y)
        if self.manifold is None:
            return own
        manifold = self.manifold.equations(y)
        return manifold if own is None else torch.cat([own, manifold], dim=-1)

    def fixed_point(self, y: Tensor) -> Tensor:
        """T(x, y) of each item, for nodes with a fixed-point map, shape (B, *y)."""
        return self._each(self._join_parts(self.node.fixed_point), y)

    def precondition(self, y: Tensor, v: Tensor) -> Tensor:
        """The node's approximation of G⁻¹ v of each item, shape (B, *y)."""
        return self._each(self._join_parts(self.node.precondition), y, v)

    def _join_parts(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def join_parts(*xs: Any, **named: Any) -> Any:
            value = function(*xs, **named)
            return value if self.structure is None else self.structure.join(value)

        return join_parts

    def _each(self, function: Callable[..., Any], y: Tensor, v: Tensor | None = None) -> Tensor:
        counted = not y.is_inference()
        before = y._version if counted else 0
        values = self._of_each(function, y, v)
        if counted and y._version != before:
            self._refuse_work_in_place(
                "objective"
                if function == self.node.objective
                else getattr(function, "__name__", "objective")
            )
        return values

    def _refuse_work_in_place(self, function: str) -> None:
        # Torch refuses it where it records, and nowhere else: y is another one from there on.
        names = {
            "_flat_constraints": "equality_constraints",
            "_flat_inequalities": "inequality_constraints",
            "kinks": "objective",
        }
        name = names.get(function, function)
        raise InputError(
            f"{type(self.node).__name__}.{name} changes y in place, which belongs to the layer: use a "
            "copy (y.clone()) or the version without the underscore (y / s for y.div_(s))"
        )

    def _of_each(self, function: Callable[..., Any], y: Tensor, v: Tensor | None = None) -> Tensor:
        count = self.input_count
        tensors = self.operands[: count + len(self.captured)]
        batched = self.operands_batched[: len(tensors)]
        plain = self._traces is None and not self.originals and not self._wide

        def one(y_one: Tensor, v_one: Tensor | None, *ones: Tensor) -> Any:
            rest = iter(ones[:count])
            xs = [next(rest) if isinstance(x, Tensor) else x for x in self.inputs]
            named = {"y": y_one} if v_one is None else {"y": y_one, "v": v_one}
            if self.structure is not None:
                named = {name: self.structure.split(part) for name, part in named.items()}
            if plain:
                return _tensor(function, function(*xs, **named))
            # Made before anything is watched: it looks at the node's tensors.
            swapped = substitute(self.node, self.originals, ones[count:])
            # What is entered last sees a call first: captured tensors are known by their identity.
            wide = InFloat64() if self._wide else contextlib.nullcontext()
            with self._record_call(function, y_one, ones) as recorder, wide, swapped:
                value = _tensor(function, function(*xs, **named))
                if recorder is not None:
                    recorder.returns(value)
                return value

        def item(i: int) -> Any:
            own = (at(x, i) if each else x for x, each in zip(tensors, batched, strict=True))
            return one(at(y, i), None if v is None else at(v, i), *own)

        def at(x: Tensor, i: int) -> Tensor:
            # The derivative of x[0] fills a new tensor, that of squeeze is a view.
            return x.squeeze(0) if self.batch_size == 1 else x[i]

        if self.batch_size == 1:
            with _plainly(function):
                return item(0).unsqueeze(0)
        dims = tuple(0 if own else None for own in batched)
        try:
            values: Tensor = torch.vmap(one, in_dims=(0, None if v is None else 0, *dims))(
                y, v, *tensors
            )
            return values
        except RuntimeError:
            # Code that branches on values cannot be vmapped; one by one gives the same.
            with _plainly(function):
                return torch.stack([item(i) for i in range(self.batch_size)])

    def each(self, function: Callable[..., Tensor], y: Tensor) -> Tensor:
        """``function(*inputs, y=y)`` of one problem for each item, shape (B, …)."""
        return self._each(function, y)

    @contextlib.contextmanager
    def _record_call(
        self, function: Callable[..., Any], y: Tensor, operands: Sequence[Tensor]
    ) -> Iterator[Recorder | None]:
        if self._traces is None:
            yield None
            return
        known = [("y", y), *((operand_name(k), x) for k, x in enumerate(operands))]
        names = {
            self._flat_constraints: "equality_constraints",
            self._flat_inequalities: "inequality_constraints",
        }
        name = names.get(function, "objective")
        with Recorder(name, known) as recorder:
            yield recorder
        self._traces.append(recorder.trace)

    # -- derivatives ----------------------------------------------------------------------------

    def gradient(self, y: Tensor) -> Tensor:
        """∇_y f of each item, shape (B, *y)."""
        return self.value_and_gradient(y)[1]

    def value_and_gradient(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """f, shape (B,), and ∇_y f, shape (B, *y)."""
        evaluation = self.evaluate(y)
        return evaluation.values.detach(), evaluation.gradient()

    def evaluate(self, y: Tensor) -> Evaluation:
        """f at y, with its graph."""
        with torch.enable_grad():
            point = y.detach().requires_grad_()
            return Evaluation(point, self.objective(point))

    def record(self, y: Tensor) -> Recorded:
        """Objective and constraints at y, each with its graph and what its evaluation shows."""
        with torch.enable_grad():
            return self._record(y.detach().requires_grad_())

    def trace(self, y: Tensor) -> list[Trace]:
        """What an evaluation at y shows, without a graph, inside of transforms too."""
        with torch.no_grad():
            return self._record(y).traces

    def _record(self, point: Tensor) -> Recorded:
        problem = self.stated._replace(_traces=[])
        # By their values: not every way of writing on a tensor counts as one.
        before = Held(point)
        values = problem.objective(point)
        if before.differs(Held(point)):
            self._refuse_work_in_place("objective")
        constraints = problem._own_constraints(point)
        if before.differs(Held(point)):
            self._refuse_work_in_place("equality_constraints")
        problem.inequalities(point)
        if before.differs(Held(point)):
            self._refuse_work_in_place("inequality_constraints")
        assert problem._traces is not None
        return Recorded(Evaluation(point, values), constraints, problem._traces)

    def hessian_vector(self, y: Tensor, direction: Tensor) -> Tensor:
        """∇²_yy f applied to a direction, per item, shape (B, *y)."""
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            gradient = derivative(self.objective(y).sum(), y, create_graph=True)
            return derivative((gradient * direction).sum(), y)

    evaluated, recorded, traced = OldMethod("evaluate"), OldMethod("record"), OldMethod("trace")
    resized, substituted = OldMethod("resize"), OldMethod("substitute")
    widened = OldMethod("in_float64")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One evaluation of f, `values` (B,), at `point` (B, *y), whose graph serves once."""

    point: Tensor
    values: Tensor

    def gradient(self) -> Tensor:
        """∇_y f, shape (B, *y). The graph is gone then."""
        with torch.enable_grad():
            return derivative(self.values.sum(), self.point)

    def depends_on_others(self) -> bool:
        """Whether the values have a graph that ends anywhere but at the point."""
        seen, ahead = set(), [self.values.grad_fn]
        while ahead:
            node = ahead.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            variable = getattr(node, "variable", None)
            if variable is not None and variable is not self.point:
                return True
            ahead.extend(function for function, _ in node.next_functions)
        return False


class OutOfTorchError(InputError, RuntimeError):
    """A function took values where a transform of torch has none: whoever has another way catches it."""


@contextlib.contextmanager
def _plainly(function: Callable[..., Any]) -> Iterator[None]:
    """Have what torch says of a gradient taken inside of ``function``, or of values that it takes out of
    torch, name it, and the way out.
    """
    try:
        yield
    except RuntimeError as error:
        if "data pointer" in str(error) or "storage" in str(error):
            name = getattr(function, "__qualname__", function)
            raise OutOfTorchError(
                f"{name} takes values out of torch (numpy, or torch.tensor of a tensor). The derivatives "
                "needed here (at a kink, for certify='full', or in a transform) cannot follow that: "
                "write it with torch operations"
            ) from error
        if "does not require grad and does not have a grad_fn" not in str(error):
            raise
        name = getattr(function, "__qualname__", function)
        raise InputError(
            f"{name} takes a derivative inside (torch.autograd.grad or backward), which needs a graph that "
            "an evaluation without gradients does not have: write it with torch.func.grad"
        ) from error


@dataclasses.dataclass(frozen=True)
class Recorded:
    """One evaluation of a batch: f, h (B, p) or None, at the same point, and what both have shown.

    There is one trace a function where vmap takes the whole batch at once, else one an item.
    """

    evaluation: Evaluation
    constraints: Tensor | None
    traces: list[Trace]


def operand_name(index: int) -> str:
    """What traces call an operand."""
    return f"operand {index}"


def _paired(bound: Any, y: Any) -> list[tuple[Any, Tensor]]:
    """A bound with each part of y."""
    if isinstance(y, Tensor):
        return [(bound, y)]
    keys = list(y) if isinstance(y, dict) else range(len(y))
    several = isinstance(bound, (dict, tuple, list))
    return [(bound[k] if several else bound, y[k]) for k in keys]


def _parts_of(y: Any) -> list[Tensor]:
    return [y] if isinstance(y, Tensor) else list(_parts(y))


def _parts(y: Any) -> Any:
    return y.values() if isinstance(y, dict) else y


def _tensor(function: Callable[..., Any], value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        name = getattr(function, "__qualname__", function)
        raise InputError(f"{name} must return a tensor; it returned {type(value).__name__}")
    return value


def derivative(scalar: Tensor, y: Tensor, create_graph: bool = False) -> Tensor:
    """∂ scalar / ∂y, zero where the scalar does not depend on y."""
    if not scalar.requires_grad:
        return torch.zeros_like(y)
    (gradient,) = torch.autograd.grad(
        scalar, y, create_graph=create_graph, retain_graph=create_graph, allow_unused=True
    )
    return torch.zeros_like(y) if gradient is None else gradient


def pull_back(values: Tensor, variables: Sequence[Tensor], v: Tensor) -> list[Tensor]:
    """vᵀ ∂values/∂variable for each, zero where there is none; the graph is kept."""
    if not values.requires_grad or not variables:
        return [torch.zeros_like(x) for x in variables]
    found = torch.autograd.grad(values, variables, v, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(variables, found, strict=True)]


def flat(x: Tensor) -> Tensor:
    """(B, ...) as (B, m); m = 1 for a batch of scalars, and B may be 0."""
    return x.reshape(len(x), x.shape[1:].numel())
