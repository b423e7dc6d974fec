"""Newton's method for small equality-constrained problems, with a line search.

The step is shortened until a merit function has decreased enough (see `newton_step`).
Where the gradient is zero on the tangent space but the curvature is not positive, the step is along the
most negative curvature instead.

Convergence is quadratic: once the step is below tol·‖y‖, tol = eps^{2/3}, the error after taking it is
at rounding level, and it is the last one. A stationarity at rounding level, which an
ill-conditioned problem can reach with larger steps, ends the iteration as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..problem import Problem, flat
from ..solution import Solution, Status
from .iterative import Deadline, IterativeSolver, number
from .newton_step import LONGEST_STEP, MeritSearch, Step, newton_step
from .no_solution import Depth, least_violation
from .residual import LocalModel, Scales, local_model, norm

_RUNNING = -1
_ESCAPE = 0.1
_ROUNDINGS = 16


@dataclass(frozen=True, kw_only=True)
class Newton(IterativeSolver):
    """Solves  min f(x, y) over y subject to h(x, y) = 0  and the manifold's constraints, if any.

    Dense: O(m³) time and O(m²) memory for y of m entries, for problems of up to a few hundred. Finds
    a local minimum: a maximum or saddle point is left along a direction of negative curvature, also
    when it is hit exactly. One whose curvature is below √eps times the largest is left where the
    objective resolves that it falls, and one below eps^{3/4} (6e-6 in float32), or without curvature, as
    that of −y⁴ at 0, is not told from a minimum. f and h must be twice differentiable. Constraints may be
    dependent, as long as they are consistent. All items of a batch are iterated together, each until it
    is done.

    Args:
        max_iterations: Newton steps allowed.
        tolerance: length of the last step, relative to ‖y‖ there or at the start; None for eps^{2/3},
            4e-11 in float64 and 2e-5 in float32.
        max_time: seconds for one call, the whole batch; None for no limit. Looked at between steps.

    Status per item: CONVERGED; MAX_ITERATIONS; TIME_LIMIT; STALLED, where no step decreases the merit
    function; INFEASIBLE and UNBOUNDED (see `no_solution`); NON_FINITE, where f, h or a derivative is
    so at the start or an iterate.

    Source: Nocedal and Wright, *Numerical Optimization*, chapters 3, 17 and 18.
    """

    name = "newton"

    tolerance: float | None = number(None)

    def solve(self, problem: Problem, start: Tensor | None = None) -> Solution:
        """Solve every item from ``start``, which need not be feasible."""
        deadline = Deadline(self.max_time)
        y = (problem.start() if start is None else start).detach().clone()
        batch = problem.batch_size
        status = torch.full((batch,), _RUNNING, device=y.device)
        iterations = torch.zeros(batch, dtype=torch.long, device=y.device)
        if batch:
            run = _Run(problem, y, self.tolerance)
            for iteration in range(self.max_iterations + 1):
                outcome = run.advance(status == _RUNNING, last=iteration == self.max_iterations)
                iterations = torch.where(status == _RUNNING, iteration, iterations)
                status = torch.where(status == _RUNNING, outcome, status)
                running = status == _RUNNING
                if not bool(running.any()):
                    break
                if deadline.passed:
                    iterations = iterations + running.long()
                    status = torch.where(running, int(Status.TIME_LIMIT), status)
                    break
            status = run.verdict(status, deadline)
            y = run.y
        return Solution(y, status, iterations, self.name)


class _Run:
    """The iterates of a batch; what belongs to one call of `Newton.solve`."""

    def __init__(self, problem: Problem, start: Tensor, tolerance: float | None) -> None:
        self.problem = problem
        self.y = start
        self.eps = torch.finfo(start.dtype).eps
        self.tolerance = self.eps ** (2 / 3) if tolerance is None else tolerance
        self.size = self.start_size = norm(flat(start))
        self.depth: Depth | None = None
        self.search = MeritSearch(problem, self.size)
        self.infeasible = self.size != self.size

    def advance(self, active: Tensor, *, last: bool) -> Tensor:
        """One step of the active items; the status of each item after it, (B,), -1 to go on."""
        here = self.y
        model = local_model(self.problem, here)
        finite = model.finite
        if not bool(finite.all()):
            model = _zero_bad_items(model, finite)
        step = newton_step(self.problem, here, model)
        solved = torch.zeros_like(finite)
        if self.depth is None:
            self.depth = Depth(self.problem, here, model.value, model.gradient, step.change)
            solved = self._solved(model, step, _ROUNDINGS * self.eps)
        beyond = self.depth.beyond(here, model.value)
        size = norm(flat(self.y))
        self.size = torch.maximum(self.start_size, size)

        jacobian_norm = torch.linalg.matrix_norm(model.jacobian)
        feasible = norm(model.constraints) <= self.tolerance * jacobian_norm * self.size
        self.infeasible = torch.where(active, finite & ~feasible, self.infeasible)
        rounding = _ROUNDINGS * self.eps * (step.change + norm(model.gradient))
        short = self._short(model, step, size)
        rounded = (step.stationarity <= rounding) & rounding.isfinite()
        stationary = short | rounded | solved
        escaping = stationary & feasible & (step.lowest < 0)
        escape = step.escape * (_ESCAPE * torch.where(self.size > 0, self.size, 1)).unsqueeze(-1)
        # So weak a curvature may be the rounding of a singular minimum: then nothing is lower.
        weak = escaping & (step.lowest >= -(self.eps**0.5) * step.hessian_norm)
        if bool(weak.any()):
            escaping = escaping & (~weak | self.search.falls(here, model, step, escape))
        converged = stationary & feasible & ~escaping

        direction = torch.where(
            escaping.unsqueeze(-1),
            escape,
            _limit_length(step.direction, LONGEST_STEP * self.size.clamp_min(1)),
        )
        if last:
            outcome = torch.where(converged, int(Status.CONVERGED), int(Status.MAX_ITERATIONS))
        else:
            searching = active & finite & ~converged & ~beyond
            length = self.search.length(here, model, step, direction, searching, escaping)
            outcome = torch.where(length > 0, _RUNNING, int(Status.STALLED))
            outcome = torch.where(converged, int(Status.CONVERGED), outcome)
            # A short step removes all of h that lies in the range of Dh: the rest is there to stay.
            outcome = torch.where(short & ~feasible, int(Status.STALLED), outcome)
            # The last, quadratically convergent step is below what the merit function resolves.
            length = torch.where(converged & short, 1.0, length * ~converged)
            self._move(active & finite, length.unsqueeze(-1) * direction)
        fallen = self.depth.unbounded(here, model.value)
        outcome = torch.where(beyond, int(Status.STALLED), outcome)
        outcome = torch.where(fallen, int(Status.UNBOUNDED), outcome)
        return torch.where(finite, outcome, int(Status.NON_FINITE))

    def _short(self, model: LocalModel, step: Step, size: Tensor) -> Tensor:
        """Whether the step is short beside y, or beside the start if that goes with a small ∇L."""
        length = norm(step.direction)
        short = length <= self.tolerance * size
        perhaps = ~short & (length <= self.tolerance * self.size)
        # A solution y = 0 has no size of its own; but steps also get short towards a singularity.
        return short | (perhaps & self._solved(model, step, self.eps**0.5, perhaps))

    def _solved(
        self, model: LocalModel, step: Step, tolerance: float, items: Tensor | None = None
    ) -> Tensor:
        """Whether ∇L is small by the scale of the data, (B,), which y = 0 has none for."""
        if items is not None and not bool(items.any()):
            return items
        scales = Scales(self.problem, tolerance)
        pulled = (step.multipliers.unsqueeze(1) @ model.jacobian).squeeze(1)
        residual = model.gradient - pulled
        scales.measure(self.y, step.multipliers, residual, model.constraints)
        return scales.stationary(residual)

    def verdict(self, status: Tensor, deadline: Deadline) -> Tensor:
        """The status of each item, (B,), with INFEASIBLE for what contradictory constraints stopped."""
        self.infeasible = self.infeasible & (
            (status == int(Status.STALLED)) | (status == int(Status.MAX_ITERATIONS))
        )
        if not bool(self.infeasible.any()):
            return status
        nearest, hopeless = least_violation(self.problem, self.y, deadline)
        hopeless = hopeless & self.infeasible
        self._move(hopeless, flat(nearest - self.y))
        return torch.where(hopeless, int(Status.INFEASIBLE), status)

    def _move(self, items: Tensor, change: Tensor) -> None:
        moved = self.y + torch.where(items.unsqueeze(-1), change, 0.0).reshape(self.y.shape)
        self.y = moved


def _limit_length(direction: Tensor, longest: Tensor) -> Tensor:
    factor = longest / norm(direction).clamp_min(torch.finfo(direction.dtype).tiny)
    return direction * factor.clamp_max(1).unsqueeze(-1)


def _zero_bad_items(model: LocalModel, finite: Tensor) -> LocalModel:
    """The model with zeros for items that are not finite, which the factorisations would refuse."""
    parts = (model.value, model.gradient, model.constraints, model.jacobian)
    kept = [torch.where(finite.reshape(-1, *[1] * (part.dim() - 1)), part, 0.0) for part in parts]
    return LocalModel(*kept)
