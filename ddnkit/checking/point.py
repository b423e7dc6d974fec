"""Comparisons of the solution itself: is it one, is it a minimum, and does it stay on its branch?"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from ..assessment import assess
from ..backward.dense import Dense
from ..certificate import tolerance_of
from ..lagrangian import constraint_jacobian
from ..linalg.kkt import RANK_REVEALING_SIZE
from ..problem import Problem, flat
from ..solution import Status
from ..solution_size import size_of_solution
from ..solver import Solver, as_solver
from .causes_of_inequalities import compare_multipliers
from .differences import at, generator
from .findings import Findings, Point, Slopes
from .gradients import move_inputs
from .landscape import continue_solution, lower_minimum, relative_distance, relative_error
from .report import Comparison
from .subject import SolvedBatch
from .tracing import is_formula

#: A solution that differs by more than this from the one that continues its neighbour has jumped.
_JUMP = 1e-3
#: Differences over two steps further apart than this say nothing.
UNRELIABLE = 1e-2
#: How far from the solution the rank of the constraints is looked at, relative, and at how many points.
_NEARBY, _PROBES = 1e-2, 3
#: Singular values below this, relative to the largest, are rounding or the error of the solver.
_NOISE = 1e-4
#: Seconds after which calls are not repeated to measure their time.
_LONG = 0.5


def compare_solution(findings: Findings, point: Point) -> None:
    """Whether the solution is feasible, stationary and the same each time, and its constraints regular."""
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
    if certificate.active_margin is not None:
        findings.compare(Comparison.ACTIVE_SET, (certificate.active_margin <= 0).sum(), 0.0)
    compare_multipliers(findings, point)
    again = findings.subject.solve(findings.inputs)
    rounding = torch.finfo(solved.y.dtype).eps
    findings.compare(Comparison.SAME_SOLUTION, relative_distance(again.y, solved.y), 1e3 * rounding)
    node = findings.subject.node
    if not (node.constrained or node.has_inequalities):
        return
    point.rank_gained = rank_gained_nearby(solved)
    touching = certificate.touching
    agree = touching is not None and not bool((touching > 0).any())
    if agree:
        # Dependent, and the set is the same without some of them: as far as it is followed, they agree.
        point.rank_gained = 0.0
    findings.compare(Comparison.CONSTANT_RANK, point.rank_gained, 0.0)
    if agree:
        findings.note(
            "dependent constraints",
            "dependent constraints at the solution (LICQ margin 0): they agree, and stay "
            "dependent nearby, which is harmless; only the multipliers are not unique",
        )


def compare_second_order(findings: Findings, point: Point) -> None:
    """Whether the objective curves upwards in all directions along the constraints."""
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
    xs = findings.inputs
    sides = (differences.step, -differences.step)
    worst: list[float] = []
    if not subject.has_own_solve:
        problems = [
            at(subject, move_inputs(xs, findings.directions[0], step), solved) for step in sides
        ]
        pairs = zip(subject.solve_again(problems, None), differences.ends[0], strict=True)
        worst += [relative_distance(anew, near) for anew, near in pairs]
    elif findings.failures(Comparison.DIFFERENCES) or slopes.error > UNRELIABLE:
        for k, along in enumerate(findings.directions):
            for side, step in enumerate(sides):
                near = continue_solution(subject, move_inputs(xs, along, step), solved)
                if near is not None and relative_error(near, solved.y) < _JUMP**0.5:
                    worst.append(relative_distance(differences.ends[k, side], near))
    if not worst or findings.compare(
        Comparison.NEARBY, max(worst), max(_JUMP, 10 * differences.step)
    ):
        return
    for step in () if subject.has_own_solve else sides:
        certificate = subject.certificate(
            subject.solve(move_inputs(xs, findings.directions[0], step))
        )
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


def rank_gained_nearby(solved: SolvedBatch) -> float:
    """The largest singular value that A = D_y h has around the solution and lacks there, relative; 0 if none.

    Multipliers and the tangent space are what they should be where the rank of A is the same at all points
    near the solution (the constant rank condition): a constraint may be written twice. Where the rank is
    lower at the solution than around it, as for (g(y))² = 0 in place of g(y) = 0, the linearised constraints
    do not describe the set, and there need be no multipliers.

    Rows are measured by their size around the solution, so that units do not matter.
    """
    problem, y = solved.problem, solved.solution.y
    here = constraint_jacobian(problem, y)
    if here is None or not here.shape[1]:
        return 0.0
    # Without the active inequality constraints, whose multipliers grow beyond all bounds where they touch.
    bare, tolerance = problem.with_active_set(None), tolerance_of(problem, y, None)
    size = size_of_solution(bare, y, problem.gradient(y), tolerance)
    around = [constraint_jacobian(problem, y + shift) for shift in _shifts(y, size)]
    rows = torch.stack([here, *(A for A in around if A is not None)])
    rows = rows.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    length = rows.norm(dim=-1, keepdim=True).amax(dim=0)
    values = torch.linalg.svdvals(rows / torch.where(length > 0, length, 1.0))
    at_y, near = values[0], values[1:].amax(dim=0)
    gained = (near > _NOISE * near.amax(dim=-1, keepdim=True)) & (at_y < _NEARBY * near)
    return float(torch.where(gained, near, 0.0).max())


def _shifts(y: Tensor, sizes: Tensor) -> list[Tensor]:
    source = generator()
    size = sizes.square().mean().sqrt()
    scale = _NEARBY * torch.where(size > 0, size, 1.0)
    shifts = []
    for _ in range(_PROBES):
        shifts.append(scale * torch.randn(y.shape, generator=source, dtype=torch.float64).to(y))
    return shifts


def look_for_closed_form(findings: Findings) -> None:
    """A note where the manifold has a solver that finds this minimum in closed form, and sooner."""
    subject, point = findings.subject, findings.point
    manifold = subject.node.manifold
    if point is None or manifold is None or subject.has_own_solve:
        return
    solved, chosen = point.solved, as_solver(subject.node.solver)
    for name in manifold.closed_form_solvers:
        if chosen.name == name:
            return
        try:
            solver = as_solver(name)
            found = None if solver.refusal(solved.problem) else solver.solve(solved.problem)
        # The solver is for another objective, or the objective raises at the solver's points.
        except Exception:
            continue
        if found is None or set(found.statuses()) != {Status.CONVERGED}:
            continue
        stated = solved.problem.stated
        here, there = (stated.objective(y) for y in (solved.solution.y, found.y))
        eps = torch.finfo(here.dtype).eps
        if found.uniqueness is not None and bool((found.uniqueness < eps**0.5).any()):
            continue  # no solver makes that one solution
        size = 1e3 * eps * torch.maximum(here.abs(), there.abs())
        lower = bool(torch.all(there <= here + size))
        # A lower minimum elsewhere may not be meant: an orthogonal matrix of the other determinant, say.
        apart = torch.linalg.vector_norm(flat(solved.solution.y - found.y), dim=-1)
        same = bool((apart <= eps**0.25 * torch.linalg.vector_norm(flat(found.y), dim=-1)).all())
        if not lower or not (same or bool(torch.any(there < here - size))):
            continue
        long, short = (_seconds(each, solved.problem) for each in (chosen, solver))
        if short < long / 2:
            which = "this minimum" if same else "a lower minimum than this, somewhere else,"
            findings.note(
                "solver",
                f"solver: {name} finds {which} in closed form, in {1e3 * short:.2g} ms a call where "
                f'{chosen.name} takes {1e3 * long:.2g} ms: write  solver = "{name}"  in the node'
                + ("" if same else ", if that is what is meant"),
            )
            return


def _seconds(solver: Solver, problem: Problem) -> float:
    """The time of the fastest of three calls, or of fewer where they take long."""
    times: list[float] = []
    while len(times) < 3 and sum(times) < _LONG:
        before = time.perf_counter()
        solver.solve(problem)
        times.append(time.perf_counter() - before)
    return min(times)
