"""The Stiefel manifold and the unit sphere.

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

S^{n−1} = {y in Rⁿ : yᵀy = 1}. `Sphere.constraint` is yᵀy − 1, with gradient 2y. As on the Stiefel manifold
(of which this is the case C = 1) the multiplier field uses j = ½(yᵀy − 1): ∇j = y, ∇²j = I, and
    σ(y) = ⟨∇f, y⟩,      ∇f − σ y  is tangent.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ddnkit import InputError, Manifold
from ddnkit.linalg import departure_from_orthonormal


class Stiefel(Manifold):
    """Matrices with orthonormal columns: UᵀU = I, U of shape (..., d, C), d ≥ C.

    Metric: the Euclidean one of R^{d×C}. Multipliers have shape (..., C, C), symmetric.

    Example: ``Stiefel().project(A)`` with A (8, 64, 10) gives eight matrices (8, 64, 10).

    Raises:
        InputError: where a point has fewer than two dimensions or more columns than rows.
    """

    name = "stiefel"
    event_dims = 2
    normal_by_rows = True
    closed_form_solvers = ("procrustes",)

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
        left, _, right = torch.linalg.svd(y.to(lapack_dtype(y.dtype)), full_matrices=False)
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
        # NaN is not zero: it has to stay NaN, or a solver would take the first unit vector for its iterate.
        scaled = torch.where(largest == 0, first, y / torch.where(largest == 0, 1, largest))
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


def lapack_dtype(dtype: torch.dtype) -> torch.dtype:
    """``dtype`` itself, or float32 where factorisations do not exist in it (half precision)."""
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


def gaussian(shape: tuple[int, ...], generator: Generator | None, like: Tensor) -> Tensor:
    """Standard normal numbers in dtype and on device of ``like``, drawn where the generator is."""
    device = like.device if generator is None else generator.device
    drawn = torch.randn(shape, generator=generator, dtype=lapack_dtype(like.dtype), device=device)
    return drawn.to(device=like.device, dtype=like.dtype)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=-1, keepdim=True)


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


def _orthonormalise(y: Tensor) -> Tensor:
    _check_shape(y.shape)
    q, r = torch.linalg.qr(y.to(lapack_dtype(y.dtype)))
    signs = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(q.dtype)
    return (q * signs.unsqueeze(-2)).to(y.dtype)
