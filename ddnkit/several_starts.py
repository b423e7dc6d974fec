"""Several starting points for each item: the best local minimum that they lead to, and how clear that is.

All starts of all items are solved as one larger batch. Of the solutions of an item those count that are
feasible and stationary by the certificate's own figures; of these the one with the lowest objective is kept.
Where several starts lead to it the first of them names the branch. If no start has led to a solution, the
one is kept whose backward error is least, with the status that the solver gave it.

*How clear the choice is.* Two minima y₁, y₂ with f(y₁) < f(y₂) change places when the data change so much
that f(y₂) − f(y₁) does. The gap is (f₂ − f₁)/S, S how much the Lagrangians at the two change with a relative
change of the data, per unit of it: by so much at least must the data change before the other minimum is the
lower one. A solution is certified to a relative change of the data; below that the two cannot be told
apart, argmin jumps from one to the other, and the gap is 0. It is infinite where no other minimum was found.

*Points.* The first is the node's `initial_point`. The others are spread around it by multiples of irrational
numbers, which fill a cube evenly and are the same on every processor: at one, two, half and four times the
size of the first point, or of the step along −∇f to the least value if that is longer; by the same
proportions for all unknowns, and in turn by each one's own size. Where an unknown has two finite bounds they
fill the interval. On a manifold they are two tangent steps away, each as long as y.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .active_set import EDGE, active_set
from .certificate import Certificate, measure, tolerance_of
from .errors import InputError
from .kinks import kinks_of
from .lagrangian import constraint_set
from .perturbation import perturb
from .problem import Problem, flat
from .selection import least_norm
from .solution import Solution, Status
from .structure import Structure

if TYPE_CHECKING:
    from .node import DeclarativeNode

#: Sizes of the steps to further starting points, in turn.
_RADII = (1.0, 2.0, 0.5, 4.0)
#: The relative change of the data that a gap is measured by.
_CHANGE = 0.1
_PROBES = 3
#: Where on the way between two solutions it is looked for a rise that parts them.
_BETWEEN = (0.25, 0.5, 0.75)


def starts_at_several_points(node: DeclarativeNode) -> bool:
    """Whether the node asks for more than its one starting point."""
    return callable(node.starts) or node.starts > 1


def best_of_starts(problem: Problem, start: Tensor | None) -> Solution:
    """The best solution of each item from all of its starting points.

    Args:
        start: (B, *y), one more starting point of each item, the last; None for none.

    Returns:
        the solutions with their `Solution.branch` and `Solution.branch_gap`.
    """
    points = starting_points(problem, start)
    batch, count = points.shape[:2]
    whole = _repeated(problem, count)
    found = _solve_all(whole, points.flatten(0, 1))
    if problem.node.selection is not None:
        # Points of one valley are one solution then.
        found = least_norm(whole, found.batched(batch * count))
    tolerance = tolerance_of(problem, found.y, None)
    whole = _completed(whole, found.y, tolerance)
    certificate = measure(whole, found.batched(batch * count), None)
    values = whole.objective(found.y).detach()
    solved = certificate.solved & values.isfinite()
    rank = torch.where(solved, values, torch.inf).reshape(batch, count)
    error = _error(certificate).reshape(batch, count)
    solved = solved.reshape(batch, count)
    some = solved.any(dim=1)
    best = torch.where(some, rank.argmin(dim=1), error.argmin(dim=1))
    first = torch.arange(batch, device=best.device) * count
    apart = _apart(whole, found.y, best + first, values, tolerance, count)
    # Of those that lead to the same minimum the first: which of them is lower by a rounding is chance.
    branch = torch.where(some, (solved & ~apart).int().argmax(dim=1), best)
    gap = _gap(whole, found.y, branch + first, values, solved & apart, tolerance, count)
    kept = _items(found.batched(batch * count), branch + first)
    return dataclasses.replace(kept, branch=branch, branch_gap=torch.where(some, gap, torch.inf))


def _error(certificate: Certificate) -> Tensor:
    """What the worst of the figures is (B,), infinite for one that says nothing."""
    error = torch.maximum(certificate.stationarity, certificate.feasibility)
    hopeless = certificate.status >= int(Status.NON_FINITE)
    error = torch.where(hopeless, error + 1 / torch.finfo(error.dtype).eps, error)
    return error.nan_to_num(nan=torch.inf)


# -- points ----------------------------------------------------------------------------------------


def starting_points(problem: Problem, start: Tensor | None) -> Tensor:
    """Where each item starts, (B, K, *y). Settles the structure of y."""
    node = problem.node
    if callable(node.starts):
        points = _given_points(problem)
    else:
        points = _spread(problem, _first_point(problem, start), int(node.starts))
    if start is None:
        return points
    return torch.cat([points, start.to(points).unsqueeze(1)], dim=1)


def _first_point(problem: Problem, start: Tensor | None) -> Tensor:
    try:
        return problem.start().detach()
    except InputError:
        if start is None:
            raise
        return start


def _given_points(problem: Problem) -> Tensor:
    name = f"{type(problem.node).__name__}.starts"
    rows, structure = [], None
    for i in range(problem.batch_size):
        with problem.substitute(i):
            given = problem.node.starts(*problem.item(i))
        structure = Structure.of(given, name)
        rows.append(given if structure is None else structure.join(given, 1))
    for row in rows:
        if not isinstance(row, Tensor) or row.ndim == 0 or not len(row):
            raise InputError(f"{name} returned {row!r:.100}; expected points in a row, (k, *y)")
        if row.shape != rows[0].shape:
            raise InputError(
                f"{name} returned {len(rows[0])} points for one item and {len(row)} for another; expected "
                "as many for each"
            )
    problem.structure = None if structure is None else structure.without_batch(1)
    points = torch.stack(rows).detach()
    if not points.is_floating_point():
        raise InputError(f"{name} returned dtype {points.dtype}; y must be floating")
    return points


def _spread(problem: Problem, first: Tensor, count: int) -> Tensor:
    y = flat(first)
    size = _size(problem, first)
    bounds = problem.bounds(first)
    points = [first]
    for k in range(1, count):
        way = _pattern(y, k)
        own = torch.where(y != 0, y.abs(), size) if k % 2 == 0 else size
        step = _RADII[(k - 1) % len(_RADII)] * own * way
        if problem.manifold is not None:
            points.append(_along_manifold(problem, first, k))
            continue
        point = y + step
        if bounds is not None:
            point = _within(point, way, *bounds)
        points.append(point.reshape(first.shape))
    return torch.stack(points, dim=1)


def _along_manifold(problem: Problem, first: Tensor, k: int) -> Tensor:
    """Two tangent steps on, each as long as y: one may lead no further than a quarter of the way around."""
    point, manifold = first, problem.manifold
    for turn in range(2):
        way = _pattern(flat(first), 2 * k + turn).reshape(first.shape[1:]).expand(first.shape)
        step = manifold.tangent(point, way)
        length = flat(step).norm(dim=1)
        factor = flat(point).norm(dim=1) / torch.where(length > 0, length, 1.0)
        point = manifold.retract(point, factor.reshape(-1, *[1] * (step.ndim - 1)) * step)
    return point


def _size(problem: Problem, first: Tensor) -> Tensor:
    """How far other minima are looked for, (B, 1)."""
    y = flat(first)
    gradient = problem.gradient(first)
    bent = flat(problem.hessian_vector(first, gradient))
    slope = flat(gradient).norm(dim=1)
    curvature = (flat(gradient) * bent).sum(dim=1).abs()
    root = max(y.shape[1], 1) ** 0.5
    sizes = torch.stack([y.norm(dim=1), slope**3 / curvature]) / root
    size = sizes.nan_to_num(nan=0.0, posinf=0.0).amax(dim=0)
    return torch.where(size > 0, size, 1.0).unsqueeze(1)


def _pattern(like: Tensor, k: int) -> Tensor:
    """Numbers between −1 and 1, (m,), others for each k."""
    index = torch.arange(1, like.shape[1] + 1, dtype=torch.float64)
    # Exact in integers up to rounding of one product: no elementary function that processors differ in.
    fraction = (k * (index * 0.6180339887498949 % 1.0) + k * k * 0.4142135623730951 / 2) % 1.0
    return (2 * fraction - 1).to(like)


def _within(point: Tensor, way: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    both = lower.isfinite() & upper.isfinite()
    inside = lower + (upper - lower) * (way + 1) / 2
    # Beyond one bound: as far on this side of it.
    above = torch.where(point < lower, 2 * lower - point, point)
    below = torch.where(above > upper, 2 * upper - above, above)
    return torch.where(both, inside, below)


# -- solutions -------------------------------------------------------------------------------------


def _repeated(problem: Problem, count: int) -> Problem:
    """Each item ``count`` times in a row."""
    flags = problem.operands_batched
    operands = [
        x.repeat_interleave(count, dim=0) if own else x
        for x, own in zip(problem.operands, flags, strict=True)
    ]
    return problem.resize(operands, problem.batch_size * count, flags)


def _solve_all(whole: Problem, points: Tensor) -> Solution:
    """The solution from each point; one that stops the solver stops no other."""
    solve = whole.node.solve_problem
    try:
        return solve(whole, points)
    except InputError:
        raise
    except Exception:
        if whole.batch_size == 1:
            raise
    found, error = [], None
    for i in range(whole.batch_size):
        try:
            found.append(solve(whole.at(i), points[i : i + 1]).batched(1))
        except InputError:
            raise
        except Exception as raised:  # whatever a factorisation says of this point
            error = raised
            nothing = torch.full_like(points[i : i + 1], torch.nan)
            found.append(Solution(nothing, Status.NON_FINITE).batched(1))
    sound = [s for s in found if s.solver]
    if not sound:
        assert error is not None  # no start has led anywhere
        raise error
    return Solution(
        torch.cat([s.y for s in found]),
        torch.cat([torch.as_tensor(s.status) for s in found]),
        torch.cat([torch.as_tensor(s.iterations) for s in found]),
        sound[0].solver,
    )


def _completed(problem: Problem, y: Tensor, tolerance: float) -> Problem:
    """The problem with its active constraints and kinks at y."""
    problem = problem.with_active_set(active_set(problem, y, tolerance))
    return problem.with_kinks(kinks_of(problem, y, problem.record(y), tolerance))


def _items(solution: Solution, items: Tensor) -> Solution:
    """Those of a batched solution."""
    status, iterations = solution.status, solution.iterations
    assert isinstance(status, Tensor) and isinstance(iterations, Tensor)
    known = solution.multipliers
    return dataclasses.replace(
        solution,
        y=solution.y[items],
        status=status[items],
        iterations=iterations[items],
        aux={name: value[items] for name, value in solution.aux.items()},
        uniqueness=None if solution.uniqueness is None else solution.uniqueness[items],
        multipliers=None if known is None else (known[0][items], known[1][items]),
    )


# -- the choice ------------------------------------------------------------------------------------


def _apart(
    whole: Problem, y: Tensor, best: Tensor, values: Tensor, tolerance: float, count: int
) -> Tensor:
    """Which solutions are another minimum than the best of their item, (B, K)."""
    there = y[best].repeat_interleave(count, dim=0)
    size = torch.maximum(flat(y).norm(dim=1), flat(there).norm(dim=1))
    apart = (flat(y) - flat(there)).norm(dim=1) > tolerance**0.5 * size
    if not bool(apart.any()) or whole.manifold is not None or whole.node.constrained:
        return apart.reshape(-1, count)
    # Two points of one flat valley, or of a minimum that is found to few digits, have no rise between them.
    highest = torch.maximum(values, values[best].repeat_interleave(count))
    rounding = 64 * torch.finfo(y.dtype).eps * highest.abs()
    rises = torch.zeros_like(apart)
    with torch.no_grad():
        for share in _BETWEEN:
            between = whole.objective(y + share * (there - y))
            rises |= ~(between <= highest + rounding)
    return (apart & rises).reshape(-1, count)


def _gap(
    whole: Problem,
    y: Tensor,
    kept: Tensor,
    values: Tensor,
    others: Tensor,
    tolerance: float,
    count: int,
) -> Tensor:
    """See the text above, (B,)."""
    above = (values - values[kept].repeat_interleave(count)).clamp(min=0).reshape(-1, count)
    change = _changes(whole, y, values).reshape(-1, count)
    own = change.reshape(-1)[kept].unsqueeze(1)
    gap = torch.where(above == 0, 0.0, above / (change + own))
    gap = torch.where(gap <= EDGE * tolerance, 0.0, gap)
    return torch.where(others, gap.nan_to_num(nan=0.0, posinf=torch.inf), torch.inf).amin(dim=1)


@torch.no_grad()
def _changes(whole: Problem, y: Tensor, values: Tensor) -> Tensor:
    """How much the Lagrangian changes with a relative change of the data, per unit of it, (B,)."""
    constraints = constraint_set(whole, y, in_numbers=True)
    nu = constraints.in_lagrangian(constraints.multipliers(constraints.gradient()))

    def lagrangian(problem: Problem) -> Tensor:
        value = problem.objective(y)
        h = None if nu is None else problem.all_constraints(y)
        return value if nu is None or h is None else value - (nu * h).sum(dim=1)

    here, change = lagrangian(whole), torch.zeros_like(values)
    flags = whole.operands_batched
    for probe in range(_PROBES):
        operands = [
            perturb(x, _CHANGE, k + 1, probe) if own else x
            for k, (x, own) in enumerate(zip(whole.operands, flags, strict=True))
        ]
        found = (lagrangian(whole.with_operands(operands)) - here).abs() / _CHANGE
        change = torch.maximum(change, found.nan_to_num(nan=0.0, posinf=0.0))
    return change
