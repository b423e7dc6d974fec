"""Newton's method for small equality-constrained problems, with a line search.

The step (see `kkt_step`) is shortened until the augmented Lagrangian with the multipliers ν⁺ of the
step,
    M(y) = f(y) − ν⁺ᵀh(y) + (ρ/2)‖h(y)‖²,
has decreased enough. It is smooth, so that near the solution the whole step passes (an ℓ1 merit
function may refuse it, the Maratos effect). Its slope along d = d_n + d_t is
    (g − Aᵀν⁺)ᵀd + ρ hᵀA d,     hᵀA d = −‖P_A h‖² ≤ 0,
and ρ is raised, per problem, until the slope is negative. A trial point outside the domain (M infinite
or NaN) counts as no decrease. Where the gradient is zero on the tangent space but the curvature is
not positive, the step is along the most negative curvature instead.

Convergence is quadratic: once the step is below tol·‖y‖, tol = eps^{2/3}, the error after taking it is
at rounding level, and it is the last one. A stationarity at rounding level, which an
ill-conditioned problem can reach with larger steps, ends the iteration as well.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..problem import Problem, flat
from ..solution import Solution, Status
from ..solver import Solver
from .kkt_step import LocalModel, Step, local_model, newton_step

_RUNNING = -1
_ARMIJO = 1e-4
_HALVINGS = 50
_LONGEST_STEP = 10.0
_ESCAPE = 0.1
_ROUNDINGS = 16


class Newton(Solver):
    """Solves  min f(x, y) over y subject to h(x, y) = 0  and the manifold's constraints, if any.

    Dense: O(m³) time and O(m²) memory for y of m entries, for problems of up to a few hundred. Finds
    a local minimum; f and h must be twice differentiable. Constraints may be dependent, as long as
    they are consistent. All items of a batch are iterated together, each until it is done.

    Args:
        max_iterations: Newton steps allowed.
        tolerance: length of the last step, relative to the largest ‖y‖ so far; None for eps^{2/3}.

    Status per item: CONVERGED; MAX_ITERATIONS; STALLED, where no step decreases the merit function
    (constraints that contradict each other end here); NON_FINITE, where f, h or a derivative is so at
    the start or an iterate, or y grows beyond all bounds.

    Source: Nocedal and Wright, *Numerical Optimization*, chapters 3, 17 and 18.
    """

    name = "newton"

    def __init__(self, *, max_iterations: int = 100, tolerance: float | None = None) -> None:
        self.max_iterations = max_iterations
        self.tolerance = tolerance

    def solve(self, problem: Problem, start: Tensor | None = None) -> Solution:
        """Solve every item from ``start``, which need not be feasible."""
        y = (problem.start() if start is None else start).detach().clone()
        batch = problem.batch_size
        status = torch.full((batch,), _RUNNING, device=y.device)
        iterations = torch.zeros(batch, dtype=torch.long, device=y.device)
        if batch:
            search = _Search(problem, y, self.tolerance)
            for iteration in range(self.max_iterations + 1):
                outcome = search.advance(status == _RUNNING, last=iteration == self.max_iterations)
                iterations = torch.where(status == _RUNNING, iteration, iterations)
                status = torch.where(status == _RUNNING, outcome, status)
                if not bool((status == _RUNNING).any()):
                    break
            y = search.y
        return Solution(y, status, iterations, self.name)


class _Search:
    """The iterates of a batch; what belongs to one call of `Newton.solve`."""

    def __init__(self, problem: Problem, start: Tensor, tolerance: float | None) -> None:
        self.problem = problem
        self.y = start
        self.eps = torch.finfo(start.dtype).eps
        self.tolerance = self.eps ** (2 / 3) if tolerance is None else tolerance
        self.size = _norm(flat(start))
        self.bound = (1 + self.size) / self.eps
        self.penalty = torch.zeros_like(self.size)

    def advance(self, active: Tensor, *, last: bool) -> Tensor:
        """One step of the active items; the status of each item after it, (B,), -1 to go on."""
        model = local_model(self.problem, self.y)
        finite = _finite(model)
        if not bool(finite.all()):
            model = _zeroed(model, finite)
        step = newton_step(self.problem, self.y, model)
        size = _norm(flat(self.y))
        self.size = torch.maximum(self.size, size)

        jacobian_norm = torch.linalg.matrix_norm(model.jacobian)
        feasible = _norm(model.constraints) <= self.tolerance * jacobian_norm * self.size
        rounding = _ROUNDINGS * self.eps * (step.hessian_norm * size + _norm(model.gradient))
        short = _norm(step.direction) <= self.tolerance * self.size
        stationary = short | (step.stationarity <= rounding)
        escaping = stationary & feasible & (step.lowest < 0)
        converged = stationary & feasible & ~escaping

        direction = torch.where(
            escaping.unsqueeze(-1),
            step.escape * (_ESCAPE * torch.where(self.size > 0, self.size, 1)).unsqueeze(-1),
            _limited(step.direction, _LONGEST_STEP * self.size.clamp_min(1)),
        )
        if last:
            outcome = torch.where(converged, int(Status.CONVERGED), int(Status.MAX_ITERATIONS))
        else:
            length = self._line_search(model, step, direction, active & finite & ~converged)
            outcome = torch.where(length > 0, _RUNNING, int(Status.STALLED))
            outcome = torch.where(converged, int(Status.CONVERGED), outcome)
            # A short step removes all of h that lies in the range of Dh: the rest is there to stay.
            outcome = torch.where(short & ~feasible, int(Status.STALLED), outcome)
            # The last, quadratically convergent step is below what the merit function resolves.
            length = torch.where(converged & short, 1.0, length * ~converged)
            self._move(active & finite, length.unsqueeze(-1) * direction)
        diverged = _norm(flat(self.y)) > self.bound
        return torch.where(finite & ~diverged, outcome, int(Status.NON_FINITE))

    def _move(self, items: Tensor, change: Tensor) -> None:
        moved = self.y + torch.where(items.unsqueeze(-1), change, 0.0).reshape(self.y.shape)
        self.y = moved

    def _line_search(
        self, model: LocalModel, step: Step, direction: Tensor, searching: Tensor
    ) -> Tensor:
        """The largest of 1, ½, ¼, … that decreases the merit function, or 0; shape (B,)."""
        h, nu = model.constraints, step.multipliers
        adjoint = model.gradient - (nu.unsqueeze(1) @ model.jacobian).squeeze(1)
        slope = (adjoint * direction).sum(dim=-1)
        change = (h * (model.jacobian @ direction.unsqueeze(-1)).squeeze(-1)).sum(dim=-1)
        # Twice what makes the slope zero, and never less than before.
        needed = torch.where((slope > 0) & (change < 0), -2 * slope / change, 0.0)
        self.penalty = torch.maximum(self.penalty, needed)
        slope = slope + self.penalty * change
        # Along an escape the slope is zero and the decrease is of second order.
        curved = 0.5 * step.lowest * direction.square().sum(dim=-1)
        expected = torch.where(slope < 0, slope, torch.minimum(slope, curved))

        before = self._merit(model.value, h, nu)
        magnitude = model.value.abs() + (nu * h).sum(dim=-1).abs() + before.abs()
        noise = _ROUNDINGS * self.eps * magnitude
        length = searching.to(direction.dtype)
        accepted = ~searching
        for _ in range(_HALVINGS):
            trial = self.y + (length.unsqueeze(-1) * direction).reshape(self.y.shape)
            with torch.no_grad():
                value = self.problem.objective(trial)
                constraints = self.problem.all_constraints(trial)
            after = self._merit(value, h * 0 if constraints is None else constraints, nu)
            decreased = after <= before + _ARMIJO * length * expected + noise
            accepted = accepted | (decreased & after.isfinite())
            if bool(accepted.all()):
                break
            length = torch.where(accepted, length, length / 2)
        return torch.where(accepted, length, 0.0)

    def _merit(self, value: Tensor, h: Tensor, nu: Tensor) -> Tensor:
        return value - (nu * h).sum(dim=-1) + self.penalty / 2 * h.square().sum(dim=-1)


def _norm(vector: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vector, dim=-1)


def _limited(direction: Tensor, longest: Tensor) -> Tensor:
    factor = longest / _norm(direction).clamp_min(torch.finfo(direction.dtype).tiny)
    return direction * factor.clamp_max(1).unsqueeze(-1)


def _finite(model: LocalModel) -> Tensor:
    finite = model.value.isfinite() & model.gradient.isfinite().all(dim=-1)
    finite = finite & model.constraints.isfinite().all(dim=-1)
    return finite & model.jacobian.isfinite().flatten(1).all(dim=-1)


def _zeroed(model: LocalModel, finite: Tensor) -> LocalModel:
    """The model with zeros for items that are not finite, which the factorisations would refuse."""
    parts = (model.value, model.gradient, model.constraints, model.jacobian)
    kept = [torch.where(finite.reshape(-1, *[1] * (part.dim() - 1)), part, 0.0) for part in parts]
    return LocalModel(*kept)
