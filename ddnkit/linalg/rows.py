"""The rows of a matrix A (B, p, m): how many of them are independent, what they span, and A's pseudo-inverse.

Whether rows depend on one another is decided among rows of unit length, so that no unit a constraint is
given in changes the answer. Where a Gram matrix tells all of them apart, products with it serve; else,
at ten times the cost, singular values.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .items import apply


class DependentRows(NamedTuple):
    """A by singular values of its rows at unit length, for any rank of A.

    Attributes:
        length: of the rows, (B, p, 1).
        left: (B, p, k) left singular vectors, k = min(p, m).
        sizes: (B, k) singular values, 0 where they are what rounding leaves of 0.
        right: (B, k, m) right ones.
    """

    length: Tensor
    left: Tensor
    sizes: Tensor
    right: Tensor

    def margin(self, clear: float) -> Tensor:
        """Least over largest singular value of those that are not 0, (B,), where that is below ``clear``;
        else 0 where rows depend on others."""
        kept = self.sizes > 0
        least = self.sizes.masked_fill(~kept, torch.inf).amin(dim=-1)
        margin = torch.where(kept.any(dim=-1), least / self.sizes.amax(dim=-1), 0.0)
        dependent = kept.sum(dim=-1) < self.left.shape[-2]
        return torch.where(dependent & (margin >= clear), 0.0, margin)

    def basis(self) -> Tensor:
        """Orthonormal columns (B, m, k) that span the rows, with columns of zero beyond the rank."""
        return (self.right * (self.sizes > 0).unsqueeze(-1)).mT

    def multipliers(self, gradient: Tensor) -> Tensor:
        """(A⁺)ᵀ g for g (..., B, m): the least of all ν that minimise ‖g − Aᵀν‖."""
        nu = apply(self.left, self._inverse * apply(self.right, gradient))
        return self._shortest(nu / self.length.squeeze(-1))

    def without(self, vector: Tensor) -> Tensor:
        """v (..., B, m) less its part in the span of the rows."""
        return vector - apply(self.right.mT, (self.sizes > 0) * apply(self.right, vector))

    def lift(self, violation: Tensor) -> Tensor:
        """The shortest z (..., B, m) that unit rows take to ``violation`` (..., B, p), or nearest to it."""
        return apply(self.right.mT, self._inverse * apply(self.left.mT, violation))

    def pseudo_inverse(self) -> Tensor:
        """A⁺ (B, m, p): (A⁺)ᵀ of each unit vector."""
        eye = torch.eye(self.right.shape[-1], dtype=self.right.dtype, device=self.right.device)
        return self.multipliers(eye.unsqueeze(1).expand(-1, len(self.right), -1)).movedim(0, 1)

    @property
    def _inverse(self) -> Tensor:
        kept = self.sizes > 0
        return torch.where(kept, 1 / torch.where(kept, self.sizes, 1.0), 0.0)

    def _shortest(self, nu: Tensor) -> Tensor:
        """ν less its part in the null space of Aᵀ, in the units that the rows were given in."""
        count = self.left.shape[-2]
        if count <= self.sizes.shape[-1] and bool((self.sizes > 0).all()):
            return nu
        # Aᵀν = 0 where length·ν is at right angles to every left vector that is kept.
        kept = self.left * (self.sizes > 0).unsqueeze(-2)
        eye = torch.eye(count, dtype=kept.dtype, device=kept.device)
        left, sizes, _ = torch.linalg.svd(eye - kept @ kept.mT)
        spanning = left * (sizes > 0.5).unsqueeze(-2) / self.length
        size = torch.linalg.vector_norm(spanning, dim=-2, keepdim=True)
        left, sizes, _ = torch.linalg.svd(spanning / torch.where(size > 0, size, 1.0))
        null = left * (sizes > 1e-6 * sizes[..., :1]).unsqueeze(-2)
        return nu - apply(null, apply(null.mT, nu))


class IndependentRows(NamedTuple):
    """A (B, p, m) by rows of unit length, where they are far enough from dependent for their Gram
    matrix, which has the square of their condition: it keeps half of the digits.

    Attributes:
        unit: the rows, at unit length.
        length: their lengths (B, p, 1).
        gram: their inner products (B, p, p).
        inverse: of its Cholesky factor L.
    """

    unit: Tensor
    length: Tensor
    gram: Tensor
    inverse: Tensor

    def margin(self, clear: float) -> Tensor:
        """Least over largest singular value of the unit rows, (B,); none of them is 0."""
        values = torch.linalg.eigvalsh(self.gram)
        return (values[..., 0] / values[..., -1]).sqrt()

    def multipliers(self, gradient: Tensor) -> Tensor:
        """(A⁺)ᵀg for g (..., B, m), by normal equations and a step of refinement, which squares their
        error."""
        B = gradient.shape[-2]
        unit, inverse = self.unit.expand(B, -1, -1), self.inverse.expand(B, -1, -1)

        def solved(g: Tensor) -> Tensor:
            return apply(inverse.mT, apply(inverse, apply(unit, g)))

        nu = solved(gradient)
        nu = nu + solved(gradient - apply(unit.mT, nu))
        return nu / self.length.squeeze(-1)

    def without(self, vector: Tensor) -> Tensor:
        """v (..., B, m) less its part in the span of the rows, to the square of their condition: twice
        leaves the square of that error."""
        return vector - self.lift(apply(self.unit, vector))

    def lift(self, violation: Tensor) -> Tensor:
        """The shortest z (..., B, m) that unit rows take to ``violation`` (..., B, p)."""
        inner = apply(self.inverse.mT, apply(self.inverse, violation))
        return apply(self.unit.mT, inner)

    def pseudo_inverse(self) -> Tensor:
        """A⁺ by normal equations, and one step of X ← 2X − X A X, which squares their error."""
        X = (self.inverse.mT @ (self.inverse @ self.unit)).mT
        X = 2 * X - X @ (self.unit @ X)
        return X / self.length.mT

    def basis(self) -> Tensor:
        """Orthonormal columns (B, m, p) that span the rows, by two rounds of Cholesky's QR."""
        Q = self.inverse @ self.unit
        again, _ = torch.linalg.cholesky_ex(Q @ Q.mT)
        return torch.linalg.solve_triangular(again, Q, upper=False).mT


def rows_of(A: Tensor, eps: float | None = None) -> IndependentRows | DependentRows:
    """The rows of A, which holds no NaN: by their Gram matrix, or by singular values.

    Args:
        eps: what each entry of A is known to; None: the rounding of A's dtype.
    """
    rows = independent_rows(A)
    if rows is not None:
        return rows
    # In float32 the singular vectors would be known to the rounding that is to be told from a difference.
    wide = A if A.device.type == "mps" else A.double()
    known = max(torch.finfo(A.dtype).eps, eps or 0.0)
    found = _by_singular_values(wide, known)
    return DependentRows(*(x.to(A.dtype) for x in found))


def _by_singular_values(A: Tensor, eps: float) -> DependentRows:
    unit, length = unit_rows(A)
    if A.shape[-2] <= A.shape[-1]:
        # Householder's QR first: columns of very different size keep their own digits in it, which the
        # singular vectors of a wide matrix do not.
        Q, R = torch.linalg.qr(unit.mT)
        inner, sizes, left = torch.linalg.svd(R)
        left, right = left.mT, (Q @ inner).mT
    else:
        left, sizes, right = torch.linalg.svd(unit, full_matrices=False)
    rounding = max(A.shape[-2:]) * torch.finfo(A.dtype).eps
    dependent = (sizes <= rounding * sizes[..., :1]) | _dependent_to(eps, unit, left)
    return DependentRows(length, left, sizes.masked_fill(dependent, 0.0), right)


def _dependent_to(eps: float, unit: Tensor, left: Tensor) -> Tensor:
    """Which left vectors u (B, p, k) give uᵀ(A + E) = 0 for some |E| ≤ eps |A|, entry by entry, (B, k).

    By Oettli and Prager's theorem where |uᵀA| ≤ eps |u|ᵀ|A|, with a few roundings let through; what u has
    of a row only to fit the roundings of others is left out of it. No unit of an unknown changes the
    answer, and a small entry is one that is known: a row that differs from another in that alone is
    independent.
    """
    u = torch.where(left.abs() > 64 * eps, left, 0.0).mT
    return ((u @ unit).abs() <= 4 * eps * (u.abs() @ unit.abs())).all(dim=-1)


def independent_rows(A: Tensor) -> IndependentRows | None:
    """A's rows where a Gram matrix tells all of them apart with half of the digits to spare, in every
    item; else None, and only singular values will do, at ten times the cost."""
    count, unknowns = A.shape[-2:]
    if not 0 < count <= unknowns or len(A) == 0:
        return None
    unit, length = unit_rows(A)
    gram = unit @ unit.mT
    factor, failed = torch.linalg.cholesky_ex(gram)
    eye = torch.eye(count, dtype=A.dtype, device=A.device)
    inverse = torch.linalg.solve_triangular(factor, eye, upper=False)
    enough = 8 * torch.finfo(A.dtype).eps ** 0.5
    # λ_min ≥ 1/‖L⁻¹‖²_F and λ_max ≤ tr = p: mostly that will do, and no eigenvalue is needed.
    least = 1 / torch.linalg.matrix_norm(inverse).square()
    if not bool(((failed == 0) & (least > enough * count)).all()):
        values = torch.linalg.eigvalsh(gram)
        if not bool((values[..., 0] > enough * values[..., -1]).all()):
            return None
    return IndependentRows(unit, length, gram, inverse)


def unit_rows(A: Tensor) -> tuple[Tensor, Tensor]:
    """A's rows at unit length, and their lengths (B, p, 1), 1 for a row of zeros."""
    length = torch.linalg.vector_norm(A, dim=-1, keepdim=True)
    length = torch.where(length > 0, length, 1.0)
    return A / length, length
