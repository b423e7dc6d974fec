"""Matrices with orthonormal columns, as the problems on St(d, C) need them; in plain torch.

The point of St(d, C) nearest to Y = USVᵀ is its polar factor P = UVᵀ, the maximum of tr(PᵀY).
"""

from __future__ import annotations

import torch
from torch import Tensor


def frame_constraints(P: Tensor) -> Tensor:
    """The lower triangle of PᵀP − I, each equation once."""
    C = P.shape[-1]
    rows, columns = torch.tril_indices(C, C, device=P.device)
    return (P.T @ P - torch.eye(C, dtype=P.dtype, device=P.device))[rows, columns]


def polar_factor(Y: Tensor) -> Tensor:
    """UVᵀ."""
    U, _, Vh = torch.linalg.svd(Y, full_matrices=False)
    return U @ Vh


def polar_jacobian(Y: Tensor) -> Tensor:
    """dP/dY, of shape (d, C, d, C), finite at equal singular values.

    dP = UΩVᵀ + (I − UUᵀ)dY·VS⁻¹Vᵀ,   Ωᵢⱼ = (Kᵢⱼ − Kⱼᵢ)/(sᵢ + sⱼ),   K = UᵀdY·V.
    """
    U, s, Vh = torch.linalg.svd(Y, full_matrices=False)
    dY = torch.eye(Y.numel(), dtype=Y.dtype).reshape(*Y.shape, *Y.shape)
    K = U.T @ dY @ Vh.T
    omega = (K - K.mT) / (s.unsqueeze(1) + s)
    normal = dY - U @ (U.T @ dY)
    # The first two dimensions number the entries of Y, the last two those of P.
    return (U @ omega @ Vh + normal @ (Vh.T / s) @ Vh).permute(2, 3, 0, 1)


def random_frame(d: int, C: int) -> Tensor:
    """A random point of St(d, C)."""
    return polar_factor(torch.randn(d, C, dtype=torch.float64))
