"""Matrices with orthonormal columns: the Stiefel and Grassmann manifolds, rotations and rigid motions.

St(d, C) = {U in R^{d×C} : UᵀU = I}. Two descriptions of its constraints are in use, both by independent
functions:

* `Stiefel.constraint` is rvech(UᵀU − I), the lower triangle in row-major order (the order of
  ``torch.tril_indices``). Its entry (p, q), p ≥ q, is ⟨u_p, u_q⟩ − δ_pq, with gradient 2 u_p on the
  diagonal, and u_q in column p plus u_p in column q below it. In matrix form the Jacobian is
      D rvech(UᵀU) = L_C (K_CC + I)(U ⊗ I_C)ᵀ,
  with the elimination matrix L_C and the commutation matrix K_CC. A row of it has at most 2d
  entries, so it is filled in directly.
* The multiplier field uses j_s = ½(‖u_s‖² − 1) and j_pq = ⟨u_p, u_q⟩, p < q, which halves the
  diagonal gradients to u_s. With Σ the symmetric matrix of the multipliers,
      Σᵢ σᵢ ∇jᵢ(U) = U Σ,      Σᵢ σᵢ ∇²jᵢ(U)[Z] = Z Σ,      Σ(U) = ½(∇fᵀU + Uᵀ∇f).
  The last makes ∇f − UΣ tangent: Uᵀ(∇f − UΣ) = ½(Uᵀ∇f − ∇fᵀU) is skew. A diagonal multiplier of
  `constraint` is therefore σ_s / 2; the spans, and the sums above, are the same.

Source: Birtea, Caşu and Comănescu, *First order optimality conditions and steepest descent
algorithm on orthogonal Stiefel manifolds*; Absil, Mahony and Sepulchre, *Optimization Algorithms
on Matrix Manifolds* (retraction).
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ddnkit import InputError, Manifold, gaussian
from ddnkit.linalg import departure_from_orthonormal

from .matrices import lapack_dtype, matrix_exponential
from .polar_map import polar_factor


class _Orthonormal(Manifold):
    """Matrices with orthonormal columns, and what else a subclass says of them."""

    event_dims = 2

    def constraint(self, y: Tensor) -> Tensor:
        """rvech(UᵀU − I), shape (..., C(C+1)/2), row-major lower triangle."""
        rows, columns = _lower_triangle(y)
        return _gram_minus_identity(y)[..., rows, columns]

    def constraint_jacobian(self, y: Tensor) -> Tensor:
        """D rvech(UᵀU), shape (..., C(C+1)/2, dC), U in row-major order."""
        rows, columns = _lower_triangle(y)
        units = torch.eye(y.shape[-1], dtype=y.dtype, device=y.device)
        # Entry (p, q) of UᵀU depends on column p through u_q and on column q through u_p.
        transposed = y.mT.unsqueeze(-1)
        jacobian = transposed[..., columns, :, :] * units[rows].unsqueeze(-2)
        jacobian = jacobian + transposed[..., rows, :, :] * units[columns].unsqueeze(-2)
        return jacobian.flatten(-2)

    def infeasibility(self, y: Tensor) -> Tensor:
        """‖UᵀU − I‖_F / √C, shape (...)."""
        return departure_from_orthonormal(y) / y.shape[-1] ** 0.5

    def project(self, y: Tensor) -> Tensor:
        """The polar factor of y, the nearest point; some nearest point where y is rank-deficient."""
        _check_shape(y.shape)
        left, right = _svd(y)
        return (left @ right).to(y.dtype)

    def retract(self, y: Tensor, tangent: Tensor) -> Tensor:
        """The Q factor of y + tangent, with R of positive diagonal."""
        return _orthonormalise(y + tangent)

    def multipliers(self, y: Tensor, gradient: Tensor) -> Tensor:
        """Σ(U) = ½(∇fᵀU + Uᵀ∇f), shape (..., C, C)."""
        product = y.mT @ gradient
        return (product + product.mT).div_(2)

    def normal(self, y: Tensor, multipliers: Tensor) -> Tensor:
        """U Σ, shape (..., d, C)."""
        return y @ multipliers

    def less_normal(self, vector: Tensor, y: Tensor, multipliers: Tensor) -> Tensor:
        """vector − U Σ, shape (..., d, C)."""
        if vector.dim() == y.dim() == multipliers.dim() == 3:
            return torch.baddbmm(vector, y, multipliers, alpha=-1)
        return vector - y @ multipliers

    def constraint_curvature(self, y: Tensor, multipliers: Tensor, direction: Tensor) -> Tensor:
        """Z Σ for the direction Z, shape (..., d, C)."""
        return direction @ multipliers

    def random(
        self, shape: tuple[int, ...], *, generator: Generator | None = None, like: Tensor
    ) -> Tensor:
        """A point of the Haar (rotation-invariant) distribution, of the given shape (..., d, C)."""
        # The Q factor of a Gaussian matrix is Haar only if R has a positive diagonal.
        return _orthonormalise(gaussian(shape, generator, like))


class Stiefel(_Orthonormal):
    """Matrices with orthonormal columns: UᵀU = I, U of shape (..., d, C), d ≥ C.

    Metric: the Euclidean one of R^{d×C}. Multipliers have shape (..., C, C), symmetric.

    Example: ``Stiefel().project(A)`` with A (8, 64, 10) gives eight matrices (8, 64, 10).

    Raises:
        InputError: where a point has fewer than two dimensions or more columns than rows.
    """

    name = "stiefel"
    event_dims = 2
    normal_by_rows = True
    tall = True
    closed_form_solvers = ("procrustes",)

    def point_of(self, x: Tensor) -> Tensor:
        """The polar factor."""
        _check_shape(x.shape)
        return polar_factor(self, x)


class Grassmann(_Orthonormal):
    """Subspaces of R^d of dimension C, each given by an orthonormal basis U of shape (..., d, C).

    A quotient of the Stiefel manifold: U and UQ, Q orthogonal, are bases of the same subspace, and the
    objective must not tell them apart. Horizontal vectors are those with UᵀZ = 0.

    Source: Edelman, Arias and Smith, *The geometry of algorithms with orthogonality constraints*.
    """

    name = "grassmann"
    normal_by_rows = True
    tall = True

    def point_of(self, x: Tensor) -> Tensor:
        """The polar factor."""
        return Stiefel().point_of(x)

    def vertical(self, y: Tensor) -> Tensor:
        """U Ω for a basis of skew matrices Ω, (..., C(C−1)/2, d, C)."""
        return y.unsqueeze(-3) @ skew_basis(y)

    def tangent(self, y: Tensor, vector: Tensor) -> Tensor:
        """vector − U Uᵀ vector."""
        return vector - y @ (y.mT @ vector)


class SpecialOrthogonal(_Orthonormal):
    """Rotations: UᵀU = I and det U = 1, U of shape (..., n, n).

    One of the two components of the orthogonal group, in the metric of R^{n×n}.
    """

    name = "special_orthogonal"

    def infeasibility(self, y: Tensor) -> Tensor:
        """‖UᵀU − I‖_F / √n, and at least 1 for a reflection."""
        far = super().infeasibility(y)
        return torch.where(torch.linalg.det(y.to(lapack_dtype(y.dtype))) < 0, far.clamp_min(1), far)

    def project(self, y: Tensor) -> Tensor:
        """The nearest rotation; some nearest one where several are."""
        _check_shape(y.shape)
        left, right = _svd(y)
        sign = torch.linalg.det(left @ right).sign()
        left = torch.cat([left[..., :-1], left[..., -1:] * sign[..., None, None]], dim=-1)
        return (left @ right).to(y.dtype)

    def random(
        self, shape: tuple[int, ...], *, generator: Generator | None = None, like: Tensor
    ) -> Tensor:
        """A rotation of the Haar (rotation-invariant) distribution, of the given shape (..., n, n)."""
        y = super().random(shape, generator=generator, like=like)
        sign = torch.linalg.det(y.to(lapack_dtype(y.dtype))).sign().to(y.dtype)
        return torch.cat([y[..., :-1], y[..., -1:] * sign[..., None, None]], dim=-1)

    def exponential(self, y: Tensor, tangent: Tensor) -> Tensor:
        """U exp(Uᵀ tangent): the geodesic from U in the direction of a tangent vector."""
        turn = y.mT @ tangent
        return y @ matrix_exponential((turn - turn.mT) / 2)


class SpecialEuclidean(Manifold):
    """Rigid motions x ↦ R x + t of R^n, as matrices [R | t] of shape (..., n, n + 1).

    R is a rotation, in the metric of the matrices. Multipliers are those of R.
    """

    name = "special_euclidean"
    event_dims = 2
    _rotations = SpecialOrthogonal()

    def constraint(self, y: Tensor) -> Tensor:
        """rvech(RᵀR − I)."""
        return self._rotations.constraint(y[..., :-1])

    def infeasibility(self, y: Tensor) -> Tensor:
        """That of R."""
        return self._rotations.infeasibility(y[..., :-1])

    def project(self, y: Tensor) -> Tensor:
        """The nearest rotation, and the same t."""
        return torch.cat([self._rotations.project(y[..., :-1]), y[..., -1:]], dim=-1)

    def retract(self, y: Tensor, tangent: Tensor) -> Tensor:
        """That of R, and t + tangent."""
        R = self._rotations.retract(y[..., :-1], tangent[..., :-1])
        return torch.cat([R, y[..., -1:] + tangent[..., -1:]], dim=-1)

    def multipliers(self, y: Tensor, gradient: Tensor) -> Tensor:
        """Those of R, (..., n, n)."""
        return self._rotations.multipliers(y[..., :-1], gradient[..., :-1])

    def normal(self, y: Tensor, multipliers: Tensor) -> Tensor:
        """[R Σ | 0]."""
        return torch.nn.functional.pad(y[..., :-1] @ multipliers, (0, 1))

    def constraint_curvature(self, y: Tensor, multipliers: Tensor, direction: Tensor) -> Tensor:
        """[Z Σ | 0]."""
        return torch.nn.functional.pad(direction[..., :-1] @ multipliers, (0, 1))

    def random(
        self, shape: tuple[int, ...], *, generator: Generator | None = None, like: Tensor
    ) -> Tensor:
        """A Haar rotation and a standard normal t."""
        R = self._rotations.random((*shape[:-1], shape[-1] - 1), generator=generator, like=like)
        return torch.cat([R, gaussian((*shape[:-1], 1), generator, like)], dim=-1)

    def exponential(self, y: Tensor, tangent: Tensor) -> Tensor:
        """Of the product metric: that of R, and t + tangent."""
        R = self._rotations.exponential(y[..., :-1], tangent[..., :-1])
        return torch.cat([R, y[..., -1:] + tangent[..., -1:]], dim=-1)


def skew_basis(y: Tensor) -> Tensor:
    """The skew matrices E_pq − E_qp, p > q, of the order of y's columns, (C(C−1)/2, C, C)."""
    C = y.shape[-1]
    rows, columns = torch.tril_indices(C, C, offset=-1, device=y.device)
    units = torch.eye(C, dtype=y.dtype, device=y.device)
    first = units[rows].unsqueeze(-1) * units[columns].unsqueeze(-2)
    return first - first.mT


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) < 2 or shape[-2] < shape[-1]:
        raise InputError(
            "a point of the Stiefel manifold is a (..., d, C) matrix with d ≥ C; "
            f"got shape {tuple(shape)}"
        )


def _lower_triangle(y: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = torch.tril_indices(y.shape[-1], y.shape[-1], device=y.device)
    return rows, columns


def _gram_minus_identity(y: Tensor) -> Tensor:
    return y.mT @ y - torch.eye(y.shape[-1], dtype=y.dtype, device=y.device)


def _svd(y: Tensor) -> tuple[Tensor, Tensor]:
    """Singular vectors from the left and, as rows, from the right; NaN of what is no number."""
    known = y.isfinite().flatten(-2).all(dim=-1)[..., None, None]
    safe = torch.where(known, y, 0.0).to(lapack_dtype(y.dtype))
    left, _, right = torch.linalg.svd(safe, full_matrices=False)
    return torch.where(known, left, torch.nan), right


def _orthonormalise(y: Tensor) -> Tensor:
    _check_shape(y.shape)
    q, r = torch.linalg.qr(y.to(lapack_dtype(y.dtype)))
    signs = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(q.dtype)
    return (q * signs.unsqueeze(-2)).to(y.dtype)
