"""A node that brings its own adjoint, for the form "closed_form"."""

from __future__ import annotations

from torch import Tensor

from .quadratic import AffineConstraint


class AffineWithAdjoint(AffineConstraint):
    """`AffineConstraint` with the adjoint written down: v·dy/dx = v − (1ᵀv/m) 1."""

    def adjoint(self, x: Tensor, y: Tensor, v: Tensor) -> tuple[Tensor]:
        """(I − 11ᵀ/m) v."""
        return (v - v.mean(),)
