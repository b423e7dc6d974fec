"""The adjoint system of an equality-constrained minimum, dense, with its residual.

At a solution y with multipliers ν, let G = D²_yy L (m×m) and A = D_y h (p×m). For the incoming
gradient v both routines find z and μ with

    [ G  Aᵀ ] [ z ]   [ −v ]
    [ A  0  ] [ μ ] = [  0 ].

The system may be regular where G is not (min ½(y₁−x₁)² s.t. y₂ = x₂), and z may be unique where A has
dependent rows (a constraint written twice). Up to `RANK_REVEALING_SIZE` unknowns the system is solved
through its eigenvalues, with the minimum-norm solution where it is singular; above it by the Schur
complement of *Guiding Neural Collapse*, Proposition 1. The residual tells when either fails.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Unknowns up to which an eigendecomposition is affordable (a second or so on two cores).
RANK_REVEALING_SIZE = 1024


@dataclass(frozen=True)
class KKTSolution:
    """z (B, m), μ (B, p), and the relative residual of the system, (B,)."""

    z: Tensor
    mu: Tensor
    residual: Tensor


def solve_kkt(G: Tensor, A: Tensor | None, v: Tensor) -> KKTSolution:
    """Solve the full system for G (B, m, m), A (B, p, m) or None, v (B, m)."""
    if A is None:
        A = G.new_zeros(*G.shape[:-2], 0, G.shape[-1])
    given = (G, A, v)
    G, A, v = without_bad_items(G, A, v)
    m, p = G.shape[-1], A.shape[-2]
    if m + p <= RANK_REVEALING_SIZE:
        corner = G.new_zeros(*G.shape[:-2], p, p)
        K = torch.cat([torch.cat([G, A.mT], -1), torch.cat([A, corner], -1)], -2)
        right = torch.cat([-v, v.new_zeros(*v.shape[:-1], p)], -1)
        solution = _symmetric_solve(K, right)
        z, mu = solution[..., :m], solution[..., m:]
    else:
        # Proposition 1 transposed: with G⁻¹ applied to [Aᵀ, v],
        #   μ = −(A G⁻¹ Aᵀ)⁻¹ A G⁻¹ v,   z = −G⁻¹ v − G⁻¹ Aᵀ μ.
        solved = torch.linalg.solve(G, torch.cat([A.mT, v.unsqueeze(-1)], -1))
        GiA, Giv = solved[..., :p], solved[..., p:]
        mu_column = -torch.linalg.solve(A @ GiA, A @ Giv)
        z = -(Giv + GiA @ mu_column).squeeze(-1)
        mu = mu_column.squeeze(-1)
    return KKTSolution(z, mu, _residual(*given, z, mu))


def solve_tangent(G: Tensor, tangent: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """z on the tangent space with P G z = −P v, and the relative residual.

    The projector P (B, m, m) fills its own null space: P G P + ‖G‖ (I − P) is regular exactly where
    G is regular on the tangent space, and maps the tangent space to itself.
    """
    given = (G, tangent, v)
    G, tangent, v = without_bad_items(G, tangent, v)
    eye = torch.eye(G.shape[-1], dtype=G.dtype, device=G.device)
    scale = G.norm(dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(G.dtype).tiny)
    matrix = tangent @ G @ tangent + scale / G.shape[-1] ** 0.5 * (eye - tangent)
    right = -_apply(tangent, v)
    if G.shape[-1] <= RANK_REVEALING_SIZE:
        z = _symmetric_solve(matrix, right)
    else:
        z = torch.linalg.solve(matrix, right.unsqueeze(-1)).squeeze(-1)
    z = _apply(tangent, z)
    G, tangent, v = given
    right = -_apply(tangent, v)
    residual = (_apply(tangent, _apply(G, z)) - right).norm(dim=-1)
    return z, _relative(residual, right.norm(dim=-1))


def without_bad_items(*tensors: Tensor) -> list[Tensor]:
    """The tensors with items that hold NaN or infinity in any of them set to zero in all.

    LAPACK refuses a whole batch for one such item. The residuals are taken with the tensors as they
    were given, so such an item's is NaN.
    """
    good = torch.stack([t.flatten(1).isfinite().all(dim=1) for t in tensors]).all(dim=0)
    return [torch.where(good.reshape(-1, *[1] * (t.ndim - 1)), t, 0.0) for t in tensors]


def _symmetric_solve(K: Tensor, right: Tensor) -> Tensor:
    # A symmetric pseudo-inverse by eigenvalues; the unscaled system mixes G and A, whose sizes may
    # differ by orders of magnitude, so its rows and columns are first equilibrated (D K D).
    size = K.abs().amax(dim=-1)
    D = torch.where(size > 0, size, 1.0).rsqrt()
    values, vectors = torch.linalg.eigh(_symmetrised(D.unsqueeze(-1) * K * D.unsqueeze(-2)))
    largest = values.abs().amax(dim=-1, keepdim=True)
    cutoff = largest * (K.shape[-1] * torch.finfo(K.dtype).eps)
    kept = values.abs() > cutoff
    inverse = torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0)
    coordinates = inverse * _apply(vectors.mT, D * right)
    return D * _apply(vectors, coordinates)


def _symmetrised(K: Tensor) -> Tensor:
    return (K + K.mT) / 2


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _residual(G: Tensor, A: Tensor, v: Tensor, z: Tensor, mu: Tensor) -> Tensor:
    stationarity = _apply(G, z) + _apply(A.mT, mu) + v
    residual = torch.cat([stationarity, _apply(A, z)], -1).norm(dim=-1)
    return _relative(residual, v.norm(dim=-1))


def _relative(residual: Tensor, size: Tensor) -> Tensor:
    # v = 0 has the exact solution z = 0: the residual is then 0, and 0 is right, not 0/0.
    return torch.where(residual == 0, residual, residual / size)
