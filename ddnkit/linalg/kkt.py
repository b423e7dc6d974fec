"""The adjoint system of an equality-constrained minimum, dense, with its residual.

At a solution y with multipliers ν, let G = D²_yy L (m×m) and A = D_y h (p×m). For right sides r the
routines find z and μ with

    [ G  Aᵀ ] [ z ]   [ r ]
    [ A  0  ] [ μ ] = [ 0 ].

The system may be regular where G is not (min ½(y₁−x₁)² s.t. y₂ = x₂), and z may be unique where A has
dependent rows (a constraint written twice). Up to `RANK_REVEALING_SIZE` unknowns the system is solved
through its eigenvalues. What is done where eigenvalues vanish is a declared choice:
    minimum_norm   they are left out: the solution of least norm, of least residual;
    damped         λ/(λ² + ε²) in place of 1/λ, ε = `DAMPING`·|λ|max: smooth through the singularity;
    error          NaN for that item, and a NaN residual, on which the policy of a layer acts.
Above that size the whole matrix is factorised by LU, which needs it regular; the residual tells. The
Schur complement of *Guiding Neural Collapse*, Proposition 1, needs G itself regular; it is kept as the
paper's reference (`schur=True`).
"""

from __future__ import annotations

import abc
from dataclasses import dataclass

import torch
from torch import Tensor

from .items import lu_factor

#: Unknowns up to which an eigendecomposition is affordable (a second or so on two cores).
RANK_REVEALING_SIZE = 1024
#: ε of the damped choice, relative to the largest eigenvalue.
DAMPING = 1e-6
#: An eigenvalue that is smaller, in roundings of the largest, is what differentiation leaves of zero.
_HESSIAN_ROUNDINGS = 512
SINGULAR = ("minimum_norm", "damped", "error")


@dataclass(frozen=True)
class KKTSolution:
    """z (B, m), μ (B, p), and the relative residual of the system, (B,)."""

    z: Tensor
    mu: Tensor
    residual: Tensor


class SymmetricInverse(abc.ABC):
    """K⁻¹ for a batch of symmetric matrices (B, n, n), factorised once."""

    @abc.abstractmethod
    def __call__(self, right: Tensor) -> Tensor:
        """K⁻¹ applied to right (..., B, n)."""


class EigenInverse(SymmetricInverse):
    """By eigenvalues, which tell what is singular."""

    def __init__(self, K: Tensor, singular: str = "minimum_norm"):
        # The unscaled system mixes G and A, whose sizes may differ by orders of magnitude, so its rows
        # and columns are first equilibrated (D K D).
        # Not for the damped choice, whose limit is to be the pseudo-inverse of K itself.
        size = K.abs().amax(dim=-1) if singular != "damped" else torch.ones_like(K[..., 0])
        self.D = torch.where(size > 0, size, 1.0).rsqrt()
        scaled = self.D.unsqueeze(-1) * K * self.D.unsqueeze(-2)
        values, self.vectors = torch.linalg.eigh((scaled + scaled.mT) / 2)
        largest = values.abs().amax(dim=-1, keepdim=True)
        roundings = max(_HESSIAN_ROUNDINGS, 4 * K.shape[-1])
        cutoff = largest * (roundings * torch.finfo(K.dtype).eps)
        kept = values.abs() > cutoff
        self.null: Tensor | None = None
        if singular == "damped":
            floor = torch.where(largest > 0, (DAMPING * largest) ** 2, 1.0)
            self.inverse = values / (values**2 + floor)
            return
        left_out = torch.nan if singular == "error" else 0.0
        self.inverse = torch.where(kept, 1 / torch.where(kept, values, 1.0), left_out)
        if singular == "minimum_norm" and not bool(kept.all()):
            # The null space of K from that of D K D, orthonormal: zero columns for the rest.
            basis = self.D.unsqueeze(-1) * self.vectors * (~kept).unsqueeze(-2)
            left, sizes, _ = torch.linalg.svd(basis, full_matrices=False)
            self.null = left * (sizes > sizes[..., :1] * 1e-6).unsqueeze(-2)

    def __call__(self, right: Tensor) -> Tensor:
        """K⁺ r."""
        solved = self._scaled(self._without_null(right))
        return self._without_null(solved)

    def _scaled(self, right: Tensor) -> Tensor:
        return self.D * _apply(self.vectors, self.inverse * _apply(self.vectors.mT, self.D * right))

    def _without_null(self, vector: Tensor) -> Tensor:
        if self.null is None:
            return vector
        return vector - _apply(self.null, _apply(self.null.mT, vector))


class LUInverse(SymmetricInverse):
    """By LU, for matrices that must be regular: inf or NaN where one is not."""

    def __init__(self, K: Tensor):
        self.LU, self.pivots = lu_factor(K)

    def __call__(self, right: Tensor) -> Tensor:
        """K⁻¹ r."""
        columns = right.reshape(-1, *right.shape[-2:]).permute(1, 2, 0)
        solved = torch.linalg.lu_solve(self.LU, self.pivots, columns)
        return solved.permute(2, 0, 1).reshape(right.shape)


class KKTInverse:
    """The system for G (B, m, m) and A (B, p, m) or None, factorised once for any right sides."""

    def __init__(
        self, G: Tensor, A: Tensor | None, *, singular: str = "minimum_norm", schur: bool = False
    ):
        if A is None:
            A = G.new_zeros(*G.shape[:-2], 0, G.shape[-1])
        self.G, self.A, self.schur = G, A, schur
        self.m = G.shape[-1]
        G, A = without_bad_items(G, A)
        p = A.shape[-2]
        if schur:
            self.by_G: SymmetricInverse = LUInverse(G)
            self.GiA = self.by_G(A.movedim(-2, 0)).movedim(0, -1)
            self.complement: SymmetricInverse = LUInverse(A @ self.GiA)
            return
        corner = G.new_zeros(*G.shape[:-2], p, p)
        K = torch.cat([torch.cat([G, A.mT], -1), torch.cat([A, corner], -1)], -2)
        regular = self.m + p > RANK_REVEALING_SIZE and singular != "damped"
        self.inverse: SymmetricInverse = LUInverse(K) if regular else EigenInverse(K, singular)

    def __call__(self, r: Tensor) -> KKTSolution:
        """z, μ and residual for r (..., B, m)."""
        if self.schur:
            # Proposition 1, transposed: μ = (A G⁻¹Aᵀ)⁻¹ A G⁻¹r, z = G⁻¹r − G⁻¹Aᵀμ.
            Gir = self.by_G(r)
            if self.A.shape[-2]:
                mu = self.complement(_apply(self.A, Gir))
                z = Gir - _apply(self.GiA, mu)
            else:
                z, mu = Gir, r[..., :0]
        else:
            finite = torch.where(r.isfinite().all(dim=-1, keepdim=True), r, 0.0)
            right = torch.cat([finite, r.new_zeros(*r.shape[:-1], self.A.shape[-2])], -1)
            solution = self.inverse(right)
            z, mu = solution[..., : self.m], solution[..., self.m :]
        stationarity = _apply(self.G, z) + _apply(self.A.mT, mu) - r
        residual = torch.cat([stationarity, _apply(self.A, z)], -1).norm(dim=-1)
        return KKTSolution(z, mu, relative(residual, r.norm(dim=-1)))


def solve_kkt(G: Tensor, A: Tensor | None, v: Tensor) -> KKTSolution:
    """Solve the full system for G (B, m, m), A (B, p, m) or None, and r = −v, v (B, m)."""
    return KKTInverse(G, A)(-v)


class TangentInverse:
    """z on the tangent space with P G z = P r, for G and the projector P, both (B, m, m).

    The projector fills its own null space: P G P + ‖G‖ (I − P) is regular exactly where G is regular
    on the tangent space, and maps the tangent space to itself.
    """

    def __init__(self, G: Tensor, P: Tensor):
        self.G, self.P = G, P
        G, P = without_bad_items(G, P)
        eye = torch.eye(G.shape[-1], dtype=G.dtype, device=G.device)
        scale = G.norm(dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(G.dtype).tiny)
        matrix = P @ G @ P + scale / G.shape[-1] ** 0.5 * (eye - P)
        small = G.shape[-1] <= RANK_REVEALING_SIZE
        self.inverse: SymmetricInverse = EigenInverse(matrix) if small else LUInverse(matrix)

    def __call__(self, r: Tensor) -> tuple[Tensor, Tensor]:
        """z (..., B, m) and the relative residual (..., B)."""
        right = _apply(self.P, r)
        finite = torch.where(right.isfinite().all(dim=-1, keepdim=True), right, 0.0)
        z = _apply(self.P, self.inverse(finite))
        residual = (_apply(self.P, _apply(self.G, z)) - right).norm(dim=-1)
        return z, relative(residual, r.norm(dim=-1))


def solve_tangent(G: Tensor, tangent: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """z on the tangent space with P G z = −P v, and the relative residual."""
    return TangentInverse(G, tangent)(-v)


def without_bad_items(*tensors: Tensor) -> list[Tensor]:
    """The tensors with items that hold NaN or infinity in any of them set to zero in all.

    LAPACK refuses a whole batch for one such item. The residuals are taken with the tensors as they
    were given, so such an item's is NaN.
    """
    good = torch.stack([t.flatten(1).isfinite().all(dim=1) for t in tensors]).all(dim=0)
    return [torch.where(good.reshape(-1, *[1] * (t.ndim - 1)), t, 0.0) for t in tensors]


def relative(residual: Tensor, size: Tensor) -> Tensor:
    """residual / size, and 0 where the residual is: r = 0 has the exact solution 0."""
    return torch.where(residual == 0, residual, residual / size)


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)
