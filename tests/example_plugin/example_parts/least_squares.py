"""A backward form: the whole linear system by least squares."""

from __future__ import annotations

import torch
from torch import Tensor

from ddnkit import BackwardForm, Problem
from ddnkit.solvers import constraint_jacobian, lagrangian_hessian, least_squares_multipliers


class LeastSquares(BackwardForm):
    """Solves  [G Aᵀ; A 0][z; μ] = [r; 0]  in float64, dense."""

    name = "least_squares"
    dense = True

    def tangent_solve(self, problem: Problem, y: Tensor, nu: Tensor):
        """Build the matrix once for all right sides."""
        A = constraint_jacobian(problem, y)
        multipliers = None
        if A is None:
            A = y.new_zeros(len(y), 0, y[0].numel())
        else:
            multipliers = least_squares_multipliers(A, problem.gradient(y).flatten(1))
        G = lagrangian_hessian(problem, y, multipliers)
        corner = A.new_zeros(len(A), A.shape[1], A.shape[1])
        matrix = torch.cat([torch.cat([G, A.mT], 2), torch.cat([A, corner], 2)], 1).double()

        def solve(r: Tensor) -> tuple[Tensor, Tensor]:
            right = torch.cat([r, r.new_zeros(*r.shape[:-1], A.shape[1])], -1).double()
            right = right.permute(1, 2, 0)  # (B, m + p, k)
            found = torch.linalg.lstsq(matrix, right, driver="gelsd").solution
            size = torch.linalg.vector_norm(right, dim=1).clamp_min(torch.finfo(r.dtype).tiny)
            off = torch.linalg.vector_norm(matrix @ found - right, dim=1) / size
            z = found[:, : r.shape[-1]].permute(2, 0, 1)
            return z.to(r.dtype), off.mT.to(r.dtype)

        return solve
