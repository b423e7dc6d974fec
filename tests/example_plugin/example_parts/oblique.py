"""The oblique manifold, matrices whose columns have unit length, and a node on it."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

import ddnkit


class Oblique(ddnkit.Manifold):
    """Matrices (..., d, C) with columns of unit length: C spheres side by side."""

    name = "oblique"
    event_dims = 2

    def constraint(self, y: Tensor) -> Tensor:
        """½(‖yⱼ‖² − 1) for each column, (..., C)."""
        return (y.square().sum(dim=-2) - 1) / 2

    def constraint_jacobian(self, y: Tensor) -> Tensor:
        """Row j holds column j of y, and zeros elsewhere, (..., C, d C)."""
        units = torch.eye(y.shape[-1], dtype=y.dtype, device=y.device)
        return (y.unsqueeze(-3) * units.unsqueeze(-2)).flatten(-2)

    def infeasibility(self, y: Tensor) -> Tensor:
        """The largest departure of a column's length from 1, (...)."""
        return (torch.linalg.vector_norm(y, dim=-2) - 1).abs().amax(dim=-1)

    def project(self, y: Tensor) -> Tensor:
        """Each column divided by its length."""
        return y / torch.linalg.vector_norm(y, dim=-2, keepdim=True)

    def retract(self, y: Tensor, tangent: Tensor) -> Tensor:
        """The projection of y + tangent."""
        return self.project(y + tangent)

    def multipliers(self, y: Tensor, gradient: Tensor) -> Tensor:
        """⟨yⱼ, gⱼ⟩ for each column, (..., 1, C)."""
        return (y * gradient).sum(dim=-2, keepdim=True)

    def normal(self, y: Tensor, multipliers: Tensor) -> Tensor:
        """σⱼ yⱼ."""
        return multipliers * y

    def constraint_curvature(self, y: Tensor, multipliers: Tensor, direction: Tensor) -> Tensor:
        """σⱼ zⱼ."""
        return multipliers * direction

    def random(
        self, shape: tuple[int, ...], *, generator: Generator | None = None, like: Tensor
    ) -> Tensor:
        """Uniformly distributed columns."""
        drawn = torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
        return self.project(drawn)


class RepelledColumns(ddnkit.DeclarativeNode):
    """Unit columns near those of W that repel each other:  min ‖y − W‖² + ‖yᵀy‖²/10."""

    input_dims = (2,)
    manifold = Oblique()
    solver = "barzilai_borwein"
    bench_sizes = ((6, 3),)

    def objective(self, W: Tensor, y: Tensor) -> Tensor:
        """Distance and repulsion."""
        return (y - W).square().sum() + (y.mT @ y).square().sum() / 10

    def initial_point(self, W: Tensor) -> Tensor:
        """The columns of W."""
        return self.manifold.project(W)

    def sample_inputs(self) -> tuple[Tensor]:
        """A random W."""
        return (torch.randn(4, 3),)

    def bench_inputs(self, d: int, C: int) -> tuple[Tensor]:
        """A random W of that size, alone in a batch."""
        return (torch.randn(1, d, C),)
