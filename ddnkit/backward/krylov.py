"""The Krylov form: Hessian-vector products alone, O(m) memory, never an m×m matrix.

P G P z = P r is solved on the tangent space by conjugate gradients. Where they meet a direction of
negative curvature (a saddle point) or end above their tolerance, MINRES takes over for the items
concerned; it also gives the solution of least norm of a singular, consistent system. What either
leaves is reported as residual, never hidden.

Besides y-sized vectors it keeps the constraint gradients A (p×m) and their Gram matrix (p×p) of
constraints that are not a manifold's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..linalg.krylov import conjugate_gradient
from ..linalg.minimal_residuals import minres
from ..linalg.replay import Replayed
from ..problem import Problem, flat
from .form import BackwardForm, TangentSolve
from .tangent_operator import Operator, Projector, hessian_operator

#: builds, for a problem and its solution y, an approximation of G⁻¹ on vectors (..., B, m)
Preconditioner = Callable[[Problem, Tensor], Operator]


class Krylov(BackwardForm):
    """Conjugate gradients, or MINRES, on the tangent space.

    Args:
        tolerance: relative residual to stop at; None: what the dtype can reach.
        max_iterations: of each of the two methods; None: chosen by size.
        preconditioner: ``preconditioner(problem, y)`` returns a symmetric positive definite
            approximation of G⁻¹ as a function of vectors (..., B, m). None: the node's own
            ``precondition(*xs, y, v)`` of one problem, if it has one.
    """

    name = "krylov"

    def __init__(
        self,
        *,
        tolerance: float | None = None,
        max_iterations: int | None = None,
        preconditioner: Preconditioner | None = None,
    ):
        self.tolerance = tolerance
        self.max_iterations = max_iterations
        self.preconditioner = preconditioner

    def tangent_solve(self, problem: Problem, y: Tensor, nu: Tensor) -> TangentSolve:
        """See `BackwardForm.tangent_solve`."""
        P = Projector(problem, y)
        G = hessian_operator(problem, y, nu)
        precondition = self._preconditioner(problem, y, P)

        def operator(v: Tensor) -> Tensor:
            # The right side is tangent, and with it all that an iteration makes of it.
            return P.once(G(v))

        replayed = Replayed(operator)

        def solve(r: Tensor) -> tuple[Tensor, Tensor]:
            right = P(r)
            # What rounding leaves of a right side that is normal to the constraints is not solved for.
            size = r.norm(dim=-1)
            noise = 8 * torch.finfo(r.dtype).eps * size
            right = torch.where((right.norm(dim=-1) > noise).unsqueeze(-1), right, 0.0)
            settings: dict[str, Any] = {
                "tolerance": self.tolerance,
                "max_iterations": self.max_iterations,
                "preconditioner": precondition,
                "inside": replayed,
            }
            found = conjugate_gradient(operator, right, **settings)
            z, residual = P(found.x), found.residual
            again = found.negative_curvature | ~(residual <= _good_enough(r.dtype))
            if bool(again.any()):
                # Items that are done have a zero right side, which costs MINRES nothing.
                rest = torch.where(again.unsqueeze(-1), right, 0.0)
                other = minres(operator, rest, **settings)
                better = again & ~(other.residual > residual)
                z = torch.where(better.unsqueeze(-1), P(other.x), z)
                residual = torch.where(better, other.residual, residual)
            return z, residual

        return solve

    def _preconditioner(self, problem: Problem, y: Tensor, P: Operator) -> Operator | None:
        if self.preconditioner is not None:
            given = self.preconditioner(problem, y)
        elif problem.node.precondition is not None:
            given = _of_node(problem, y)
        else:
            return None
        return lambda v: P(given(P(v)))


def _good_enough(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps ** 0.5 / 100


def _of_node(problem: Problem, y: Tensor) -> Operator:
    def apply(v: Tensor) -> Tensor:
        columns = v.reshape(-1, *y.shape)
        solved = [problem.precondition(y, column) for column in columns]
        return flat(torch.cat(solved)).reshape(v.shape)

    return apply
