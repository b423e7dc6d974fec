"""The polar factor of a matrix as a function of it, at the cost of a hand-written layer.

U = A (AᵀA)^{−½}, and its derivative by `ddnkit.linalg.polar_adjoint`. What has no answer there, or is asked
for more (a matrix that is nearly rank-deficient, a derivative of the derivative, a transform of
torch.func), goes to the layer of the nearest point, with its certificate.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddnkit import Manifold, nearest_point
from ddnkit.linalg import polar_adjoint

#: Of singular values, least to largest, below which the layer is asked: a Gram matrix has the square of it.
_LEAST = 1e-5


def polar_factor(manifold: Manifold, A: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns, (..., d, C), of one with d ≥ C."""
    if torch._C._functorch.peek_interpreter_stack() is not None or not A.is_floating_point():
        return nearest_point(manifold, A)
    if torch.autograd.forward_ad._current_level >= 0:
        return nearest_point(manifold, A)
    wide = A.detach().to(torch.float64)
    squares, V = torch.linalg.eigh(wide.mT @ wide)
    # NaN is above nothing.
    if not bool((squares[..., 0] > _LEAST**2 * squares[..., -1]).all()):
        return nearest_point(manifold, A)
    s = squares.sqrt()
    U = (wide @ ((V / s.unsqueeze(-2)) @ V.mT)).to(A.dtype)
    if not (A.requires_grad and torch.is_grad_enabled()):
        return U
    found: Tensor = _Polar.apply(A, U, V.to(A.dtype), s.to(A.dtype), manifold)
    return found


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
