"""Matrices of fixed rank, as products of two factors.

X = L Rᵀ in R^{m×n} of rank r is given by y = [L; R], stacked, (m + n, r). (L T, R T⁻ᵀ) is the same X for
every regular T. Of these the balanced factors are taken,
    j(y) = ½(LᵀL − RᵀR) = 0,
which leaves T orthogonal, a gauge whose vertical directions are yΩ, Ω skew. Balanced factors of X have
singular values that are the roots of X's: a problem in them is as well conditioned as it can be.

With M = LᵀL + RᵀR, D = diag(I, −I) and symmetric multipliers S,
    Σᵢ σᵢ ∇jᵢ(y) = D y S,      Σᵢ σᵢ ∇²jᵢ[Z] = D Z S,
and the S that makes g − D y S tangent, or the Ω that makes g − yΩ horizontal, solves
    M S + S M = yᵀD g + gᵀD y,      M Ω + Ω M = yᵀg − gᵀy.

Balancing: with A = LᵀL and B = RᵀR, T = P^½ for the symmetric positive definite P with P A P = B, which is
A^−½(A^½ B A^½)^½ A^−½. It is the identity where they are balanced, and changes smoothly.

Source: Absil, Mahony and Sepulchre, chapter 3; Tu, Boczar, Simchowitz, Soltanolkotabi and Recht, *Low-rank
solutions of linear matrix equations via Procrustes flow* (balanced factors).
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ddnkit import InputError, Manifold, gaussian

from .matrices import lapack_dtype, roots
from .orthonormal import skew_basis


class FixedRank(Manifold):
    """Matrices X = L Rᵀ of rank r, by their balanced factors y = [L; R] of shape (..., m + n, r).

    A quotient: [L Q; R Q], Q orthogonal, is the same matrix, and the objective must not tell them apart.
    Multipliers have shape (..., r, r), symmetric.

    Args:
        rows: m.
        rank: r, which `ddnkit.parametrize` needs; elsewhere the shape of y says it.

    Example: ``L, R = FixedRank(rows=40).factors(y)``.

    Raises:
        InputError: where either factor of a point has fewer rows than its rank.
    """

    name = "fixed_rank"
    event_dims = 2

    def __init__(self, rows: int = 1, rank: int | None = None):
        self.rows, self.rank = rows, rank

    @property
    def sample_shapes(self) -> tuple[tuple[int, int]]:
        """L with these rows, R with one more, of rank two if there is such a matrix."""
        return ((2 * self.rows + 1, min(self.rows, 2)),)

    def factors(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """L (..., m, r) and R (..., n, r)."""
        if y.ndim < 2 or not y.shape[-1] <= min(self.rows, y.shape[-2] - self.rows):
            raise InputError(
                f"a point of {self!r} is [L; R], (..., {self.rows} + n, r), r ≤ {self.rows} and r ≤ n; "
                f"got shape {tuple(y.shape)}"
            )
        return y[..., : self.rows, :], y[..., self.rows :, :]

    def matrix(self, y: Tensor) -> Tensor:
        """X = L Rᵀ, (..., m, n)."""
        L, R = self.factors(y)
        return L @ R.mT

    def of_matrix(self, X: Tensor, rank: int) -> Tensor:
        """Balanced factors of the nearest matrix of that rank, (..., m + n, rank)."""
        left, s, right = torch.linalg.svd(X, full_matrices=False)
        root = s[..., :rank].sqrt().unsqueeze(-2)
        return torch.cat([left[..., :rank] * root, right.mT[..., :rank] * root], dim=-2)

    def point_of(self, x: Tensor) -> Tensor:
        """The matrix X = L Rᵀ of factors that need not be balanced."""
        return self.matrix(x)

    def free_of(self, weight: Tensor) -> Tensor:
        """Balanced factors of the nearest matrix of the `rank`.

        Raises:
            InputError: no rank was given, or one that the weight cannot have, or it has other rows.
        """
        if self.rank is None or weight.shape[-2] != self.rows:
            raise InputError(
                f"{self!r} for a weight of shape {tuple(weight.shape)}: expected FixedRank(rows="
                f"{weight.shape[-2]}, rank=…)"
            )
        if not 1 <= self.rank <= min(weight.shape[-2:]):
            raise InputError(
                f"{self!r}: a matrix of shape {tuple(weight.shape[-2:])} has a rank of 1 to "
                f"{min(weight.shape[-2:])}"
            )
        return self.of_matrix(weight, self.rank)

    def constraint(self, y: Tensor) -> Tensor:
        """rvech of ½(LᵀL − RᵀR), (..., r(r+1)/2)."""
        rows, columns = torch.tril_indices(y.shape[-1], y.shape[-1], device=y.device)
        return (y.mT @ self._signed(y))[..., rows, columns] / 2

    def infeasibility(self, y: Tensor) -> Tensor:
        """‖LᵀL − RᵀR‖_F / ‖LᵀL + RᵀR‖_F; at least 1 where the rank is less than r, to rounding."""
        gram = (y.mT @ y).to(lapack_dtype(y.dtype))
        size = torch.linalg.matrix_norm(gram)
        far = torch.linalg.matrix_norm(y.mT @ self._signed(y)) / torch.where(size > 0, size, 1.0)
        # Twice the singular values of X where the factors are balanced.
        values = torch.linalg.eigvalsh(gram.nan_to_num())
        least = max(self.rows, y.shape[-2] - self.rows) * torch.finfo(y.dtype).eps * values[..., -1]
        return torch.where(values[..., 0] > least, far, far.clamp_min(1)).to(y.dtype)

    def project(self, y: Tensor) -> Tensor:
        """Balanced factors of the same matrix, and y itself where they are. Not the nearest."""
        L, R = self.factors(y)
        root, inverse = roots(L.mT @ L)
        middle, _ = roots(root @ (R.mT @ R) @ root)
        T, inverse_of_T = roots(inverse @ middle @ inverse)
        L, R = L @ T, R @ inverse_of_T
        # The roots are off by the condition of the Gram matrices. A step of Newton's method is not:
        # (I + X)A(I + X) = (I − X)B(I − X) to first order.
        A, B = L.mT @ L, R.mT @ R
        X = _lyapunov(A + B, B - A)
        X = torch.where(X.isfinite(), X, 0.0)
        return torch.cat([L + L @ X, R - R @ X], dim=-2)

    def vertical(self, y: Tensor) -> Tensor:
        """y Ω for a basis of skew matrices Ω, (..., r(r−1)/2, m + n, r)."""
        return y.unsqueeze(-3) @ skew_basis(y)

    def multipliers(self, y: Tensor, gradient: Tensor) -> Tensor:
        """S, see the module's text."""
        product = self._signed(y).mT @ gradient
        return _lyapunov(y.mT @ y, product + product.mT)

    def normal(self, y: Tensor, multipliers: Tensor) -> Tensor:
        """[L S; −R S]."""
        return self._signed(y) @ multipliers

    def constraint_curvature(self, y: Tensor, multipliers: Tensor, direction: Tensor) -> Tensor:
        """The same of the direction."""
        return self._signed(direction) @ multipliers

    def tangent(self, y: Tensor, vector: Tensor) -> Tensor:
        """vector − D y S − yΩ."""
        vector = self.less_normal(vector, y, self.multipliers(y, vector))
        product = y.mT @ vector
        return vector - y @ _lyapunov(y.mT @ y, product - product.mT)

    def random(
        self, shape: tuple[int, ...], *, generator: Generator | None = None, like: Tensor
    ) -> Tensor:
        """Balanced factors of a product of normal ones, of the given shape (..., m + n, r)."""
        return self.project(gaussian(shape, generator, like))

    def __repr__(self) -> str:
        rank = "" if self.rank is None else f", rank={self.rank}"
        return f"FixedRank(rows={self.rows}{rank})"

    def _signed(self, y: Tensor) -> Tensor:
        """D y."""
        L, R = self.factors(y)
        return torch.cat([L, -R], dim=-2)


def _lyapunov(M: Tensor, C: Tensor) -> Tensor:
    """X with M X + X M = C for symmetric positive definite M, (..., r, r)."""
    r = M.shape[-1]
    identity = torch.eye(r, dtype=M.dtype, device=M.device)
    both = torch.einsum("...ab,cd->...acbd", M, identity) + torch.einsum(
        "ab,...cd->...acbd", identity, M
    )
    found: Tensor = torch.linalg.solve_ex(
        both.flatten(-2).flatten(-3, -2), C.flatten(-2).unsqueeze(-1)
    )[0]
    return found.reshape(C.shape)
