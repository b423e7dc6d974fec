"""Whether a solver of the node's manifold finds the minimum in closed form, and sooner than its own."""

from __future__ import annotations

import time

import torch

from ..problem import Problem, flat
from ..solution import Status
from ..solver import Solver, as_solver
from .findings import Findings

#: Seconds of calls after which there are no more, to tell how long one takes.
_LONG = 0.5


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
            found = None if solver.unsupported(solved.problem) else solver.solve(solved.problem)
        # Another objective, or one that raises where it was not meant to be looked at.
        except Exception:
            continue
        if found is None or set(found.statuses()) != {Status.CONVERGED}:
            continue
        here, there = (solved.problem.objective(y) for y in (solved.solution.y, found.y))
        eps = torch.finfo(here.dtype).eps
        if found.uniqueness is not None and bool((found.uniqueness < eps**0.5).any()):
            continue  # no solver makes that one solution
        size = 1e3 * eps * torch.maximum(here.abs(), there.abs())
        lower = bool(torch.all(there <= here + size))
        # Of an orthogonal matrix, say, of the other determinant: a minimum that may not be what is meant.
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
    """The least of three calls, or of fewer where they take long."""
    times: list[float] = []
    while len(times) < 3 and sum(times) < _LONG:
        before = time.perf_counter()
        solver.solve(problem)
        times.append(time.perf_counter() - before)
    return min(times)
