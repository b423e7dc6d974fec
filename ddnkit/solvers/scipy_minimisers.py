"""SciPy's minimisers with constraints: SLSQP, and trust regions (trust-constr).

With equations alone they run as `scipy_base` has it, with inequalities or bounds as `scipy_inequalities` has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import Bounds, NonlinearConstraint, minimize
from scipy.sparse.linalg import LinearOperator

from .iterative import number
from .scipy_base import ScipyItem, ScipySolver
from .scipy_inequalities import InequalityItem

# `ScipyItem` judges the iterates; SciPy's own rules on accuracy are set out of reach.
_NEVER = 1e-300
#: By them, where they judge themselves, of quantities of size one; a polish does the rest.
_ACCURACY = 1e-12


@dataclass(frozen=True, kw_only=True)
class SLSQP(ScipySolver):
    """Sequential quadratic programming: each step solves a quadratic program with a BFGS matrix.

    First derivatives only; O(m³) time a step. See `ScipySolver` for the settings and the statuses.

    Source: Kraft (1988), *A software package for sequential quadratic programming*.
    """

    name = "slsqp"
    takes_inequalities = True

    def _minimise(self, item: ScipyItem) -> None:
        constraint = {"type": "eq", "fun": item.constraints, "jac": item.jacobian}
        minimize(
            item.objective,
            item.last,
            jac=item.gradient,
            method="SLSQP",
            constraints=[constraint] if item.constrained else (),
            options={"maxiter": self.max_iterations + 2, "ftol": _NEVER},
        )

    def run_with_inequalities(self, item: InequalityItem) -> None:
        """To its own end."""
        constraints = []
        if item.equations:
            constraints.append({"type": "eq", "fun": item.h, "jac": item.A})
        if item.inequalities:
            constraints.append(
                {"type": "ineq", "fun": lambda x: -item.g(x), "jac": lambda x: -item.G(x)}
            )
        minimize(
            item.objective,
            item.last,
            jac=item.gradient,
            method="SLSQP",
            bounds=Bounds(item.lower, item.upper),
            constraints=constraints,
            options={"maxiter": self.max_iterations + 2, "ftol": _ACCURACY},
        )


@dataclass(frozen=True, kw_only=True)
class TrustConstr(ScipySolver):
    """Trust-region sequential quadratic programming with exact second derivatives.

    Hessians of f and h come in as Hessian-vector products by automatic differentiation. See
    `ScipySolver` for the common settings and the statuses.

    Args:
        initial_radius: of the first trust region, in units of y.

    Source: Lalee, Nocedal and Plantenga (1998), after Byrd and Omojokun.
    """

    name = "trust_constr"
    takes_inequalities = True

    initial_radius: float = number(1.0, above=0)

    def _minimise(self, item: ScipyItem) -> None:
        options: dict[str, Any] = {
            # Steps that it rejects count here, and not for `ScipyItem`.
            "maxiter": 10 * self.max_iterations + 1,
            "gtol": _NEVER,
            "xtol": np.finfo(np.float64).eps ** 2,
            "initial_tr_radius": self.initial_radius,
        }
        constraints: Any = ()
        if item.constrained:
            size = len(item.x0)

            def hessian(x: np.ndarray, weights: np.ndarray) -> LinearOperator:
                def product(v: np.ndarray) -> np.ndarray:
                    return item.constraint_hessian_vector(x, weights, v)

                return LinearOperator((size, size), matvec=product, dtype=np.float64)

            constraints = NonlinearConstraint(
                item.constraints, 0.0, 0.0, jac=item.jacobian, hess=hessian
            )
            options["factorization_method"] = "SVDFactorization"
        minimize(
            item.objective,
            item.last,
            jac=item.gradient,
            hessp=item.hessian_vector,
            method="trust-constr",
            constraints=constraints,
            options=options,
        )

    def run_with_inequalities(self, item: InequalityItem) -> None:
        """To its own end, with its barrier."""
        constraints = []
        if item.equations:
            constraints.append(
                NonlinearConstraint(
                    item.h, 0.0, 0.0, jac=item.A, hess=lambda x, v: item.hessian(x, of_h=v)
                )
            )
        if item.inequalities:
            constraints.append(
                NonlinearConstraint(
                    item.g, -np.inf, 0.0, jac=item.G, hess=lambda x, v: item.hessian(x, of_g=v)
                )
            )
        minimize(
            item.objective,
            item.last,
            jac=item.gradient,
            hess=lambda x: item.hessian(x, of_f=1.0),
            method="trust-constr",
            bounds=Bounds(item.lower, item.upper),
            constraints=constraints,
            options={
                "maxiter": 10 * self.max_iterations + 1,
                "gtol": _ACCURACY**0.75,
                "xtol": _ACCURACY,
                "barrier_tol": _ACCURACY,
                "initial_tr_radius": self.initial_radius,
                "factorization_method": "SVDFactorization" if constraints else None,
            },
        )
