"""Products with A = Dh and Aᵀ, without A: what a method of O(m) memory may know of the constraints.

One backward pass gives Aᵀv. It is linear in v, so that differentiating vᵀ(A w) = (Aᵀv)ᵀw once more,
with respect to v, gives A w. Both graphs are built once and used for every product at this point.

Least-squares multipliers, min over ν of ‖∇f − Aᵀν‖², follow by conjugate gradients on A Aᵀν = A∇f in
the form CGLS, which starts from 0 and so gives the ν of least norm where A has dependent rows.

Source: Björck, *Numerical Methods for Least Squares Problems*, algorithm 7.4.1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..problem import Problem, flat

_LEAST_SQUARES_STEPS = 100


class ConstraintProducts:
    """A of each item at y (B, *y), as a pair of products.

    Attributes:
        h: (B, p), the constraints there.
    """

    def __init__(self, problem: Problem, y: Tensor) -> None:
        with torch.enable_grad():
            self._y = y.detach().requires_grad_()
            h = problem.all_constraints(self._y)
            self._h = flat(self._y)[:, :0] if h is None else h
            self._v = torch.zeros_like(self._h, requires_grad=True)
            self._pulled = self._pull(self._v, create_graph=True)
        self.h = self._h.detach()

    def transposed(self, v: Tensor) -> Tensor:
        """Aᵀv, (B, m), for v (B, p)."""
        return flat(self._pull(v))

    def forward(self, w: Tensor) -> Tensor:
        """A w, (B, p), for w (B, m)."""
        if not self._pulled.requires_grad:
            return torch.zeros_like(self.h)
        (product,) = torch.autograd.grad(
            self._pulled, self._v, w.reshape(self._y.shape), retain_graph=True, allow_unused=True
        )
        return torch.zeros_like(self.h) if product is None else product

    def least_squares(self, gradient: Tensor) -> Tensor:
        """The ν (B, p) of least norm that minimises ‖∇f − Aᵀν‖ for the gradient (B, m)."""
        residual = gradient
        nu = torch.zeros_like(self.h)
        s = direction = self.forward(residual)
        square = s.square().sum(dim=-1)
        target = square * torch.finfo(s.dtype).eps ** 2
        for _ in range(min(_LEAST_SQUARES_STEPS, 2 * s.shape[1])):
            going = square > target
            if not bool(going.any()):
                break
            q = self.transposed(direction)
            length = torch.where(going, square / q.square().sum(dim=-1), 0.0).unsqueeze(-1)
            nu, residual = nu + length * direction, residual - length * q
            s, before = self.forward(residual), square
            square = s.square().sum(dim=-1)
            direction = s + torch.where(going, square / before, 0.0).unsqueeze(-1) * direction
        return nu.nan_to_num(nan=0, posinf=0, neginf=0)

    def _pull(self, v: Tensor, create_graph: bool = False) -> Tensor:
        if not self._h.requires_grad or self._h.numel() == 0:
            return torch.zeros_like(self._y)
        (product,) = torch.autograd.grad(
            self._h, self._y, v, create_graph=create_graph, retain_graph=True, allow_unused=True
        )
        return torch.zeros_like(self._y) if product is None else product
