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

    def project(self, y: Tensor) -> Tensor:
        """Each column divided by its length."""
        return y / torch.linalg.vector_norm(y, dim=-2, keepdim=True)

    def random(
        self, shape: tuple[int, ...], *, generator: Generator | None = None, like: Tensor
    ) -> Tensor:
        """Uniformly distributed columns."""
        return self.project(ddnkit.gaussian(shape, generator, like))


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
