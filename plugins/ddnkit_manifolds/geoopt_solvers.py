"""geoopt's Riemannian SGD and Adam, on a whole batch at once.

* SGD: y ← R_y(−t m), m the heavy-ball momentum of the embedded gradient g. A step t ≤ 1/L decreases
  f where L bounds the curvature of f on the manifold (`curvature_bound`). L is estimated anew at
  every check, and t halved where f has risen.
* Adam: on a manifold the second moment is one number for the whole point, ‖g‖², so every step has
  about the length of the learning rate. It must shrink for the iterates to settle: it is halved
  where f has not decreased since the last check.

Source: Bécigneul and Ganea, *Riemannian adaptive optimization methods*.
"""

from __future__ import annotations

import abc

import torch
from torch import Tensor

from ddnkit import Problem, Status

from .geoopt_base import GeooptSolver, geoopt, manifold_parameter, plain_point
from .riemannian_progress import Progress, curvature_bound
from .support import item_norm, per_item

# A rise of the objective by fewer roundings than this is none.
_NOISE = 16


class _BatchedSolver(GeooptSolver):
    """All items of the batch in step; the host looks at them every ``check_every`` iterations."""

    def __init__(
        self,
        *,
        max_iterations: int,
        gradient_tolerance: float | None,
        max_time: float | None,
        check_every: int,
    ) -> None:
        super().__init__(
            max_iterations=max_iterations,
            gradient_tolerance=gradient_tolerance,
            max_time=max_time,
        )
        self.check_every = check_every

    @abc.abstractmethod
    def _optimiser(self, parameter: geoopt.ManifoldParameter) -> torch.optim.Optimizer:
        """geoopt's optimiser; its learning rate is set at every check."""

    @abc.abstractmethod
    def _step_size(self, problem: Problem, y: Tensor) -> Tensor:
        """Step size of each item before any halving, (B,)."""

    #: A rise of the objective, in roundings, at which the step size is halved.
    _tolerated_rise: float

    def _descend(self, problem: Problem, start: Tensor, tolerance: float) -> Progress:
        progress = Progress(problem, start, tolerance, self.max_time)
        parameter = manifold_parameter(problem, start)
        optimiser = self._optimiser(parameter)
        factor = torch.ones_like(progress.tolerance)
        for iteration in range(self.max_iterations + 1):
            y = plain_point(parameter)
            value, gradient = problem.value_and_gradient(y)
            gradient = problem.manifold.tangent(y, gradient)
            late = progress.late
            if iteration % self.check_every == 0 or iteration == self.max_iterations or late:
                rise = progress.check(y, value, gradient, iteration)
                factor = torch.where(rise >= self._tolerated_rise, factor / 2, factor)
                progress.end(factor < torch.finfo(y.dtype).eps, Status.STALLED, iteration)
                if late:
                    progress.end(progress.active, Status.TIME_LIMIT, iteration)
                if not bool(progress.active.any()):
                    break
                # One learning rate an item; geoopt multiplies the direction by it.
                step = factor * self._step_size(problem, y)
                optimiser.param_groups[0]["lr"] = per_item(step, y)
                active = per_item(progress.active, y)
            parameter.grad = torch.where(active, gradient, 0.0)
            optimiser.step()
        return progress


class RiemannianSGD(_BatchedSolver):
    """Riemannian gradient descent with heavy-ball momentum, on the whole batch at once.

    See `GeooptSolver` for the common settings and the statuses.

    Args:
        learning_rate: step size times the curvature bound L of each item.
        momentum: of the heavy ball; 0 for plain gradient descent.
        check_every: iterations between checks of convergence and estimates of L.
    """

    name = "riemannian_sgd"
    _tolerated_rise = _NOISE

    def __init__(
        self,
        *,
        max_iterations: int = 10_000,
        gradient_tolerance: float | None = None,
        max_time: float | None = None,
        learning_rate: float = 1.0,
        momentum: float = 0.9,
        check_every: int = 20,
    ) -> None:
        super().__init__(
            max_iterations=max_iterations,
            gradient_tolerance=gradient_tolerance,
            max_time=max_time,
            check_every=check_every,
        )
        self.learning_rate, self.momentum = learning_rate, momentum

    def _optimiser(self, parameter: geoopt.ManifoldParameter) -> torch.optim.Optimizer:
        return geoopt.optim.RiemannianSGD([parameter], lr=1.0, momentum=self.momentum)

    def _step_size(self, problem: Problem, y: Tensor) -> Tensor:
        return self.learning_rate / curvature_bound(problem, y)


class RiemannianAdam(_BatchedSolver):
    """Riemannian Adam, on the whole batch at once.

    See `GeooptSolver` for the common settings and the statuses.

    Args:
        learning_rate: the first step size, relative to the norm of a point.
        betas: decay of the first and second moments.
        check_every: iterations between checks of convergence and of the learning rate.
    """

    name = "riemannian_adam"
    _tolerated_rise = 0

    def __init__(
        self,
        *,
        max_iterations: int = 10_000,
        gradient_tolerance: float | None = None,
        max_time: float | None = None,
        learning_rate: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.99),
        check_every: int = 20,
    ) -> None:
        super().__init__(
            max_iterations=max_iterations,
            gradient_tolerance=gradient_tolerance,
            max_time=max_time,
            check_every=check_every,
        )
        self.learning_rate, self.betas = learning_rate, betas

    def _optimiser(self, parameter: geoopt.ManifoldParameter) -> torch.optim.Optimizer:
        # Adam's usual ε of 1e-8 would set a scale for the gradient; here it only avoids 0/0.
        tiny = torch.finfo(parameter.dtype).tiny
        return geoopt.optim.RiemannianAdam([parameter], lr=1.0, betas=self.betas, eps=tiny)

    def _step_size(self, problem: Problem, y: Tensor) -> Tensor:
        return self.learning_rate * item_norm(y)
