"""The dense form: the whole KKT matrix, or Proposition 1 of *Guiding Neural Collapse*.

Multipliers ν solve νᵀA = D_y f; G = D²_yy f − Σ νₖ D²_yy hₖ; z solves the adjoint system of
`ddnkit.linalg.kkt`, with an orthonormal basis of A's rows in place of them. On the Stiefel manifold
A = L_C (K_CC + I)(U ⊗ I_C)ᵀ with the elimination and commutation matrices of
`ddnkit.linalg.vectorisation`. O(m²) memory and O(m³) time for m unknowns.
"""

from __future__ import annotations

from torch import Tensor

from ..errors import InputError, nearest_choice
from ..lagrangian import (
    constraint_jacobian,
    lagrangian_hessian,
    least_squares_multipliers,
    row_basis,
)
from ..linalg.kkt import SINGULAR, KKTInverse
from ..problem import Problem
from .form import BackwardForm, TangentSolve


class Dense(BackwardForm):
    """Assembles Hessian and constraint Jacobian and solves the adjoint system directly.

    Args:
        singular: what to do where the system is singular: "minimum_norm" (the least solution),
            "damped" (Tikhonov), or "error" (the gradient is NaN, and the layer's policy acts).
        schur: the paper's Schur complement, which needs a regular Hessian, in place of the whole
            KKT matrix.
    """

    name = "dense"

    def __init__(self, *, singular: str = "minimum_norm", schur: bool = False):
        if singular not in SINGULAR:
            raise InputError(f"no choice '{singular}'.{nearest_choice(singular, SINGULAR)}")
        self.singular, self.schur = singular, schur

    def tangent_solve(self, problem: Problem, y: Tensor, nu: Tensor) -> TangentSolve:
        """See `BackwardForm.tangent_solve`."""
        A = constraint_jacobian(problem, y)
        # A manifold's own multipliers have another shape than those of its independent constraints.
        own = None if A is None else least_squares_multipliers(A, problem.gradient(y))
        G = lagrangian_hessian(problem, y, own)
        # z depends on the rows' span alone; the KKT matrix of A itself has the square of A's condition.
        rows = A if A is None or self.schur else row_basis(A).mT
        inverse = KKTInverse(G, rows, singular=self.singular, schur=self.schur)

        def solve(r: Tensor) -> tuple[Tensor, Tensor]:
            solution = inverse(r)
            return solution.z, solution.residual

        return solve
