"""The fixed-point form, for nodes given as a map: y = T(θ, y).

With J = D_y T the theorem gives  dy = (I − J)⁻¹ D_θT dθ,  so that
    v·dy = uᵀ D_θT dθ,      (I − Jᵀ) u = v:
one linear system with transposed products of T, solved by GMRES, and one backward pass. Its residual is
reported. Where I − J is singular the fixed point is not isolated, and the residual says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..linalg.arnoldi import gmres
from ..problem import Problem, flat, pull_back
from .form import BackwardForm, TangentSolve
from .matrix_free import by_size


class FixedPoint(BackwardForm):
    """Solves (I − D_yTᵀ) u = v; needs ``node.fixed_point``.

    Args:
        tolerance: relative residual to stop at; None: what the dtype can reach.
        max_iterations: of GMRES; None: chosen by size.
    """

    name = "fixed_point"
    has_adjoint = True
    node_member = "fixed_point"

    def __init__(self, *, tolerance: float | None = None, max_iterations: int | None = None):
        self.tolerance, self.max_iterations = tolerance, max_iterations

    def unsupported(self, problem: Problem) -> str | None:
        """The node must have a fixed-point map, and no constraints."""
        node = problem.node
        if node.fixed_point is None:
            return "it has no `fixed_point(self, *xs, y)`; use 'auto'"
        if node.constrained or node.manifold is not None:
            return "it has constraints beside its fixed-point map; use 'dense' or 'krylov'"
        return None

    def tangent_solve(self, problem: Problem, y: Tensor, nu: Tensor) -> TangentSolve:
        """See `BackwardForm.tangent_solve`."""
        return by_size(problem, y.shape[1:].numel()).tangent_solve(problem, y, nu)

    def adjoint(
        self,
        problem: Problem,
        y: Tensor,
        v: Tensor,
        aux: Mapping[str, Tensor],
        wrt: Sequence[int],
    ) -> tuple[list[Tensor], Tensor | None]:
        """See `BackwardForm.adjoint`."""
        operands = problem.operands
        with torch.enable_grad():
            moving = [operands[i].detach().requires_grad_() for i in wrt]
            for i, x in zip(wrt, moving, strict=True):
                operands[i] = x
            variable = y.detach().requires_grad_()
            value = problem.with_operands(operands).fixed_point(variable)

        def transposed(u: Tensor) -> Tensor:
            return u - flat(pull_back(value, [variable], u.reshape(value.shape))[0])

        solved = gmres(
            transposed, flat(v), tolerance=self.tolerance, max_iterations=self.max_iterations
        )
        return pull_back(value, moving, solved.x.reshape(value.shape)), solved.residual
