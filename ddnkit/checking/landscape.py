"""Where a solution lies among others: the minimum next to it, lower ones elsewhere, and its branch.

All by Newton's method, which knows nothing of how the node solves: from the solution, from points far
off, and from the solution at inputs nearby.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import registry
from ..active_set import active_set
from ..certificate import measure, tolerance_of
from ..errors import DdnkitError
from ..problem import Problem, flat
from ..solution import Solution, Status
from .differences import at, generator
from .subject import SolvedBatch, Subject

#: Unknowns up to which a dense Newton step is cheap enough for a check.
NEWTON_SIZE = 256
_STARTS, _ITERATIONS = 6, 30
#: How much lower counts, relative to the objective there and at the starting points.
_LOWER, _ROUNDING = 1e-6, 1e-12


@dataclass(frozen=True)
class Elsewhere:
    """A lower minimum than the solution: the objective at both, and how far apart they are."""

    here: float
    there: float
    distance: float


def newton(problem: Problem, start: Tensor, **settings: int) -> Solution | None:
    """The minimum that Newton's method finds from ``start``, under inequalities by an interior point; None
    where it cannot be run."""
    if start.shape[1:].numel() > NEWTON_SIZE:
        return None
    name = "interior_point" if problem.node.has_inequalities else "newton"
    try:
        solver = registry.get("solvers", name)(**settings)
        # Which constraints are active is not known beforehand.
        found: Solution = solver.solve(problem.with_active_set(None), start)
    except (DdnkitError, RuntimeError):
        return None
    return found


def nearest_minimum(solved: SolvedBatch) -> Tensor | None:
    """The minimum (B, *y) that Newton's method finds from the solution; None if it fails."""
    found = newton(solved.problem, solved.solution.y)
    if found is None or not bool((_statuses(found) == Status.CONVERGED).all()):
        return None
    return found.y


def distance_to_minimum(solved: SolvedBatch) -> float | None:
    """How far Newton's method moves from the solution, relative to its size; None if it fails."""
    found = nearest_minimum(solved)
    return None if found is None else relative_error(flat(found), solved.y)


def lower_minimum(subject: Subject, solved: SolvedBatch) -> Elsewhere | None:
    """A minimum with a clearly lower objective, if Newton's method finds one from other starts."""
    if solved.problem.batch_size != 1 or solved.y.shape[-1] > NEWTON_SIZE:
        return None
    starts, flags = _starts(solved), solved.problem.operands_batched
    operands = [
        x.expand(len(starts), *x.shape[1:]) if own else x
        for x, own in zip(solved.problem.operands, flags, strict=True)
    ]
    # Of the problem as the node states it: a least norm is nobody's objective.
    problem = solved.problem.resize(operands, len(starts), flags).stated
    found = newton(problem, starts, max_iterations=_ITERATIONS)
    if found is None:
        return None
    with torch.no_grad():
        values = problem.objective(found.y)
        here = float(solved.problem.stated.objective(solved.solution.y))
        size = float(problem.objective(starts).nan_to_num(0, 0, 0).abs().max())
    problem = problem.with_active_set(
        active_set(
            problem.with_active_set(None),
            found.y,
            tolerance_of(problem, found.y, subject.tolerance),
        )
    )
    certificate = measure(problem, found, subject.tolerance)
    good = certificate.solved.detach() & (_statuses(found) == Status.CONVERGED) & values.isfinite()
    if not bool(good.any()):
        return None
    best = int(torch.where(good, values, torch.inf).argmin())
    there = float(values[best])
    if here - there <= max(_LOWER * max(abs(here), abs(there)), _ROUNDING * size):
        return None
    return Elsewhere(here, there, relative_distance(flat(found.y)[best : best + 1], solved.y))


def continue_solution(subject: Subject, xs: Sequence[object], solved: SolvedBatch) -> Tensor | None:
    """The solution at other inputs nearby that continues this one, (B, m); None if Newton fails."""
    found = newton(at(subject, xs, solved), solved.solution.y)
    if found is None or not bool((_statuses(found) == Status.CONVERGED).all()):
        return None
    return flat(found.y)


def relative_error(y: Tensor, expected: Tensor) -> float:
    """‖y − expected‖/‖expected‖."""
    size = expected.norm().clamp(min=torch.finfo(expected.dtype).tiny)
    return float((y - expected).norm() / size)


def relative_distance(a: Tensor, b: Tensor) -> float:
    """‖a − b‖, relative to the larger of the two: a number at shrunk inputs too, where one may be zero."""
    size = torch.maximum(a.norm(), b.norm()).clamp(min=torch.finfo(b.dtype).tiny)
    return float((a - b).norm() / size)


def _starts(solved: SolvedBatch) -> Tensor:
    y = solved.solution.y[0]
    source = generator()
    size = y.norm() / max(y.numel(), 1) ** 0.5
    scale = torch.where(size > 0, size, 1.0)
    points = [-y, y / 10]
    while len(points) < _STARTS:
        points.append(2 * scale * torch.randn(y.shape, generator=source, dtype=torch.float64).to(y))
    with contextlib.suppress(Exception):  # a node with a `solve` of its own need not have one
        points.append(solved.problem.start()[0].to(y))
    return torch.stack(points)


def _statuses(found: Solution) -> Tensor:
    return torch.as_tensor(found.status)
