"""geoopt's Riemannian line search: conjugate gradient directions, strong Wolfe conditions.

With φ(t) = f(R_y(t η)), a step t along the direction η is taken if
    φ(t) ≤ φ(0) + c₁ t φ'(0)    and    |φ'(t)| ≤ c₂ |φ'(0)|.

Source: Ring and Wirth, *Optimization methods on Riemannian manifolds and their application to shape
space*.
"""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import torch
from torch import Tensor

from ddnkit import InputError, Problem, Status

from .geoopt_base import GeooptSolver, geoopt, manifold_parameter, plain_point
from .riemannian_progress import Progress, curvature_bound
from .support import per_item

_IDLE_ITERATIONS = 20


class RiemannianLineSearch(GeooptSolver):
    """Riemannian conjugate gradient with a strong Wolfe line search.

    geoopt finds one step length for all that it optimises, so the items of a batch go to it one at
    a time; each trial step brings a number to the host. It compares values of f, whose differences
    vanish in float32 long before the gradient does, and so works in float64 whatever the input.
    See `GeooptSolver` for the common settings and the statuses.

    Args:
        direction: "pr" (Polak-Ribière), "fr" (Fletcher-Reeves) or "steepest".
        curvature_condition: the constant c₂ of |φ'(t)| ≤ c₂ |φ'(0)|.
    """

    name = "riemannian_line_search"
    _float64 = True

    def __init__(
        self,
        *,
        max_iterations: int = 2000,
        gradient_tolerance: float | None = None,
        max_time: float | None = None,
        direction: str = "pr",
        curvature_condition: float = 0.4,
    ) -> None:
        super().__init__(
            max_iterations=max_iterations,
            gradient_tolerance=gradient_tolerance,
            max_time=max_time,
        )
        if direction not in ("pr", "fr", "steepest"):
            raise InputError(f"direction is 'pr', 'fr' or 'steepest', not {direction!r}")
        self.direction, self.curvature_condition = direction, curvature_condition

    def _descend(self, problem: Problem, start: Tensor, tolerance: float) -> Progress:
        whole = Progress(problem, start, tolerance)
        for index in range(problem.batch_size):
            single = Problem.single(problem.node, problem.item(index))
            one = Progress(single, start[index : index + 1], tolerance, self.max_time)
            with warnings.catch_warnings():
                # A search without a result is told apart by its step size, not by a warning.
                warnings.filterwarnings("ignore", category=RuntimeWarning)
                self._descend_one(single, one)
            whole.take_over(index, one)
        return whole

    def _descend_one(self, problem: Problem, progress: Progress) -> None:
        parameter = manifold_parameter(problem, progress.y)
        # A line search starts from a unit step: right for an objective of unit curvature.
        curvature = curvature_bound(problem, progress.y)

        def objective() -> float:
            value, gradient = problem.value_and_gradient(plain_point(parameter))
            parameter.grad = gradient / per_item(curvature, gradient)
            # NaN compares false with everything: outside the domain the objective is infinite.
            return torch.nan_to_num(value / curvature, nan=torch.inf, posinf=torch.inf).item()

        # The transport of a direction is not quite the derivative of the retraction, so that the
        # Wolfe conditions can fail far from the solution; then the gradient alone, with Armijo's.
        searches: list[dict[str, Any]] = [
            {
                "line_search_method": "wolfe",
                "line_search_params": {"c2": self.curvature_condition},
                "cg_method": self.direction,
            },
            {"line_search_method": "armijo", "cg_method": "steepest"},
        ]
        optimiser = geoopt.optim.RiemannianLineSearch([parameter], **searches[0])
        idle = 0
        for iteration in range(self.max_iterations + 1):
            y = plain_point(parameter)
            value, gradient = problem.value_and_gradient(y)
            gradient = problem.manifold.tangent(y, gradient)
            rise = float(progress.check(y, value, gradient, iteration))
            # At the rounding level of f a search may go on taking steps that change nothing.
            idle = idle + 1 if rise >= 0 else 0
            if idle == _IDLE_ITERATIONS:
                progress.end(progress.active, Status.STALLED, iteration)
            if progress.late and iteration < self.max_iterations:
                progress.end(progress.active, Status.TIME_LIMIT, iteration)
            if not bool(progress.active.any()) or iteration == self.max_iterations:
                return
            optimiser.step(objective)
            if optimiser.last_step_size is None:
                fallback = geoopt.optim.RiemannianLineSearch([parameter], **searches[1])
                # At the rounding level of f the search halves its step down to 0 and divides by it.
                with contextlib.suppress(ZeroDivisionError):
                    fallback.step(objective)
                optimiser = geoopt.optim.RiemannianLineSearch([parameter], **searches[0])
                if fallback.last_step_size is None:
                    progress.end(progress.active, Status.STALLED, iteration)
                    return
