"""The polar factor of a matrix as a function of it, at the cost of a hand-written layer.

U = A (AᵀA)^{−½}, and its derivative by `ddnkit.linalg.polar_adjoint`. What has no answer there, or is asked
for more (a matrix that is nearly rank-deficient, a derivative of the derivative, a transform of
torch.func), goes to the layer of the nearest point, with its certificate.

AᵀA has the square of A's condition κ: U departs from orthonormal by κ²ε, with the ε of float64, which one
step of Newton and Schulz, U(3I − UᵀU)/2, squares. From the nearest matrix, for which UᵀA is symmetric, it
departs by as much; U(I + Ω) is nearer, Ω skew with ΩH + HΩ = UᵀA − AᵀU and H = V diag(s) Vᵀ. Where κ²ε is
more than that can do, the singular vectors are A's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddnkit import Manifold, nearest_point, under_transform
from ddnkit.linalg import polar_adjoint

#: 1/κ² from which AᵀA is good enough for float64, κ²ε being 2e-10 then in a gradient, and below, where it is
#: less than a rounding.
_LEAST_SQUARE = {torch.float64: 1e-6}
_LEAST_SQUARE_BELOW = 1e-8


def polar_factor(manifold: Manifold, A: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns, (..., d, C), of one with d ≥ C."""
    if under_transform() or not A.is_floating_point() or not A.numel():
        return nearest_point(manifold, A) if A.numel() else A
    wide = A.detach().to(torch.float64)
    found = _factors(wide, A.dtype)
    if found is None:
        return nearest_point(manifold, A)
    U, V, s = found
    U = U.to(A.dtype)
    if not (A.requires_grad and torch.is_grad_enabled()):
        return U
    point: Tensor = _Polar.apply(A, U, V.to(A.dtype), s.to(A.dtype), manifold)
    return point


def _factors(A: Tensor, given: torch.dtype) -> tuple[Tensor, Tensor, Tensor] | None:
    """U, V and s of A = (U V) diag(s) Vᵀ in float64; None where A, known to ``given``, may have less rank."""
    least = _LEAST_SQUARE.get(given, _LEAST_SQUARE_BELOW)
    try:
        squares, V = torch.linalg.eigh(A.mT @ A)
        # NaN is above nothing.
        if bool((squares[..., 0] > least * squares[..., -1]).all()):
            s = squares.sqrt()
            U = A @ ((V / s.unsqueeze(-2)) @ V.mT)
            if given == torch.float64:
                K = V.mT @ (U.mT @ A) @ V
                U = U + U @ (V @ ((K - K.mT) / (s.unsqueeze(-1) + s.unsqueeze(-2))) @ V.mT)
            return 1.5 * U - U @ ((U.mT @ U) / 2), V, s
        left, s, right = torch.linalg.svd(A, full_matrices=False)
    except torch.linalg.LinAlgError:  # of what is no number
        return None
    known = max(A.shape[-2:]) * torch.finfo(given).eps
    if not bool((s[..., -1] > known * s[..., 0]).all()):
        return None
    return left @ right, right.mT, s


class _Polar(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, A: Tensor, U: Tensor, V: Tensor, s: Tensor, manifold: Manifold) -> Tensor:
        ctx.manifold = manifold
        ctx.save_for_backward(A, U, V, s)
        return U.clone()

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        A, U, V, s = ctx.saved_tensors
        if torch.is_grad_enabled():  # its derivative is asked for
            (found,) = torch.autograd.grad(nearest_point(ctx.manifold, A), A, v, create_graph=True)
            return found, None, None, None, None
        return polar_adjoint(U, V, s, v), None, None, None, None
