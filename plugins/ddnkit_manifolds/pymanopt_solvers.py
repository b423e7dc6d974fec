"""pymanopt's trust regions, conjugate gradient and steepest descent on Stiefel and Sphere."""

from __future__ import annotations

import abc
from typing import Any

import pymanopt
from pymanopt.optimizers.optimizer import Optimizer
from torch import Tensor

from ddnkit import Status

from .pymanopt_base import Item, PymanoptSolver, ending
from .support import GOAL


class _GradientSolver(PymanoptSolver):
    """What the three have in common: f, ∇f and ∇²f at work, from one start."""

    @abc.abstractmethod
    def optimiser(self, **limits: Any) -> Optimizer:
        """pymanopt's optimiser, with the options ``limits`` that are common to all of them."""

    def run(self, item: Item, tolerance: float) -> tuple[Tensor, Status, int]:
        """Run pymanopt's optimiser, and see where it ended."""
        optimiser = self.optimiser(min_gradient_norm=GOAL * tolerance, **self.limits())
        start = item.start.cpu().numpy()
        result = optimiser.run(item.pymanopt_problem(), initial_point=start)
        point = item.tensor(result.point)
        # Two habits of pymanopt: of several criteria met it names the gradient late, and steepest
        # descent takes one more step, uphill in the gradient, after the point that met it.
        if item.tangent_norm(point) <= tolerance:
            status = Status.CONVERGED
        elif item.tangent_norm(item.last_finite) <= tolerance:
            point, status = item.last_finite, Status.CONVERGED
        else:
            status = ending(result.stopping_criterion)
        return point, status, result.iterations


class TrustRegions(_GradientSolver):
    """Riemannian trust regions: each step minimises the quadratic model in a ball of the tangent space.

    The model is minimised by truncated conjugate gradient on Hessian-vector products, so the last
    iterations converge superlinearly. See `PymanoptSolver` for the common settings and the statuses.

    Args:
        kappa, theta: the inner solve stops at a residual below ‖r₀‖ · min(‖r₀‖^theta, kappa).
        rho_prime: a step is taken if the decrease is more than this part of the predicted one.

    Source: Absil, Baker and Gallivan (2007).
    """

    name = "trust_regions"
    _tolerance = 1e-9

    def __init__(
        self,
        *,
        max_iterations: int = 100,
        gradient_tolerance: float | None = None,
        max_time: float | None = None,
        kappa: float = 0.1,
        theta: float = 1.0,
        rho_prime: float = 0.1,
    ) -> None:
        super().__init__(
            max_iterations=max_iterations,
            gradient_tolerance=gradient_tolerance,
            max_time=max_time,
        )
        self.kappa, self.theta, self.rho_prime = kappa, theta, rho_prime

    def optimiser(self, **limits: Any) -> Optimizer:
        """``pymanopt.optimizers.TrustRegions``."""
        return pymanopt.optimizers.TrustRegions(
            kappa=self.kappa, theta=self.theta, rho_prime=self.rho_prime, **limits
        )


class ConjugateGradient(_GradientSolver):
    """Riemannian nonlinear conjugate gradient with an adaptive backtracking line search.

    See `PymanoptSolver` for the common settings and the statuses. The line search compares values
    of f, so that gradients below about √eps of their scale are out of reach.

    Args:
        beta_rule: "HestenesStiefel", "PolakRibiere", "FletcherReeves", "HagerZhang" or "LiuStorey".
        orth_value: Powell's restart, where successive gradients overlap by more than this.
    """

    name = "conjugate_gradient"
    _tolerance = 1e-7

    def __init__(
        self,
        *,
        max_iterations: int = 2000,
        gradient_tolerance: float | None = None,
        max_time: float | None = None,
        beta_rule: str = "HestenesStiefel",
        orth_value: float = float("inf"),
    ) -> None:
        super().__init__(
            max_iterations=max_iterations,
            gradient_tolerance=gradient_tolerance,
            max_time=max_time,
        )
        self.beta_rule, self.orth_value = beta_rule, orth_value

    def optimiser(self, **limits: Any) -> Optimizer:
        """``pymanopt.optimizers.ConjugateGradient``."""
        return pymanopt.optimizers.ConjugateGradient(
            beta_rule=self.beta_rule, orth_value=self.orth_value, **limits
        )


class SteepestDescent(_GradientSolver):
    """Riemannian steepest descent with a backtracking line search.

    See `PymanoptSolver` for the settings and the statuses. It converges linearly, at a rate set by
    the conditioning of the Riemannian Hessian.
    """

    name = "steepest_descent"
    _tolerance = 1e-7

    def __init__(
        self,
        *,
        max_iterations: int = 5000,
        gradient_tolerance: float | None = None,
        max_time: float | None = None,
    ) -> None:
        super().__init__(
            max_iterations=max_iterations,
            gradient_tolerance=gradient_tolerance,
            max_time=max_time,
        )

    def optimiser(self, **limits: Any) -> Optimizer:
        """``pymanopt.optimizers.SteepestDescent``."""
        return pymanopt.optimizers.SteepestDescent(**limits)
