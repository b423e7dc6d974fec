"""Which general form suits a size: dense where that is quick, matrix-free beyond, dense as a rescue."""

from __future__ import annotations

import torch
from torch import Tensor

from ..linalg.kkt import RANK_REVEALING_SIZE
from ..problem import Problem
from .dense import DENSE_SIZE, Dense
from .embedded_field import EmbeddedField
from .form import BackwardForm, SystemSolve, TangentSolve, replaced, solved
from .krylov import Krylov


def by_size(problem: Problem, size: int) -> BackwardForm:
    """The general form for y of ``size`` unknowns."""
    if size > DENSE_SIZE:
        return KrylovThenDense() if size <= RANK_REVEALING_SIZE else Krylov()
    return Dense() if problem.manifold is None or problem.node.constrained else EmbeddedField()


class KrylovThenDense(BackwardForm):
    """Krylov, and a dense factorisation where an iteration does not reach its tolerance."""

    name = "krylov"

    def tangent_solve(self, problem: Problem, y: Tensor, nu: Tensor) -> TangentSolve:
        """See `BackwardForm.tangent_solve`."""
        iterative = Krylov().tangent_solve(problem, y, nu)

        def solve(r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            found = _with_multipliers(iterative, r)
            unsolved = ~(found[1] <= torch.finfo(r.dtype).eps ** 0.5 / 100)
            if not bool(unsolved.any()):
                return found
            direct = _with_multipliers(Dense().tangent_solve(problem, y, nu), r)
            if direct[2].shape != found[2].shape:  # a manifold's own, which nobody asks for
                direct = (*direct[:2], found[2])
            better = unsolved & ((direct[1] < found[1]) | found[1].isnan())
            return replaced(better, found, direct)

        return SystemSolve(solve)


def _with_multipliers(solve: TangentSolve, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    z, residual, mu = solved(solve, r)
    assert mu is not None
    return z, residual, mu
