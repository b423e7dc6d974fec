"""Which general form suits a size: dense where that is quick, matrix-free beyond, dense as a rescue."""

from __future__ import annotations

import torch
from torch import Tensor

from ..linalg.kkt import RANK_REVEALING_SIZE
from ..problem import Problem
from .dense import DENSE_SIZE, Dense
from .embedded_field import EmbeddedField
from .form import BackwardForm, SystemSolution, SystemSolve, TangentSolve, merge_solutions
from .krylov import Krylov


def by_size(problem: Problem, size: int) -> BackwardForm:
    """The general form for y of ``size`` unknowns."""
    if size > DENSE_SIZE:
        return KrylovThenDense() if size <= RANK_REVEALING_SIZE else Krylov()
    return Dense() if problem.manifold is None or problem.node.constrained else EmbeddedField()


class KrylovThenDense(BackwardForm):
    """Krylov, and a dense factorisation where an iteration does not reach its tolerance.

    The certificate names both then: "krylov, then dense".
    """

    name = Krylov.name

    def tangent_solve(self, problem: Problem, y: Tensor, nu: Tensor) -> TangentSolve:
        """See `BackwardForm.tangent_solve`."""
        iterative = Krylov().tangent_solve(problem, y, nu)
        assert isinstance(iterative, SystemSolve)

        def solve(r: Tensor) -> SystemSolution:
            found = iterative.system(r)
            unsolved = ~(found.residual <= torch.finfo(r.dtype).eps ** 0.5 / 100)
            if not bool(unsolved.any()):
                return found
            dense = Dense().tangent_solve(problem, y, nu)
            assert isinstance(dense, SystemSolve)
            direct = dense.system(r)
            assert direct.mu is not None and found.mu is not None
            if direct.mu.shape != found.mu.shape:  # a manifold's own, which nobody asks for
                direct = direct._replace(mu=found.mu)
            better = unsolved & ((direct.residual < found.residual) | found.residual.isnan())
            return merge_solutions(better, found, direct)._replace(then=Dense.name)

        return SystemSolve(solve)
