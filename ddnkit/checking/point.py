"""Comparisons of the solution itself: is it one, is it a minimum, and does it stay on its branch?"""

from __future__ import annotations

from typing import Any

import torch

from ..assessment import assess
from ..backward.dense import Dense
from ..linalg.kkt import RANK_REVEALING_SIZE
from ..solution import Status
from .degeneracy import rank_gained_nearby
from .differences import at
from .findings import Findings, Point, Slopes
from .gradients import differentiable, replaced
from .landscape import apart, continued, lower_minimum, relative
from .report import Comparison
from .tracing import is_formula

#: A solution that differs by more than this from the one that continues its neighbour has jumped.
_JUMP = 1e-3
#: Differences over two steps further apart than this say nothing.
UNRELIABLE = 1e-2


def compare_solution(findings: Findings, point: Point) -> None:
    """Feasible, stationary, the same each time; constraints that its linearisation describes."""
    solved, certificate = point.solved, point.certificate
    tolerance = certificate.tolerance
    findings.compare(Comparison.FEASIBILITY, certificate.feasibility.max(), tolerance)
    findings.compare(Comparison.STATIONARITY, certificate.stationarity.max(), tolerance)
    status = max(solved.solution.statuses())
    if status >= Status.NON_FINITE:
        findings.compare(Comparison.STATUS, 1.0, 0.0, status.name)
    if not bool(solved.y.isfinite().all()):
        return
    if certificate.kink_margin is not None:
        findings.compare(Comparison.SMOOTH, (certificate.kink_margin <= 0).sum(), 0.0)
    again = findings.subject.solve(findings.inputs)
    rounding = torch.finfo(solved.y.dtype).eps
    findings.compare(Comparison.SAME_SOLUTION, apart(again.y, solved.y), 1e3 * rounding)
    if not findings.subject.node.constrained:
        return
    point.rank_gained = rank_gained_nearby(solved)
    findings.compare(Comparison.CONSTANT_RANK, point.rank_gained, 0.0)
    margin = 1.0 if certificate.licq is None else float(certificate.licq.min())
    if margin == 0 and not point.rank_gained:
        findings.note(
            "dependent constraints",
            "dependent constraints at the solution (LICQ margin 0): they agree, and stay "
            "dependent nearby, which is harmless; only the multipliers are not unique",
        )


def compare_second_order(findings: Findings, point: Point) -> None:
    """Curved upwards in all directions along the constraints."""
    solved = point.solved
    if solved.y.shape[-1] > RANK_REVEALING_SIZE:
        return
    problem, solution = solved.problem, solved.solution
    v = point.v.reshape(solution.y.shape)
    point.certificate = assess(problem, solution, Dense(), point.certificate, v)
    curvature = point.certificate.curvature
    assert curvature is not None
    # Of a single unknown without curvature: 0/0.
    least = float(curvature.nan_to_num(nan=0.0).min())
    # The constraints leave eigenvalues of zero, which rounding makes slightly negative.
    if findings.compare(Comparison.MINIMUM, max(-least, 0.0), 1e-6):
        rounding = 64 * torch.finfo(curvature.dtype).eps
        flatness = rounding / least if least > 0 else float("inf")
        findings.compare(Comparison.STRICT_MINIMUM, flatness, 1.0)


def compare_branch(findings: Findings, point: Point, slopes: Slopes) -> None:
    """Whether the node, solving nearby inputs anew, stays with the solution that continues this one.

    An iterative solver starts anew on both sides. A `solve` of its own has been called at inputs nearby
    for the differences already; where they are in doubt, Newton's method tells.
    """
    subject, solved, differences = findings.subject, point.solved, slopes.differences
    sides = (differences.step, -differences.step)
    worst: list[float] = []
    if not subject.has_own_solve:
        problems = [at(subject, moved(findings, 0, step), solved) for step in sides]
        pairs = zip(subject.resolve(problems, None), differences.ends[0], strict=True)
        worst += [apart(anew, near) for anew, near in pairs]
    elif findings.failed(Comparison.DIFFERENCES) or slopes.error > UNRELIABLE:
        for k in range(len(findings.directions)):
            for side, step in enumerate(sides):
                near = continued(subject, moved(findings, k, step), solved)
                if near is not None and relative(near, solved.y) < _JUMP**0.5:
                    worst.append(apart(differences.ends[k, side], near))
    if not worst or findings.compare(
        Comparison.NEARBY, max(worst), max(_JUMP, 10 * differences.step)
    ):
        return
    for step in () if subject.has_own_solve else sides:
        certificate = subject.certificate(subject.solve(moved(findings, 0, step)))
        if not bool(certificate.differentiable.all()):
            point.beside = certificate


def compare_minima(findings: Findings, point: Point) -> None:
    """Whether Newton's method finds a lower minimum from elsewhere.

    A formula is held to what it claims, the minimum; an iteration may be meant to find a local one.
    """
    lower = point.lower = lower_minimum(findings.subject, point.solved)
    if lower is None:
        return
    if is_formula(findings.subject, point.solved) and not findings.subject.local:
        size = max(abs(lower.here), abs(lower.there))
        findings.compare(Comparison.LOWEST, (lower.here - lower.there) / size, 1e-6)
    else:
        findings.note(
            "local minimum",
            f"a local minimum: the objective is {lower.here:.6g} there and {lower.there:.6g} at another; "
            "the gradient is that of the branch which the solver follows",
        )


def moved(findings: Findings, direction: int, step: float) -> list[Any]:
    """The inputs, moved along one of the directions."""
    xs, wrt = findings.inputs, differentiable(findings.inputs)
    along = findings.directions[direction]
    return replaced(xs, wrt, [xs[i] + step * u for i, u in zip(wrt, along, strict=True)])
