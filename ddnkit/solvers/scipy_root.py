"""SciPy's root finders on the equations that a solution satisfies.

    F(y, ν) = ( ∇f(y) − Dh(y)ᵀν,  h(y) ) = 0,      DF = [ D²_yy L  −Dhᵀ ]
                                                        [   Dh       0   ]
in the m + p unknowns y and ν, with the exact Jacobian. A minimum solves them, and so does every other
stationary point, a maximum or a saddle point alike: nothing here tells them apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import optimize

from ..solution import Status
from .iterative import choice
from .scipy_base import ScipyItem, ScipySolver
from .scipy_inequalities import OUTSIDE, EndOfSolve

# `ScipyItem` judges the points; MINPACK's own rule on accuracy is set out of reach.
_NEVER = 1e-300


@dataclass(frozen=True, kw_only=True)
class Root(ScipySolver):
    """Solves  ∇_y L(x, y, ν) = 0, h(x, y) = 0  for y and ν, from least-squares multipliers.

    Finds a stationary point near the start, **not necessarily a minimum**, and reports it CONVERGED:
    use it from a good start, or where f is convex and h affine. O((m + p)³) time a step. Dependent
    constraints are reduced to independent ones (see `scipy_base`). See `ScipySolver` for the common
    settings and the statuses; here an iteration is an evaluation of F.

    Args:
        method: "hybr", Powell's hybrid method, or "lm", Levenberg-Marquardt, both of MINPACK.

    Source: Moré, Garbow and Hillstrom (1980), *User guide for MINPACK-1*.
    """

    name = "root"

    max_iterations: int = 1000
    method: str = choice("hybr", "lm")

    def _minimise(self, item: ScipyItem) -> None:
        unknowns = np.concatenate([item.last, item.multipliers()])
        equations = _Equations(item)
        limit = "maxfev" if self.method == "hybr" else "maxiter"
        result = optimize.root(
            equations.residual,
            unknowns,
            jac=equations.jacobian,
            method=self.method,
            options={limit: self.max_iterations + 2, "xtol": _NEVER},
        )
        # The last point it looked at need not be the best.
        item.settle(result.x[: len(item.x0)])


class _Equations:
    """F and its Jacobian in the unknowns (y, ν̃), ν̃ the multipliers of h̃."""

    def __init__(self, item: ScipyItem) -> None:
        self.item = item
        self.size = len(item.x0)

    def residual(self, unknowns: np.ndarray) -> np.ndarray:
        y, nu = unknowns[: self.size], unknowns[self.size :]
        try:
            self.item.iterate(y)
        except EndOfSolve as end:
            if end.status is not Status.NON_FINITE:
                raise
            return np.full_like(unknowns, OUTSIDE)
        gradient = self.item.gradient(y) - self.item.jacobian(y).T @ nu
        return np.concatenate([gradient, self.item.constraints(y)])

    def jacobian(self, unknowns: np.ndarray) -> np.ndarray:
        y, nu = unknowns[: self.size], unknowns[self.size :]
        A = _tame(self.item.jacobian_at(y))
        corner = np.zeros((len(A), len(A)))
        return np.block([[_tame(self.item.lagrangian_hessian(y, nu)), -A.T], [A, corner]])


def _tame(matrix: np.ndarray) -> np.ndarray:
    return np.nan_to_num(matrix, nan=0.0, posinf=0.0, neginf=0.0)
