"""Fixed-point iteration y ← T(x, y), with Anderson's acceleration.

Plain iteration contracts by the spectral radius of D_yT a step. Anderson's mixing takes the
combination y = Σ αᵢ T(yᵢ), Σ αᵢ = 1, of the last points whose residuals combine to the least norm,
which for a linear map is GMRES. Where it does not decrease the residual the plain step is taken.

Source: Walker and Ni, *Anderson acceleration for fixed-point iterations*.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..problem import Problem, flat
from ..solution import Solution, Status
from .iterative import Deadline, IterativeSolver, number, whole_number

_RUNNING = -1
_PATIENCE = 50
_HELPLESS = 3


@dataclass(frozen=True, kw_only=True)
class Picard(IterativeSolver):
    """Solves  y = T(x, y)  for nodes with a `fixed_point` map, the whole batch at once.

    Args:
        max_iterations: evaluations of T allowed.
        tolerance: ‖T(y) − y‖ relative to ‖y‖ + ‖T(y)‖; None for 1e-12 in float64, 1e-6 in float32.
        memory: points that are mixed; 0 for plain iteration.
        max_time: seconds for the whole call; None for no limit.

    Status per item: CONVERGED; MAX_ITERATIONS; TIME_LIMIT; STALLED, where the residual has not
    decreased for fifty iterations; NON_FINITE; UNBOUNDED, where y grows beyond all bounds.
    """

    name = "picard"

    max_iterations: int = 1000
    tolerance: float | None = number(None)
    memory: int = whole_number(5)

    def unsupported(self, problem: Problem) -> str | None:
        """Needs a fixed-point map."""
        if problem.node.fixed_point is None:
            return "it has no `fixed_point` map to iterate"
        return None

    def solve(self, problem: Problem, start: Tensor | None = None) -> Solution:
        """Iterate from ``start``; an item that has ended keeps its best point."""
        deadline = Deadline(self.max_time)
        y = (problem.start() if start is None else start).detach().clone()
        shape, x = y.shape, flat(y)
        eps = torch.finfo(x.dtype).eps
        tolerance = self.tolerance
        if tolerance is None:
            tolerance = 1e-12 if x.dtype == torch.float64 else 1e-6
        best, best_size = x.clone(), torch.full_like(x[:, 0], torch.inf)
        status = torch.full((len(x),), _RUNNING, device=x.device)
        iterations = torch.zeros(len(x), dtype=torch.long, device=x.device)
        since = torch.zeros_like(iterations)
        bound = (1 + x.norm(dim=-1)) / eps
        images: list[Tensor] = []
        residuals: list[Tensor] = []
        for iteration in range(self.max_iterations + 1):
            image = _image(problem, x.reshape(shape))
            residual = image - x
            size = residual.norm(dim=-1) / (x.norm(dim=-1) + image.norm(dim=-1)).clamp_min(eps)
            better = size < best_size
            since = torch.where(better, 0, since + 1)
            running = status == _RUNNING
            best = torch.where((better & running).unsqueeze(-1), image, best)
            best_size = torch.where(better & running, size, best_size)
            outcome = torch.full_like(status, _RUNNING)
            if iteration == self.max_iterations:
                outcome[:] = int(Status.MAX_ITERATIONS)
            if deadline.passed:
                outcome[:] = int(Status.TIME_LIMIT)
            outcome = torch.where(since > _PATIENCE, int(Status.STALLED), outcome)
            outcome = torch.where(image.norm(dim=-1) > bound, int(Status.UNBOUNDED), outcome)
            outcome = torch.where(~image.isfinite().all(-1), int(Status.NON_FINITE), outcome)
            outcome = torch.where(size <= tolerance, int(Status.CONVERGED), outcome)
            iterations = torch.where(running, iteration, iterations)
            status = torch.where(running, outcome, status)
            if not bool((status == _RUNNING).any()):
                break
            images, residuals = [*images, image][-self.memory - 1 :], [*residuals, residual]
            residuals = residuals[-self.memory - 1 :]
            mixed = _mix(images, residuals) if len(images) > 1 else image
            # Mixing has no guarantee away from the solution: where it has not helped, the plain step.
            x = torch.where((since > _HELPLESS).unsqueeze(-1), image, mixed)
            x = torch.where(x.isfinite().all(-1, keepdim=True), x, image.nan_to_num(0, 0, 0))
        return Solution(best.reshape(shape), status, iterations, self.name)


def _image(problem: Problem, y: Tensor) -> Tensor:
    """T(y), (B, m)."""
    with torch.no_grad():
        image = problem.fixed_point(y)
    if image.shape != y.shape:
        raise InputError(
            f"{type(problem.node).__name__}.fixed_point must return a tensor of the shape of y, "
            f"{tuple(y.shape[1:])}; it returned {tuple(image.shape[1:])}"
        )
    return flat(image)


def _mix(images: list[Tensor], residuals: list[Tensor]) -> Tensor:
    """Σ αᵢ T(yᵢ) with the least ‖Σ αᵢ rᵢ‖, Σ αᵢ = 1, by differences to the last."""
    dR = torch.stack([r - residuals[-1] for r in residuals[:-1]], dim=-1)
    dT = torch.stack([t - images[-1] for t in images[:-1]], dim=-1)
    gram = (dR.mT @ dR).nan_to_num(0, 0, 0)
    right = -(dR.mT @ residuals[-1].unsqueeze(-1)).nan_to_num(0, 0, 0)
    weights = torch.linalg.pinv(gram, hermitian=True) @ right
    return images[-1] + (dT @ weights).squeeze(-1)
