"""Centres, of points and of a polytope, that an iteration finds."""

from __future__ import annotations

import torch
from torch import Tensor

from .known_problem import KnownProblem


class PseudoHuberAverage(KnownProblem):
    """min Σ α²(√(1 + (y−xᵢ)²/α²) − 1), α a number and not a tensor: a robust mean."""

    number = 6
    input_dims = (1, None)

    def objective(self, x: Tensor, alpha: float, y: Tensor) -> Tensor:
        """Σ α²(√(1 + (y−xᵢ)²/α²) − 1)."""
        return (alpha**2 * ((1 + (y - x) ** 2 / alpha**2).sqrt() - 1)).sum()

    def initial_point(self, x: Tensor, alpha: float) -> Tensor:
        """The median."""
        return x.median()

    def jacobians(self, x: Tensor, alpha: float, y: Tensor) -> tuple[Tensor, ...]:
        """wᵢ/Σw with wᵢ = (1 + (y−xᵢ)²/α²)^{−3/2}."""
        w = (1 + (y - x) ** 2 / alpha**2) ** -1.5
        return (w / w.sum(),)

    def sample_inputs(self) -> tuple[Tensor, float]:
        """x normal in R⁵, α = 0.7."""
        return torch.randn(5, dtype=torch.float64), 0.7


class AnalyticCentre(KnownProblem):
    """min −Σ log(bᵢ − aᵢᵀy): the analytic centre of a polytope; s = b − Ay, H = Aᵀ diag(s⁻²) A."""

    number = 8
    input_dims = (2, 1)

    def objective(self, A: Tensor, b: Tensor, y: Tensor) -> Tensor:
        """−Σ log(bᵢ − aᵢᵀy), infinite outside the polytope."""
        slack = b - A @ y
        return -torch.where(slack > 0, slack, torch.nan).log().sum()

    def initial_point(self, A: Tensor, b: Tensor) -> Tensor:
        """The origin, inside for b > 0."""
        return A.new_zeros(A.shape[1])

    def jacobians(self, A: Tensor, b: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """∂y/∂b = H⁻¹Aᵀ diag(s⁻²); ∂y/∂A by differentiating Aᵀs⁻¹ = 0."""
        s = b - A @ y
        H = A.T @ torch.diag(s**-2) @ A
        wrt_b = torch.linalg.solve(H, A.T @ torch.diag(s**-2))
        # d(Aᵀs⁻¹) = dAᵀ s⁻¹ + Aᵀ diag(s⁻²)(dA y + A dy) − … = 0 for b fixed.
        n = len(y)
        eye = torch.eye(n, dtype=A.dtype)
        direct = torch.einsum("kj,i->kij", eye, 1 / s)
        through = torch.einsum("ik,i,j->kij", A, s**-2, y)
        wrt_A = -torch.linalg.solve(H, (direct + through).reshape(n, -1)).reshape(n, *A.shape)
        return wrt_A, wrt_b

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """A box in R² cut by two random half-planes."""
        box = torch.cat([torch.eye(2), -torch.eye(2)]).double()
        A = torch.cat([box, torch.randn(2, 2, dtype=torch.float64)])
        return A, 1 + torch.rand(6, dtype=torch.float64)
