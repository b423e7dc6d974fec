"""The unit sphere S^{n−1} = {y in Rⁿ : yᵀy = 1}.

`Sphere.constraint` is yᵀy − 1, with gradient 2y. As on the Stiefel manifold (of which this is the
case C = 1) the multiplier field uses j = ½(yᵀy − 1): ∇j = y, ∇²j = I, and
    σ(y) = ⟨∇f, y⟩,      ∇f − σ y  is tangent.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ddnkit import Manifold

from .support import gaussian


class Sphere(Manifold):
    """Unit vectors: yᵀy = 1, y of shape (..., n). Multipliers have shape (..., 1).

    Example: ``Sphere().project(x)`` with x (8, 3) gives eight unit vectors (8, 3).
    """

    name = "sphere"
    event_dims = 1

    def constraint(self, y: Tensor) -> Tensor:
        """yᵀy − 1, shape (..., 1)."""
        return _inner(y, y) - 1

    def constraint_jacobian(self, y: Tensor) -> Tensor:
        """2yᵀ, shape (..., 1, n)."""
        return 2 * y.unsqueeze(-2)

    def infeasibility(self, y: Tensor) -> Tensor:
        """|yᵀy − 1|, shape (...)."""
        return (_inner(y, y) - 1).abs().squeeze(-1)

    def project(self, y: Tensor) -> Tensor:
        """y / ‖y‖; the first unit vector where y = 0, to which every point is nearest."""
        # Divided by its largest entry first, a vector of any finite size keeps its direction.
        largest = y.abs().amax(dim=-1, keepdim=True)
        first = torch.zeros_like(y)
        first[..., 0] = 1
        scaled = torch.where(largest > 0, y / torch.where(largest > 0, largest, 1), first)
        return scaled / torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)

    def retract(self, y: Tensor, tangent: Tensor) -> Tensor:
        """(y + tangent) / ‖y + tangent‖."""
        return self.project(y + tangent)

    def multipliers(self, y: Tensor, gradient: Tensor) -> Tensor:
        """σ(y) = ⟨∇f, y⟩, shape (..., 1)."""
        return _inner(gradient, y)

    def normal(self, y: Tensor, multipliers: Tensor) -> Tensor:
        """σ y, shape (..., n)."""
        return multipliers * y

    def constraint_curvature(self, y: Tensor, multipliers: Tensor, direction: Tensor) -> Tensor:
        """σ z for the direction z, shape (..., n)."""
        return multipliers * direction

    def random(
        self, shape: tuple[int, ...], *, generator: Generator | None = None, like: Tensor
    ) -> Tensor:
        """A uniformly distributed unit vector of the given shape (..., n)."""
        return self.project(gaussian(shape, generator, like))


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=-1, keepdim=True)
