"""Problems on the Stiefel manifold St(d, C), written as equality constraints, in plain torch.

The point of St(d, C) nearest to Y = USVᵀ is its polar factor P = UVᵀ, the maximum of tr(PᵀY).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .known_problem import ClosedFormProblem, KnownProblem


class Procrustes(ClosedFormProblem):
    """max tr(PᵀY) over St(d, C), Y = USVᵀ: P = UVᵀ; its derivative is that of `polar_jacobian`."""

    number = 13
    input_dims = (2,)

    def objective(self, Y: Tensor, y: Tensor) -> Tensor:
        """−tr(PᵀY)."""
        return -(y * Y).sum()

    def equality_constraints(self, Y: Tensor, y: Tensor) -> Tensor:
        """The lower triangle of PᵀP − I."""
        return frame_constraints(y)

    def initial_point(self, Y: Tensor) -> Tensor:
        """The first C columns of I."""
        return torch.eye(*Y.shape, dtype=Y.dtype, device=Y.device)

    def answer(self, Y: Tensor) -> Tensor:
        """UVᵀ."""
        return polar_factor(Y)

    def jacobians(self, Y: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """dP = UΩVᵀ + (I − UUᵀ)dY·VS⁻¹Vᵀ, Ωᵢⱼ = (Kᵢⱼ − Kⱼᵢ)/(sᵢ + sⱼ), K = UᵀdY·V."""
        return (polar_jacobian(Y),)

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """Y (5, 3) normal."""
        return (torch.randn(5, 3, dtype=torch.float64),)


class ProcrustesEqualValues(Procrustes):
    """The same at Y = sQ, Q on St(d, C): equal singular values, where differentiating an SVD gives NaN."""

    differentiable_solve = False

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """Y (5, 3), s in [0.5, 1.5]."""
        return ((0.5 + torch.rand((), dtype=torch.float64)) * random_frame(5, 3),)


class Brockett(KnownProblem):
    """min tr(UᵀAUN) − ⟨B, U⟩ over St(d, C), N = diag(C, …, 1): no closed form, no analytic Jacobian.

    There may be several local minima; the one that Newton's method finds from polar(B) is taken.
    """

    analytic = False
    input_dims = (2, 2)

    def objective(self, A: Tensor, B: Tensor, y: Tensor) -> Tensor:
        """tr(UᵀAUN) − ⟨B, U⟩, in which only the symmetric part of A counts."""
        N = torch.arange(y.shape[-1], 0, -1, dtype=y.dtype, device=y.device)
        return (y * (A @ y) * N).sum() - (B * y).sum()

    def equality_constraints(self, A: Tensor, B: Tensor, y: Tensor) -> Tensor:
        """The lower triangle of UᵀU − I."""
        return frame_constraints(y)

    def initial_point(self, A: Tensor, B: Tensor) -> Tensor:
        """polar(B)."""
        return polar_factor(B)

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """A (5, 5) symmetric and B (5, 2), normal."""
        A = torch.randn(5, 5, dtype=torch.float64)
        return (A + A.T) / 2, torch.randn(5, 2, dtype=torch.float64)


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
