"""Causes that only inequality constraints and bounds have: their sign, the active set, multipliers.

The start of an iteration is one of them: bounds are how a node states a domain.

Each function returns its cause if the findings speak for it.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from ..active_set import EDGE, ActiveSet, active_set, distances
from ..certificate import Certificate, measure, tolerance_of
from ..lagrangian import constraint_jacobian, inequality_jacobian, least_squares_multipliers
from ..linalg.items import apply
from ..problem import Problem, flat
from ..solution import Status
from .findings import Cause, Findings, Point
from .landscape import nearest_minimum, relative_distance
from .report import Comparison, Diagnosis
from .subject import SolvedBatch, Subject

#: Constraints that are named before the rest is counted.
_NAMED = 3
#: From here on, relative to y, a minimum is another point and not the one that was nearly reached.
_FAR = 0.5
_OF_SOLUTION = (
    Comparison.FEASIBILITY,
    Comparison.STATIONARITY,
    Comparison.SOLUTION,
    Comparison.ACTIVE_SET,
)
#: How a solver ends where it finds no step, or no end of them.
_AT_REST = (Status.STALLED, Status.MAX_ITERATIONS)


def contradictory_bounds(findings: Findings, point: Point) -> Cause | None:
    """A lower bound above the upper one."""
    problem, y = point.solved.problem, point.solved.solution.y
    found = problem.bounds(torch.zeros_like(y))
    if found is None or not bool((found[0] > found[1]).any()):
        return None
    lower, upper = found
    worst = int((lower - upper).nan_to_num(nan=-torch.inf).flatten().argmax())
    item, entry = divmod(worst, lower.shape[1])
    others = int((lower > upper).sum()) - 1
    more = f", and so do those of {others} more" if others else ""
    return Cause(
        Diagnosis.BOUNDS_CONTRADICT,
        f"`bounds` contradict each other: of entry {entry} of y the lower one is "
        f"{float(lower[item, entry]):.6g} and the upper one {float(upper[item, entry]):.6g}{more}; no y lies "
        "between",
        "check `bounds`: it returns (lower, upper) in this order; where inputs may cross, bound y by "
        "torch.minimum(lower, upper) and torch.maximum(lower, upper)",
    )


def start_outside(findings: Findings, point: Point) -> Cause | None:
    """A start where f or h is not finite, from which the solver did not get away."""
    if findings.subject.has_own_solve or bool(point.solved.y.isfinite().all()):
        return None
    problem = _bare(point.solved.problem)
    with torch.no_grad():
        start = problem.start()
        values = {
            "objective": problem.objective(start),
            "equality_constraints": problem.constraints(start),
        }
    outside = [
        name
        for name, value in values.items()
        if value is not None and not bool(value.isfinite().all())
    ]
    if not outside or not bool(start.isfinite().all()):
        return None
    return Cause(
        Diagnosis.START_OUTSIDE,
        f"infeasible start: `initial_point` is outside of the domain of `{outside[0]}`, which is NaN or "
        "infinite there, so that no iteration can begin",
        "let `initial_point` return a point where the functions are finite (it need not satisfy the "
        "constraints), and state the domain as `bounds`, such as (0.0, None) for a logarithm of y",
    )


def stalls_at_kinks(findings: Findings, point: Point) -> Cause | None:
    """A solver for smooth functions that came to rest among kinks, and at no solution."""
    solved, subject = point.solved, findings.subject
    if subject.has_own_solve or not findings.failures(*_OF_SOLUTION):
        return None
    statuses = set(solved.solution.statuses())
    if not _has_point(findings, point) or statuses.isdisjoint(_AT_REST):
        return None
    traces = _bare(solved.problem).record(solved.solution.y).traces
    steps = [(trace.function, step) for trace in traces for step, _ in trace.kinks]
    if not steps:
        return None
    function, step = steps[0]
    place = f" ({step.place})" if step.place else ""
    status = next(status for status in _AT_REST if status in statuses)
    return Cause(
        Diagnosis.NOT_SMOOTH,
        f"not smooth: `{function}` has kinks, by `{step.name}`{place}, and the solver, which is made for "
        f"smooth functions, came to rest among them with status {status.name}, at no solution",
        "state it smoothly, by further unknowns and bounds: |y| is p + q with y = p − q, p ≥ 0 and q ≥ 0, so "
        "that Σ|yᵢ| ≤ r becomes Σ(pᵢ + qᵢ) ≤ r; max yᵢ ≤ r becomes y ≤ r (docs/inequalities.md shows both "
        "parts in a node); or give the node a `solve` of its own",
    )


def wrong_sign(findings: Findings, point: Point) -> Cause | None:
    """Inequalities that are written the other way round: with −g all would be well."""
    if not findings.failures(*_OF_SOLUTION) or not _has_point(findings, point):
        return None
    solved, subject = point.solved, findings.subject
    own = solved.problem.inequality_sizes(solved.solution.y)[0]
    g, apart, held = _at(subject, solved)
    edge = EDGE * point.certificate.tolerance
    suspects = (((g > 0) & (apart > edge)) | ((apart <= edge) & ~held))[:, :own].any(dim=0)
    if not bool(suspects.any()):
        return None
    for rows in (suspects, torch.ones_like(suspects)):
        certificate = _with_signs(subject, solved, torch.where(rows, -1.0, 1.0))
        if certificate is not None and bool(certificate.differentiable.all()):
            which = "" if bool(rows.all()) else f" ({_names(solved, rows)})"
            return Cause(
                Diagnosis.INEQUALITY_SIGN,
                f"wrong sign: `inequality_constraints` has the wrong sign{which}: y violates g ≤ 0, or f "
                "would fall if y left g = 0, and with −g in its place y is a solution",
                "return g with g ≤ 0 where y is feasible: a − y for y ≥ a, and y @ y − r² for ‖y‖ ≤ r",
            )
    return None


def other_active_set(findings: Findings, point: Point) -> Cause | None:
    """A y that keeps off a constraint that is active at the minimum, or holds on to one that is not."""
    if not findings.failures(*_OF_SOLUTION) or not _has_point(findings, point):
        return None
    solved, subject = point.solved, findings.subject
    tolerance = point.certificate.tolerance
    g, apart, held = _at(subject, solved)
    if not subject.has_own_solve or bool(((g > 0) & (apart > tolerance)).any()):
        return None
    refused = (apart <= EDGE * tolerance) & ~held
    if bool(refused.any()) and _stationary_on(subject, solved, refused | held):
        return Cause(
            Diagnosis.INACTIVE_HELD,
            "an inactive constraint is called active: y stays on "
            f"{_names(solved, refused.any(dim=0))}, which would have a multiplier λ < 0, so that f falls "
            "where y leaves it",
            "let `solve` drop a constraint whose multiplier is negative, or leave `solve` out: the solver "
            "'interior_point' finds the active set",
        )
    found = nearest_minimum(solved)
    moved = torch.inf if found is None else relative_distance(flat(found), solved.y)
    if found is None or moved >= _FAR:
        return None
    reached = active_set(_bare(solved.problem), found, tolerance)
    assert reached is not None  # the node has inequalities
    there = torch.zeros_like(held)
    there[:, reached.rows] = reached.active
    missing = there & (g < 0) & (apart > tolerance)
    if not bool(missing.any()):
        return None
    distance = float(torch.where(missing, apart, 0.0).max())
    return Cause(
        Diagnosis.KEEPS_OFF,
        f"inexact solve: y keeps a distance of {distance:.1e}, relative, from "
        f"{_names(solved, missing.any(dim=0))}, where the minimum is, {moved:.1e} away; as a loose interior "
        "point does, whose barrier is not down yet",
        "let the iteration go on until the barrier's parameter (the products sλ) is at rounding level, or "
        "end `solve` with a step on the active constraints alone; or leave `solve` out: the solver "
        "'interior_point' ends with such a step",
    )


def compare_multipliers(findings: Findings, point: Point) -> None:
    """Those that a `solve` reports with y, by ∇f − Aᵀν + Gᵀλ = 0, λ ≥ 0 and λᵢ = 0 where gᵢ < 0."""
    solved, subject = point.solved, findings.subject
    known = solved.solution.multipliers
    if known is None or not subject.has_own_solve:
        return
    rows, expected, apart = _multipliers(subject, solved)
    given = torch.cat([flat(part).to(rows) for part in known], dim=1)
    if given.shape != expected.shape:
        point.multipliers = (
            f"{given.shape[1]} numbers, ν and λ together, for {expected.shape[1]} constraints (each bound is "
            "one for every entry of y, the lower ones first)"
        )
        findings.compare(Comparison.MULTIPLIERS, torch.inf, 0.0)
        return
    gradient = flat(_bare(solved.problem).gradient(solved.solution.y))
    lengths = rows.norm(dim=2)
    felt = given.abs() * lengths
    size = torch.maximum(gradient.norm(dim=1), felt.sum(dim=1)).unsqueeze(1)
    size = torch.where(size > 0, size, 1.0)
    left = (gradient - apply(rows.mT, given)).norm(dim=1, keepdim=True)
    first = rows.shape[1] - apart.shape[1]
    wrong = (given[:, first:] < 0) | (apart > EDGE * point.certificate.tolerance)
    errors = torch.cat([left, torch.where(wrong, felt[:, first:], 0.0)], dim=1) / size
    # A multiplier inherits the backward error of y times the problem's condition.
    if not findings.compare(Comparison.MULTIPLIERS, errors.max(), point.certificate.tolerance**0.5):
        off = ((given - expected).abs() * lengths).flatten()
        item, k = divmod(int(off.argmax()), lengths.shape[1])
        name = f"ν of equality constraint {k}" if k < first else f"λ of {_name(solved, k - first)}"
        wrong_one, right = float(given[item, k]), float(expected[item, k])
        point.multipliers = f"{name} is {wrong_one:.4g} where it should be {right:.4g}"


def wrong_multipliers(findings: Findings, point: Point) -> Cause | None:
    """A `solve` whose multipliers are not those of its y."""
    if not findings.failures(Comparison.MULTIPLIERS):
        return None
    return Cause(
        Diagnosis.WRONG_MULTIPLIERS,
        f"wrong multipliers: those that `solve` returns with y are not those of y: {point.multipliers}",
        "return Solution(y, multipliers=(ν, λ)) of L = f − νᵀh + λᵀg with λ ≥ 0, one for each constraint and "
        "then for each lower and upper bound, 0 where it is not active; or none: the layer computes them",
    )


# -- what they ask ---------------------------------------------------------------------------------


def _has_point(findings: Findings, point: Point) -> bool:
    has = findings.subject.node.has_inequalities and bool(point.solved.y.isfinite().all())
    return has and point.solved.problem.inequalities(point.solved.solution.y) is not None


def _bare(problem: Problem) -> Problem:
    return problem.with_active_set(None).with_kinks(None)


def _at(subject: Subject, solved: SolvedBatch) -> tuple[Tensor, Tensor, Tensor]:
    """g (B, q), how far from 0 it is, relative, and which are held with a multiplier λ ≥ 0."""
    problem, y = solved.problem, solved.solution.y
    g, held = problem.inequalities(y), problem.active_set
    assert g is not None and held is not None  # as `_has_point` tells
    mask = torch.zeros_like(g, dtype=torch.bool)
    mask[:, held.rows] = held.active
    return g, distances(_bare(problem), y, g, held.size), mask


def _stationary_on(subject: Subject, solved: SolvedBatch, mask: Tensor) -> bool:
    """Whether y is stationary with the constraints of ``mask`` (B, q) as equations."""
    held = solved.problem.active_set
    assert held is not None
    rows = mask.any(dim=0).nonzero()[:, 0]
    zero = torch.zeros_like(held.size)
    pinned = ActiveSet(rows, mask[:, rows], zero + torch.inf, zero, held.size)
    found = measure(solved.problem.with_active_set(pinned), solved.solution, subject.tolerance)
    return bool((found.stationarity <= found.tolerance).all())


def _with_signs(subject: Subject, solved: SolvedBatch, signs: Tensor) -> Certificate | None:
    """The certificate at y with the node's own inequalities times ``signs`` (k,); None if it has none."""
    node = solved.problem.node
    own = type(node)

    def turned(self: Any, *xs: Any, **named: Any) -> Any:
        g = own.inequality_constraints(self, *xs, **named)
        return g if g is None else g.reshape(-1) * signs.to(g)

    try:
        other = copy.copy(node)
        other.__class__ = type(own.__name__, (own,), {"inequality_constraints": turned})
        problem, y = _bare(solved.problem).with_node(other), solved.solution.y
        found = active_set(problem, y, tolerance_of(problem, y, subject.tolerance))
        return measure(problem.with_active_set(found), solved.solution, subject.tolerance)
    except Exception:  # a stranger's node may refuse to be copied in any way
        return None


def _multipliers(subject: Subject, solved: SolvedBatch) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of h and −g (B, p + q, m), their multipliers by least squares on those that are active,
    and how far each of g is from 0."""
    problem, y = _bare(solved.problem), solved.solution.y
    A, g = constraint_jacobian(problem, y), problem.inequalities(y)
    gradient = flat(problem.gradient(y))
    A = gradient.new_zeros(len(y), 0, gradient.shape[1]) if A is None else A
    if g is None:
        return A, least_squares_multipliers(A, gradient), gradient[:, :0]
    _, apart, held = _at(subject, solved)
    G = -inequality_jacobian(problem, y, torch.arange(g.shape[1], device=y.device))
    rows = torch.cat([A, G], dim=1)
    there = torch.cat([torch.ones_like(A[:, :, 0], dtype=torch.bool), held], dim=1)
    return rows, least_squares_multipliers(rows * there.unsqueeze(-1), gradient), apart


def _names(solved: SolvedBatch, rows: Tensor) -> str:
    """What to call the rows of g that a mask (k,) has."""
    chosen = rows.nonzero()[:, 0].tolist()
    names = [_name(solved, k) for k in chosen[:_NAMED]]
    more = len(chosen) - len(names)
    return " and ".join(names) + (f" and {more} more" if more else "")


def _name(solved: SolvedBatch, row: int) -> str:
    own, lower, _ = solved.problem.inequality_sizes(solved.solution.y)
    if row < own:
        return f"inequality constraint {row}"
    side, entry = ("lower", row - own) if row < own + lower else ("upper", row - own - lower)
    return f"the {side} bound of entry {entry}"
