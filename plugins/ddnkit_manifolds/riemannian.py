"""What solvers on manifolds have in common: limits, what they decline, how they judge their progress."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddnkit import Problem, Status
from ddnkit.solvers import Deadline, IterativeSolver, number, reason_to_decline

#: Solvers iterate to this part of their tolerance. A solution is then one still when it is started
#: from, where the scale that gradients are relative to may be smaller than at the first start.
GOAL = 0.25
_RUNNING = -1
_POWER_ITERATIONS = 8


@dataclass(frozen=True, kw_only=True)
class RiemannianSolver(IterativeSolver):
    """Solves  min f(x, y) over y on a manifold,  any `ddnkit.Manifold`, with its embedded gradient.

    Args:
        gradient_tolerance: largest norm of the Riemannian gradient, relative to
            ‖∇f(y₀)‖ + ‖∇²f(y₀) y₀‖; None for what each solver names.
    """

    gradient_tolerance: float | None = number(None)

    def unsupported(self, problem: Problem) -> str | None:
        """Needs a manifold and no further constraints."""
        return reason_to_decline(problem)


class Progress:
    """The batch during a solve; an item that has ended keeps its point, status and iteration.

    Args:
        max_time: seconds from now until the `deadline`; None for no limit.

    Attributes:
        y: (B, *y), the best point checked so far; the start of an item that never was finite.
        norm: (B,), its tangent gradient norm.
        tolerance: (B,), the largest tangent gradient norm that counts as converged.
        status, iterations: (B,), as in `ddnkit.Solution`.
    """

    def __init__(
        self,
        problem: Problem,
        start: Tensor,
        relative_tolerance: float,
        max_time: float | None = None,
    ) -> None:
        self.deadline = Deadline(max_time)
        batch, device = problem.batch_size, start.device
        self.y = start
        self.tolerance = relative_tolerance * gradient_scale(problem, start)
        self.objective = torch.full((batch,), torch.inf, dtype=start.dtype, device=device)
        self.norm = torch.full_like(self.objective, torch.inf)
        self.status = torch.full((batch,), _RUNNING, dtype=torch.long, device=device)
        self.iterations = torch.zeros(batch, dtype=torch.long, device=device)

    @property
    def active(self) -> Tensor:
        """(B,), True where the item has not ended."""
        return self.status == _RUNNING

    def end(self, items: Tensor, status: Status, iteration: int) -> None:
        """End those of ``items`` that are still active; CONVERGED where within the tolerance."""
        ending = items & self.active
        good = (self.norm <= self.tolerance) & (status != Status.NON_FINITE)
        outcome = torch.where(good, int(Status.CONVERGED), int(status))
        self.status = torch.where(ending, outcome, self.status)
        self.iterations = torch.where(ending, iteration, self.iterations)

    def check(self, y: Tensor, value: Tensor, gradient: Tensor, iteration: int) -> Tensor:
        """Take over the better points and end the items that converged or left the domain.

        Args:
            y: (B, *y), the iterates.
            value: (B,), the objective there.
            gradient: (B, *y), its tangent gradient.
            iteration: the number of iterations done.

        Returns:
            How far each objective lies above the best before, in roundings, (B,); negative where it
            has decreased.
        """
        norm = item_norm(gradient)
        finite = value.isfinite() & norm.isfinite()
        self.end(~finite, Status.NON_FINITE, iteration)
        rounding = torch.finfo(value.dtype).eps * self.objective.abs()
        rise = torch.where(self.objective.isinf(), -1, (value - self.objective) / rounding)
        # At the rounding level of f the gradient is the better judge.
        done = finite & (norm <= (GOAL if iteration else 1.0) * self.tolerance)
        better = self.active & (done | (value < self.objective))
        self.y = torch.where(per_item(better, y), y, self.y)
        self.objective = torch.where(better, value, self.objective)
        self.norm = torch.where(better, norm, self.norm)
        self.end(done, Status.CONVERGED, iteration)
        return rise

    def take_over(self, index: int, one: Progress) -> None:
        """Copy the state of a batch of one to the item ``index``."""
        self.y = self.y.index_copy(0, torch.tensor([index], device=self.y.device), one.y)
        self.status[index] = one.status[0]
        self.iterations[index] = one.iterations[0]


def curvature_bound(problem: Problem, y: Tensor) -> Tensor:
    """max(‖Π(∇²f − Σᵢ σᵢ ∇²jᵢ)Π‖, ‖∇f‖/‖y‖) at y, shape (B,): the step size is its inverse.

    The first is the Hessian of the Lagrangian on the tangent space, by power iteration from a fixed
    vector: a few percent low, which the stability margin of a gradient step allows for.
    """
    manifold = problem.manifold
    gradient = problem.gradient(y)
    multipliers = manifold.multipliers(y, gradient)
    drawn = torch.randn(y.shape, generator=torch.Generator().manual_seed(0), dtype=y.dtype)
    z = manifold.tangent(y, drawn.to(y.device))
    tiny = torch.finfo(y.dtype).tiny
    for _ in range(_POWER_ITERATIONS):
        z = z / per_item(item_norm(z).clamp_min(tiny), z)
        curvature = manifold.constraint_curvature(y, multipliers, z)
        z = manifold.tangent(y, problem.hessian_vector(y, z) - curvature)
    slope = item_norm(gradient) / point_size(y)
    return torch.maximum(item_norm(z), slope).clamp_min(tiny)


def in_dtype(problem: Problem, dtype: torch.dtype) -> Problem:
    """The same problem with its floating-point inputs in ``dtype``, cut off from any graph."""

    def convert(x: object) -> object:
        if not isinstance(x, Tensor):
            return x
        return x.detach().to(dtype) if x.is_floating_point() else x

    return problem.with_inputs([convert(x) for x in problem.inputs])


def per_item(values: Tensor, like: Tensor) -> Tensor:
    """(B,) reshaped to multiply a tensor of shape (B, ...)."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


def item_norm(y: Tensor) -> Tensor:
    """Euclidean norm of each item of (B, ...), shape (B,)."""
    return torch.linalg.vector_norm(y.flatten(1), dim=1)


def point_size(y: Tensor) -> Tensor:
    """`item_norm`, and 1 at the origin, which has no size of its own."""
    size = item_norm(y)
    return torch.where(size > 0, size, 1.0)


def gradient_scale(problem: Problem, y: Tensor) -> Tensor:
    """‖∇f(y)‖ + ‖∇²f(y) y‖, shape (B,): what a tangent gradient is small against.

    The first term alone would vanish at the unconstrained minimum of f. The second is how much the
    gradient changes over a distance of the size of y.
    """
    return item_norm(problem.gradient(y)) + item_norm(problem.hessian_vector(y, y))
