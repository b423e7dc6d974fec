"""Several points of one manifold as a single one, with the copies in front: (k, *y)."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ddnkit import Manifold


class Copies(Manifold):
    """k points of a manifold, y of shape (..., k, *point): the power of it. Multipliers are (..., k, *σ).

    Args:
        manifold: of each of them.

    Example: ``Copies(Stiefel())`` for a y of shape (4, 5, 2), four orthonormal frames of one objective.
    """

    name = "copies"

    def __init__(self, manifold: Manifold):
        self.manifold = manifold
        self.event_dims = manifold.event_dims + 1
        self.tall = manifold.tall

    def constraint(self, y: Tensor) -> Tensor:
        """Of each, end to end."""
        return self.manifold.constraint(y).flatten(-2)

    def constraint_jacobian(self, y: Tensor) -> Tensor:
        """Of each, in blocks."""
        return _blocks(self.manifold.constraint_jacobian(y))

    def vertical(self, y: Tensor) -> Tensor | None:
        """Of each, in blocks."""
        found = self.manifold.vertical(y)
        if found is None:
            return None
        dims = self.manifold.event_dims
        rows = _blocks(found.flatten(-dims) if dims else found.unsqueeze(-1))
        return rows.reshape(*rows.shape[:-1], *y.shape[y.ndim - self.event_dims :])

    def infeasibility(self, y: Tensor) -> Tensor:
        """The largest."""
        return self.manifold.infeasibility(y).amax(dim=-1)

    def project(self, y: Tensor) -> Tensor:
        """Of each."""
        return self.manifold.project(y)

    def point_of(self, x: Tensor) -> Tensor | None:
        """Of each."""
        return self.manifold.point_of(x)

    def free_of(self, weight: Tensor) -> Tensor:
        """Of each."""
        return self.manifold.free_of(weight)

    def multipliers(self, y: Tensor, gradient: Tensor) -> Tensor:
        """Of each, (..., k, *σ)."""
        return self.manifold.multipliers(y, gradient)

    def normal(self, y: Tensor, multipliers: Tensor) -> Tensor:
        """Of each."""
        return self.manifold.normal(y, multipliers)

    def constraint_curvature(self, y: Tensor, multipliers: Tensor, direction: Tensor) -> Tensor:
        """Of each."""
        return self.manifold.constraint_curvature(y, multipliers, direction)

    def tangent(self, y: Tensor, vector: Tensor) -> Tensor:
        """Of each."""
        return self.manifold.tangent(y, vector)

    def less_normal(self, vector: Tensor, y: Tensor, multipliers: Tensor) -> Tensor:
        """Of each."""
        return self.manifold.less_normal(vector, y, multipliers)

    def retract(self, y: Tensor, tangent: Tensor) -> Tensor:
        """Of each."""
        return self.manifold.retract(y, tangent)

    def transport(self, y: Tensor, to: Tensor, vector: Tensor) -> Tensor:
        """Of each."""
        return self.manifold.transport(y, to, vector)

    def inner(self, y: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """The sum."""
        return self.manifold.inner(y, u, v).sum(dim=-1)

    def gradient(self, y: Tensor, gradient: Tensor) -> Tensor:
        """Of each."""
        return self.manifold.gradient(y, gradient)

    def hessian(self, y: Tensor, gradient: Tensor, product: Tensor, direction: Tensor) -> Tensor:
        """Of each."""
        return self.manifold.hessian(y, gradient, product, direction)

    def random(
        self, shape: tuple[int, ...], *, generator: Generator | None = None, like: Tensor
    ) -> Tensor:
        """Independent ones, of the given shape (..., k, *point)."""
        return self.manifold.random(shape, generator=generator, like=like)

    def __repr__(self) -> str:
        return f"Copies({self.manifold!r})"


def _blocks(rows: Tensor) -> Tensor:
    """Rows (..., k, p, m) of each copy as rows of all, (..., kp, km)."""
    k = rows.shape[-3]
    units = torch.eye(k, dtype=rows.dtype, device=rows.device)
    return torch.einsum("...apm,ab->...apbm", rows, units).flatten(-2).flatten(-3, -2)
