"""Which general form suits a size: dense where that is quick, matrix-free beyond, dense as a rescue."""

from __future__ import annotations

import torch
from torch import Tensor

from ..linalg.kkt import RANK_REVEALING_SIZE
from ..problem import Problem
from .dense import Dense
from .embedded_field import EmbeddedField
from .form import BackwardForm, TangentSolve
from .krylov import Krylov

#: Unknowns up to which a dense factorisation is quicker than a Krylov iteration.
DENSE_SIZE = 64


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

        def solve(r: Tensor) -> tuple[Tensor, Tensor]:
            z, residual = iterative(r)
            unsolved = ~(residual <= torch.finfo(r.dtype).eps ** 0.5 / 100)
            if bool(unsolved.any()):
                direct, left = Dense().tangent_solve(problem, y, nu)(r)
                better = unsolved & (left < residual)
                z = torch.where(better.unsqueeze(-1), direct, z)
                residual = torch.where(better, left, residual)
            return z, residual

        return solve
