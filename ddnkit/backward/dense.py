"""The dense form: the whole KKT matrix, or Proposition 1 of *Guiding Neural Collapse*.

Multipliers ν solve νᵀA = D_y f; G = D²_yy f − Σ νₖ D²_yy hₖ; z solves the adjoint system of
`ddnkit.linalg.kkt`, with an orthonormal basis of A's rows in place of them. On the Stiefel manifold
A = L_C (K_CC + I)(U ⊗ I_C)ᵀ with the elimination and commutation matrices of
`ddnkit.linalg.vectorisation`. O(m²) memory and O(m³) time for m unknowns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError, nearest_choice
from ..lagrangian import (
    constraint_jacobian,
    lagrangian_hessian,
    least_squares_multipliers,
)
from ..linalg.kkt import SINGULAR, KKTInverse, unit_curvature
from ..problem import Problem
from ..renamed import OldMethod
from .diagonal import diagonal_solve
from .form import BackwardForm, SystemSolution, SystemSolve, TangentSolve, merge_solutions
from .precision import SAME_OPERATOR, float64_problem, uncertainty

#: Unknowns up to which a dense factorisation is quicker than anything that looks for structure first.
DENSE_SIZE = 64
#: A float32 system with a larger residual is evaluated in float64 as well.
_GOOD_IN_FLOAT32 = 1e-5


Solve = Callable[[Tensor], SystemSolution]


class System(NamedTuple):
    """G (B, m, m), A (B, p, m) or None, the rounding that y and the operands are known to, and what the
    entries of G are uncertain by: how that is measured, and the figures where they must be; whether a
    manifold is among the constraints."""

    G: Tensor
    A: Tensor | None
    eps: float
    measure: Callable[[], Tensor]
    noise: Tensor | None = None
    on_manifold: bool = False


class Dense(BackwardForm):
    """Assembles Hessian and constraint Jacobian and solves the adjoint system directly.

    Args:
        singular: what to do where the system is singular: "minimum_norm" (the least solution),
            "damped" (Tikhonov), or "error" (the gradient is NaN, and the layer's policy acts).
        schur: the paper's Schur complement, which needs a regular Hessian, in place of the whole
            KKT matrix.
    """

    name = "dense"
    dense = True

    def __init__(self, *, singular: str = "minimum_norm", schur: bool = False):
        if singular not in SINGULAR:
            raise InputError(f"no choice '{singular}'.{nearest_choice(singular, SINGULAR)}")
        self.singular, self.schur = singular, schur

    def tangent_solve(self, problem: Problem, y: Tensor, nu: Tensor) -> TangentSolve:
        """See `BackwardForm.tangent_solve`."""
        if y.shape[1:].numel() > DENSE_SIZE and self.singular != "damped":
            diagonal = diagonal_solve(problem, y, nu)
            if diagonal is not None:
                return diagonal
        return in_enough_digits(problem, y, self.factorise)

    factorised = OldMethod("factorise")

    def factorise(self, system: System) -> Solve:
        """The solve of a system."""
        inverse = KKTInverse(
            system.G,
            system.A,
            across=system.on_manifold,
            singular=self.singular,
            schur=self.schur,
            noise=system.noise,
            measure=system.measure,
            eps=system.eps,
        )

        def solve(r: Tensor) -> SystemSolution:
            solution = inverse(r)
            return SystemSolution(
                solution.z, solution.residual, solution.mu, solution.doubt, solution.saddle
            )

        return solve


def in_enough_digits(
    problem: Problem, y: Tensor, factorise: Callable[[System], Solve]
) -> SystemSolve:
    """The system in y's dtype, and in float64 for those of a float32 problem whose residual asks for it."""
    narrow = factorise(system_at(problem, y, torch.finfo(y.dtype).eps))
    if y.dtype != torch.float32:
        return SystemSolve(narrow)
    wide = InFloat64(problem, y, factorise)

    def solve(r: Tensor) -> SystemSolution:
        found = narrow(r)
        better = wide(r, found.residual)
        return found if better is None else merge_solutions(better[0], found, better[1])

    return SystemSolve(solve)


class InFloat64:
    """The system of a float32 problem in float64, factorised when a residual first asks for it."""

    def __init__(self, problem: Problem, y: Tensor, factorise: Callable[[System], Solve]):
        self._point, self._factorise = (problem, y), factorise
        self._solves: list[Solve | None] = []

    def __call__(self, r: Tensor, residual: Tensor) -> tuple[Tensor, SystemSolution] | None:
        """For which of the right sides r (k, B, m), with these residuals in float32, it is better, and the
        solution there; None if for none."""
        short = ~(residual <= _GOOD_IN_FLOAT32)
        if not bool(short.any()):
            return None
        if not self._solves:
            system = _in_float64(*self._point)
            self._solves.append(None if system is None else self._factorise(system))
        solve = self._solves[0]
        if solve is None:
            return None
        found = solve(r)
        return short & ~found.residual.isnan(), found


def system_at(problem: Problem, y: Tensor, eps: float) -> System:
    """G, A, and how uncertain G is where y and the operands are known to the rounding ``eps``."""
    A = constraint_jacobian(problem, y)
    # A manifold's own multipliers have another shape than those of its independent constraints.
    nu = None if A is None else least_squares_multipliers(A, problem.gradient(y))
    G = lagrangian_hessian(problem, y, nu)

    def measure() -> Tensor:
        return uncertainty(lagrangian_hessian, G, problem, y, nu, eps)

    return System(G, A, eps, measure, on_manifold=problem.manifold is not None)


def _in_float64(problem: Problem, y: Tensor) -> System | None:
    instance = float64_problem(problem)
    if instance is None:
        return None
    try:
        system = system_at(instance, y.double(), torch.finfo(y.dtype).eps)
        system = system._replace(noise=system.measure())
    except Exception:  # whatever a node throws that is not made for float64
        return None
    if system.G.dtype != torch.float64:
        return None
    # Not another problem in float64, as one that smooths by the rounding error of y's dtype is.
    narrow = lagrangian_hessian(problem, y, None if system.A is None else _multipliers(problem, y))
    assert system.noise is not None
    finite = torch.where(system.G.isfinite() & system.noise.isfinite(), system.G, 0.0)
    D = unit_curvature(finite, None, system.noise.diagonal(dim1=-2, dim2=-1).nan_to_num(0.0))
    apart = D.unsqueeze(-1) * (narrow - system.G).abs() * D.unsqueeze(-2)
    same = (apart <= SAME_OPERATOR) | ~narrow.isfinite() | ~system.G.isfinite()
    return system if bool(same.all()) else None


def _multipliers(problem: Problem, y: Tensor) -> Tensor:
    A = constraint_jacobian(problem, y)
    assert A is not None
    return least_squares_multipliers(A, problem.gradient(y))
