"""The dense form: Proposition 1 of *Guiding Neural Collapse*, the reference for small problems.

Multipliers λ solve λᵀA = D_y f; G = D²_yy f − Σ λₖ D²_yy hₖ; z and μ solve the adjoint system (see
`ddnkit.linalg.kkt`). On the Stiefel manifold A = L_C (K_CC + I)(U ⊗ I_C)ᵀ with the elimination and
commutation matrices of `ddnkit.linalg.vectorisation`. O(m²) memory and O(m³) time for m unknowns.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..lagrangian import (
    constraint_jacobian,
    input_gradients,
    lagrangian_hessian,
    least_squares_multipliers,
)
from ..linalg.kkt import solve_kkt
from ..problem import Problem, flat
from ..solution import Solution
from .form import Adjoint, BackwardForm


class Dense(BackwardForm):
    """Assembles Hessian and constraint Jacobian and solves the adjoint system directly."""

    name = "dense"

    def vjp(self, problem: Problem, solution: Solution, v: Tensor, wrt: Sequence[int]) -> Adjoint:
        """See `BackwardForm.vjp`."""
        y = solution.y
        A = constraint_jacobian(problem, y)
        nu = None if A is None else least_squares_multipliers(A, problem.gradient(y))
        G = lagrangian_hessian(problem, y, nu)
        solved = solve_kkt(G, A, flat(v))
        own = problem.constraints(y)
        count = 0 if own is None else own.shape[1]
        gradients = input_gradients(
            problem,
            y,
            solved.z.reshape(y.shape),
            wrt,
            nu=None if nu is None else nu[:, :count],
            mu=solved.mu[:, :count],
        )
        return Adjoint(gradients, solved.residual)
