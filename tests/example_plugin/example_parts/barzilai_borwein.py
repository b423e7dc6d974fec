"""Gradient descent on a manifold with the step lengths of Barzilai and Borwein.

Source: Iannazzo and Porcelli, *The Riemannian Barzilai-Borwein method with nonmonotone line search*.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddnkit import Problem, Solution, Status
from ddnkit.solvers import (
    Deadline,
    IterativeSolver,
    Scales,
    constraint_jacobian,
    least_squares_multipliers,
    number,
)

_RUNNING = -1
_FIRST_STEP = 0.1


@dataclass(frozen=True, kw_only=True)
class BarzilaiBorwein(IterativeSolver):
    """Solves  min f(x, y) over y on a manifold,  the whole batch at once.

    Args:
        tolerance: largest backward error of ∇L = 0; None for 1e-13 in float64 and 1e-5 in float32.
    """

    name = "barzilai_borwein"
    max_iterations: int = 1000
    tolerance: float | None = number(None)

    def unsupported(self, problem: Problem) -> str | None:
        """Needs a manifold."""
        return "it has no manifold" if problem.manifold is None else None

    def solve(self, problem: Problem, start: Tensor | None = None) -> Solution:
        """Step until each item has ended."""
        deadline = Deadline(self.max_time)
        manifold = problem.manifold
        y = manifold.project((problem.start() if start is None else start).detach())
        tolerance = self.tolerance
        if tolerance is None:
            tolerance = 1e-13 if y.dtype == torch.float64 else 1e-5
        scales = Scales(problem, tolerance)
        status = torch.full((len(y),), _RUNNING, device=y.device)
        iterations = torch.zeros_like(status)
        step = y.new_full((len(y), 1), _FIRST_STEP)
        before: tuple[Tensor, Tensor] | None = None
        for iteration in range(self.max_iterations + 1):
            nu, residual = self._stationarity(problem, y)
            h = manifold.constraint(y)
            scales.refresh(iteration, y, nu, residual, h)
            running = status == _RUNNING
            done = scales.confirm(y, nu, residual, h, of=running)
            finite = residual.isfinite().all(dim=-1)
            status = torch.where(running & done, int(Status.CONVERGED), status)
            status = torch.where(running & ~finite, int(Status.NON_FINITE), status)
            running = status == _RUNNING
            if not bool(running.any()) or deadline.passed:
                break
            if before is not None:
                s, u = (
                    now - then for now, then in zip((y.flatten(1), residual), before, strict=True)
                )
                bent = (s * u).sum(dim=-1, keepdim=True).abs()
                longer = s.square().sum(dim=-1, keepdim=True) / bent
                step = torch.where((bent > 0) & longer.isfinite(), longer, step)
            before = (y.flatten(1), residual)
            change = torch.where(running.unsqueeze(-1), -step * residual, 0.0).reshape(y.shape)
            y = torch.where(
                running.reshape(-1, *[1] * (y.dim() - 1)), manifold.retract(y, change), y
            )
            iterations = iterations + running
        ended = Status.TIME_LIMIT if deadline.passed else Status.MAX_ITERATIONS
        status = torch.where(status == _RUNNING, int(ended), status)
        return Solution(y, status, iterations, self.name)

    @staticmethod
    def _stationarity(problem: Problem, y: Tensor) -> tuple[Tensor, Tensor]:
        """ν (B, p) by least squares, and ∇L = ∇f − Aᵀν (B, m)."""
        gradient = problem.gradient(y).flatten(1)
        jacobian = constraint_jacobian(problem, y)
        nu = least_squares_multipliers(jacobian, gradient)
        return nu, gradient - (nu.unsqueeze(1) @ jacobian).squeeze(1)
