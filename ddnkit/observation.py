"""Observation: what a node's functions showed when they were solved, held against the way back.

Taken once a call, from one evaluation at the solution (`ddnkit.recording`). It refuses functions that are
no functions (random numbers, state that changes by itself), measures whether torch sees all that the solution
depends on where an operation gives reason to doubt it, finds the kinks at the solution, and on the
way back tells whether what is differentiated is what was solved.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .active_set import ActiveSet, active_set
from .certificate import TOLERANCE
from .errors import InputError
from .kinks import Kinks, kinks_of
from .lagrangian import constraint_set, lagrangian_gradient
from .node_state import NodeState
from .perturbation import perturb
from .problem import Problem, Recorded, flat, operand_name
from .recording import Held, Trace, difference
from .selection import Selection, problem_of_selection


@dataclass(frozen=True)
class Observation:
    """What one call has shown.

    Attributes:
        traces: of the evaluation at the solution.
        kinks: at the solution, None if the functions have none.
        hidden: how far torch's derivatives are from differences (B,), None where there was no reason to
            look.
        hidden_by: the reasons, a text each.
        active_set: of the inequality constraints, None if there are none.
        selection: where one of several solutions is selected; the kinks are then its own.
    """

    traces: list[Trace]
    operands: list[Held]
    state: NodeState
    kinks: Kinks | None
    hidden: Tensor | None
    hidden_by: tuple[str, ...]
    active_set: ActiveSet | None = None
    selection: Selection | None = None

    def completed(self, problem: Problem) -> Problem:
        """The problem with what was seen at its solution."""
        problem = problem.with_selection(self.selection).with_active_set(self.active_set)
        return problem.with_kinks(self.kinks)

    def refuse_changed(self, problem: Problem) -> None:
        """Raise if an operand is not what it was when the layer was called."""
        for k, (held, x) in enumerate(zip(self.operands, problem.operands, strict=False)):
            # A vmap on the way back repeats them.
            if held.shape == x.shape and held.differs(Held(x)):
                raise InputError(
                    f"{type(problem.node).__name__}: {operands_called(problem)[k]} was changed in place "
                    "after the layer was called, so its gradient cannot be computed any more: change a copy, "
                    "or change it after backward()"
                )

    def as_solved(self, problem: Problem, y: Tensor, whole: bool = False) -> Problem:
        """The problem for the way back: with the values that the node held when it was solved.

        Args:
            whole: also with those that objective and constraints do not use.

        Raises:
            InputError: they have changed, and what they were is not known any more.
        """
        name = type(problem.node).__name__
        other = self.state.changed()
        changed = "" if whole and other else self._difference(problem, y)
        if changed is None:
            return problem
        if other:
            before = problem.with_node(self.state.node())
            if self._difference(before, y) is None:
                return before
            changed = changed or self._difference(problem, y)
        if changed is None:
            return problem
        raise InputError(
            f"{name}: its functions have changed since the layer was called: {changed}. The gradient "
            "would be that of another problem. Call backward() before you change what they use, or pass "
            "it to the layer as an input"
        )

    def again(self, problem: Problem, y: Tensor) -> Observation:
        """The same of a problem in which captured tensors have become operands."""
        return replace(self, traces=problem.trace(y), operands=[Held(x) for x in problem.operands])

    def _difference(self, problem: Problem, y: Tensor) -> str | None:
        with torch.no_grad():
            return difference(self.traces, problem.trace(y))


def observe(
    problem: Problem,
    y: Tensor,
    recorded: Recorded,
    tolerance: float,
    *,
    operands: list[Held],
    first: bool,
    wanted: Sequence[bool],
    moving: Sequence[bool] = (),
) -> Observation:
    """The observation of one evaluation at y.

    Args:
        operands: as they were before the solve.
        first: evaluate twice, to see whether the functions change by themselves.
        wanted: for each operand, whether the functions' derivatives may be asked for, to be held against
            differences.
        moving: likewise whether y's derivative may be asked for; of those not named it may.

    Raises:
        InputError: the functions are no functions of operands and y.
    """
    traces = recorded.traces
    name = type(problem.node).__name__
    random = [step for trace in traces for step in trace.random]
    if first or random:
        again = problem.record(y)
        changed = difference(traces, again.traces) or _other_value(recorded, again)
        if changed is not None and random:
            step = random[0]
            where = "" if step.place is None else f" ({step.place})"
            raise InputError(
                f"{name} draws random numbers (`{step.name}`{where}): it states a different problem at "
                "each evaluation and has no gradient. Draw them outside and pass them to the layer as input"
            )
        if changed is not None:
            raise InputError(
                f"{name} states a different problem at each evaluation: {changed}. Its functions must "
                "depend only on their arguments and on the node's attributes"
            )
    selection = None
    if problem.node.selection is None:
        active = active_set(problem, y, tolerance, moving or None)
        problem = problem.with_active_set(active)
        kinks = kinks_of(problem, y, recorded, tolerance)
    else:
        # Whatever passes a certificate, which solutions are a set is told by the digits of y.
        digits = tolerance if math.isfinite(tolerance) else TOLERANCE[y.dtype]
        selected = problem_of_selection(problem, y, digits, moving)
        active, selection = selected.active_set, selected.selection
        problem = selected.stated
        kinks = problem.kinks
    wanted = [*wanted, *[False] * (len(problem.operands) - len(wanted))]
    hidden, by = _hidden_error(problem, y, traces, wanted)
    if hidden is not None and kinks is not None and kinks.count:
        hidden = torch.maximum(hidden, _argument_error(problem, kinks, y, wanted))
    for trace in traces:
        trace.kinks.clear()  # they would hold the evaluation's graph for as long as y has its own
    state = NodeState(problem.node)
    if selection is not None:
        return Observation(traces, operands, state, None, hidden, by, active, selection)
    return Observation(traces, operands, state, kinks, hidden, by, active)


def refuse_work_in_place(problem: Problem, operands: Sequence[Held], function: str) -> None:
    """Raise if an operand is not what it was: a node's function has written on what it was given."""
    for k, (held, x) in enumerate(zip(operands, problem.operands, strict=True)):
        if held.differs(Held(x)):
            name = type(problem.node).__name__
            raise InputError(
                f"{name}.{function} changes {operands_called(problem)[k]} in place, which belongs to the "
                "caller: use a copy (x.clone()) or the version without the underscore (x / s for x.div_(s))"
            )


def _other_value(before: Recorded, after: Recorded) -> str | None:
    a, b = before.evaluation.values.detach(), after.evaluation.values.detach()
    if a.device.type != "cpu" or torch.equal(a, b):
        return None
    # Sums of floating-point numbers may come out in another order; half of the digits do not.
    close = torch.isclose(a, b, rtol=torch.finfo(a.dtype).eps ** 0.5, equal_nan=True)
    at = int((~close).int().argmax())
    return None if bool(close.all()) else f"its value was {float(a[at])} and is {float(b[at])}"


def _hidden_error(
    problem: Problem, y: Tensor, traces: Sequence[Trace], wanted: Sequence[bool]
) -> tuple[Tensor | None, tuple[str, ...]]:
    """How far the derivative of ∇_y L along a change of operands and y is from a difference (B,).

    Looked at where an operation cuts what autograd sees. A cut does no harm where nothing that is
    asked for goes through it, as in the sign of a detached tensor.
    """
    if not any(wanted):
        return None, ()
    names = {operand_name(k) for k, want in enumerate(wanted) if want} | {"y"}
    cuts = [cut for trace in traces for cut in trace.hidden if cut.of & names]
    if not cuts:
        return None, ()
    called = dict(
        zip(map(operand_name, range(len(wanted))), operands_called(problem), strict=False)
    )
    texts = []
    for cut in cuts:
        what = " and ".join(called.get(name, name) for name in sorted(cut.of & names))
        where = "" if cut.place is None else f" ({cut.place})"
        texts.append(f"{what} hidden from torch by {cut.how}{where}")
    return _derivative_error(problem, y, wanted), tuple(dict.fromkeys(texts))


def _derivative_error(problem: Problem, y: Tensor, wanted: Sequence[bool]) -> Tensor:
    """The least of several points: across a kink, a difference is no derivative.

    What a cut hides, it hides beside the solution as well, though it may be to one side of a kink alone; a
    kink is left behind.
    """
    error = _error_at(problem, y, wanted, at_solution=True)
    for probe in range(3):
        if bool((error <= torch.finfo(y.dtype).eps ** 0.5).all()):
            break
        sides = []
        for away in (_AWAY, -_AWAY):
            moved = [
                x + away * _direction(x, 100 * (probe + 1) + k) if want else x
                for k, (x, want) in enumerate(zip(problem.operands, wanted, strict=True))
            ]
            point = y + away * _direction(y, 100 * (probe + 1) + len(moved))
            sides.append(_error_beside(problem.with_operands(moved), point, wanted))
        error = torch.fmin(error, torch.fmax(*sides))  # NaN: beyond the functions' domain
    return error


#: A relative change of an operand changes a factor by about as much; this is far more.
_OF_A_FACTOR = 16
#: How far from the solution, relative: many steps of a difference.
_AWAY = 0.1


def _error_beside(problem: Problem, y: Tensor, wanted: Sequence[bool]) -> Tensor:
    if y.dtype == torch.float32:
        # Where the functions allow it in double, whose steps are a thousand times smaller.
        try:
            return _error_at(problem.in_float64(), y.double(), wanted).to(y.dtype)
        except (RuntimeError, InputError):
            pass
    return _error_at(problem, y, wanted)


def _error_at(
    problem: Problem, y: Tensor, wanted: Sequence[bool], at_solution: bool = False
) -> Tensor:
    constraints = constraint_set(problem, y, in_numbers=True)
    nu = constraints.multipliers(constraints.gradient())
    step = torch.finfo(y.dtype).eps ** (1 / 3)
    m = flat(y).shape[1]

    def slope_and_constraints(here: Problem, point: Tensor) -> Tensor:
        # Seen at fixed multipliers, of which a manifold's normal part moves with y.
        there = constraint_set(here, point)
        slope = flat(lagrangian_gradient(here, point, there.in_lagrangian(nu)))
        if there.parametric:
            h = here.constraints(point)
            return slope if h is None else torch.cat([slope, h], dim=1)
        return there.less_normal(slope, nu)

    errors, scales = [], []  # of each operand and of y: ∇_y L, then h
    whole = torch.zeros_like(flat(y)[:, 0])
    # One operand after the other, then y.
    for chosen in [*(k for k, want in enumerate(wanted) if want), None]:
        seen, found = _both_ways(slope_and_constraints, problem, y, chosen, step)
        of_h = seen[:, m:], found[:, m:]
        seen, found = seen[:, :m], found[:, :m]
        whole = torch.maximum(whole, _larger(seen, found))
        # Of ∇_y L only what is tangent counts: the multipliers take up the rest.
        of_slope = constraints.project(seen), constraints.project(found)
        errors.append(torch.stack([(a - b).norm(dim=1) for a, b in (of_slope, of_h)]))
        scales.append(torch.stack([_larger(*pair) for pair in (of_slope, of_h)]))
    error, scale = torch.stack(errors), torch.stack(scales)
    # Of each by itself, whose gradient is asked for; but what differences make of nothing is rounding.
    least = torch.stack([torch.maximum(scale[:, 0].amax(dim=0), whole), scale[:, 1].amax(dim=0)])
    scale = torch.maximum(scale, step * least)
    if at_solution:
        # What a cut leaves out of a factor of ∇_y L does no harm where ∇_y L is 0, as far as it is.
        left = constraints.project(constraints.gradient()).norm(dim=1)
        error[:, 0] = (error[:, 0] - _OF_A_FACTOR * left).clamp(min=0)
    return torch.where(error == 0, error, error / scale).amax(dim=(0, 1))


def _both_ways(
    function: Callable[[Problem, Tensor], Tensor],
    problem: Problem,
    y: Tensor,
    chosen: int | None,
    step: float,
) -> tuple[Tensor, Tensor]:
    """The derivative (B, q) along a change of one operand, or of y (None): differences, and autograd."""
    tangents: list[Tensor | None] = [
        _direction(x, k + 1) if k == chosen else None for k, x in enumerate(problem.operands)
    ]
    of_y = _direction(y, 0) if chosen is None else None

    def moved(by: float) -> Tensor:
        pairs = zip(problem.operands, tangents, strict=True)
        here = problem.with_operands([x if t is None else x + by * t for x, t in pairs])
        with torch.enable_grad():
            point = (y if of_y is None else y + by * of_y).detach().requires_grad_()
            return function(here, point).detach()

    seen = (moved(step) - moved(-step)) / (2 * step)
    return seen, _along(function, problem, y, tangents, of_y)


def _larger(a: Tensor, b: Tensor) -> Tensor:
    return torch.maximum(a.norm(dim=1), b.norm(dim=1))


def _along(
    function: Callable[[Problem, Tensor], Tensor],
    problem: Problem,
    y: Tensor,
    tangents: Sequence[Tensor | None],
    of_y: Tensor | None,
) -> Tensor:
    """The derivative of a function of operands and y, by autograd: torch.func does not let numpy in."""
    with torch.enable_grad():
        operands = [
            x if t is None else x.detach().requires_grad_()
            for x, t in zip(problem.operands, tangents, strict=True)
        ]
        point = y.detach().requires_grad_()
        value = flat(function(problem.with_operands(operands), point))
        pairs = [
            (x, t)
            for x, t in zip([*operands, point], [*tangents, of_y], strict=True)
            if t is not None
        ]
        if not value.requires_grad:
            return torch.zeros_like(value)
        u = torch.zeros_like(value, requires_grad=True)
        pulled = torch.autograd.grad(
            value, [x for x, _ in pairs], u, create_graph=True, allow_unused=True
        )
        total = sum((g * t).sum() for g, (_, t) in zip(pulled, pairs, strict=True) if g is not None)
        if not isinstance(total, Tensor) or not total.requires_grad:
            return torch.zeros_like(value.detach())
        (found,) = torch.autograd.grad(total, u, allow_unused=True)
    return torch.zeros_like(value.detach()) if found is None else flat(found.detach())


def _argument_error(problem: Problem, kinks: Kinks, y: Tensor, wanted: Sequence[bool]) -> Tensor:
    """The same error of the arguments of active kinks, which are smooth where the functions are not."""
    step = torch.finfo(y.dtype).eps ** (1 / 3)
    error = scale = y.new_zeros(len(y))
    for k, want in enumerate(wanted):
        if want:
            seen, found = _both_ways(kinks.arguments, problem, y, k, step)
            error = torch.maximum(error, (seen - found).norm(dim=1))
            scale = torch.maximum(scale, _larger(seen, found))
    return torch.where(error == 0, error, error / scale)


def _direction(x: Tensor, stream: int) -> Tensor:
    size = x.abs().amax() if x.numel() else x.new_ones(())
    return (perturb(torch.ones_like(x), 1.0, stream, 0) - 1) * torch.where(size > 0, size, 1.0)


def operands_called(problem: Problem) -> list[str]:
    """What to call each operand: an input by its place and what the objective calls it."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(problem.node.objective).parameters.values()
    called = [p.name for p in parameters if p.kind in kinds and p.name != "y"]
    names = []
    for i, x in enumerate(problem.inputs):
        if isinstance(x, Tensor):
            names.append(f"input {i} ({called[i]})" if i < len(called) else f"input {i}")
    for i, captured in enumerate(problem.originals):
        name = f"captured tensor {i}" if captured.path is None else f"the node's {captured.path}"
        names.append(name)
    return names
