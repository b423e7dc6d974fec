"""geoopt behind the Solver contract: Riemannian SGD and Adam on a whole batch, and a line search.

They run in torch, on the device and in the dtype of the problem (half precision in float32). Each
step takes the embedded gradient g = ∇f − Σᵢ σᵢ ∇jᵢ (see `ddnkit.Manifold`) and a retraction R; what
is left to choose, and what the solvers differ in, is the direction and the step size.

* SGD: y ← R_y(−t m), m the heavy-ball momentum of the embedded gradient g. A step t ≤ 1/L decreases
  f where L bounds the curvature of f on the manifold (`curvature_bound`). L is estimated anew at
  every check, and t halved where f has risen.
* Adam: on a manifold the second moment is one number for the whole point, ‖g‖², so every step has
  about the length of the learning rate. It must shrink for the iterates to settle: it is halved
  where f has not decreased since the last check.
* Line search: conjugate gradient directions η and strong Wolfe conditions. With φ(t) = f(R_y(t η)), a
  step t is taken if
      φ(t) ≤ φ(0) + c₁ t φ'(0)    and    |φ'(t)| ≤ c₂ |φ'(0)|.

Source: Kochurov, Karimov and Kozlukov, *Geoopt*; Bécigneul and Ganea, *Riemannian adaptive optimization
methods*; Ring and Wirth, *Optimization methods on Riemannian manifolds and their application to shape
space*.
"""

from __future__ import annotations

import abc
import contextlib
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ddnkit import Manifold, Problem, Solution, Status
from ddnkit.solvers import choice, number, whole_number

from .matrices import lapack_dtype
from .riemannian import (
    Progress,
    RiemannianSolver,
    curvature_bound,
    in_dtype,
    per_item,
    point_size,
)

with warnings.catch_warnings():
    # Importing geoopt compiles a few functions with torch.jit.script, which newer torch deprecates.
    warnings.filterwarnings("ignore", message=".*torch.jit")
    import geoopt

# A rise of the objective by fewer roundings than this is none.
_NOISE = 16
_IDLE_ITERATIONS = 20
# Largest tangent gradient by default, relative to its scale: what each dtype reaches with ease.
_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-7}


class GeooptManifold(geoopt.Manifold):
    """A `ddnkit.Manifold`, in the metric of the space around it, as geoopt asks for one."""

    reversible = False

    def __init__(self, manifold: Manifold) -> None:
        super().__init__()
        self._manifold = manifold
        self.name = type(manifold).__name__
        self.ndim = manifold.event_dims

    def inner(
        self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False
    ) -> Tensor:
        """⟨u, v⟩ of each item."""
        product = u * (u if v is None else v)
        return product.sum(dim=tuple(range(-self.ndim, 0)), keepdim=keepdim)

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        """Π_x(u)."""
        return self._manifold.tangent(_plain(x), _plain(u))

    egrad2rgrad = proju

    def projx(self, x: Tensor) -> Tensor:
        """The nearest point."""
        return self._manifold.project(_plain(x))

    def retr(self, x: Tensor, u: Tensor) -> Tensor:
        """The manifold's own retraction."""
        return self._manifold.retract(_plain(x), _plain(u))

    expmap = retr

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """The manifold's own transport."""
        return self._manifold.transport(_plain(x), _plain(y), _plain(v))

    def _check_point_on_manifold(self, x: Tensor, **tolerances: float) -> tuple[bool, str | None]:
        return True, None

    def _check_vector_on_tangent(
        self, x: Tensor, u: Tensor, **tolerances: float
    ) -> tuple[bool, str | None]:
        return True, None


def _plain(x: Tensor) -> Tensor:
    """The numbers of one of geoopt's tensors, without a graph."""
    plain: Tensor = x.detach().as_subclass(Tensor)
    return plain


@dataclass(frozen=True, kw_only=True)
class GeooptSolver(RiemannianSolver):
    """Solves  min f(x, y) over y on a manifold,  with a geoopt optimiser.

    Runs on the device of the problem and, unless it says otherwise, in its dtype (float32 for half
    precision).

    Args:
        max_iterations: iterations allowed.
        gradient_tolerance: largest norm of the embedded gradient, relative to
            ‖∇f(y₀)‖ + ‖∇²f(y₀) y₀‖; None for 1e-7 where it iterates in float64, 1e-5 in float32.
        max_time: seconds; None for no limit. For one call, the whole batch, where the batch is
            iterated together; for one item where the items go one by one. Looked at between
            iterations.

    Status per item: CONVERGED, where the gradient is within the tolerance; MAX_ITERATIONS;
    TIME_LIMIT; STALLED, where no step decreases the objective; NON_FINITE, where objective or
    gradient are so (the solution is then the best point at which they were checked to be finite, or
    the start). No problem on a compact manifold is infeasible, nor unbounded but through the edge
    of its domain.
    """

    #: True: iterate in float64 whatever the dtype of the problem.
    _float64: ClassVar[bool] = False

    def solve(self, problem: Problem, start: Tensor | None = None) -> Solution:
        """Solve every item from the projection of ``start``."""
        start = problem.start() if start is None else start
        dtype = torch.float64 if self._float64 else lapack_dtype(start.dtype)
        exact = in_dtype(problem, dtype)
        y = problem.manifold.project(start.detach().to(dtype))
        relative = self.gradient_tolerance
        progress = self._descend(exact, y, _TOLERANCE[dtype] if relative is None else relative)
        progress.end(progress.active, Status.MAX_ITERATIONS, self.max_iterations)
        # The iterates leave the manifold by a rounding a step; the solution must not.
        solution = problem.manifold.project(progress.y).to(start.dtype)
        return Solution(solution, progress.status, progress.iterations, self.name)

    @abc.abstractmethod
    def _descend(self, problem: Problem, start: Tensor, tolerance: float) -> Progress:
        """Iterate until every item has ended or the iterations are used up."""


def _parameter(problem: Problem, start: Tensor) -> geoopt.ManifoldParameter:
    """A copy of the start on the problem's manifold, as geoopt's optimisers take it."""
    return geoopt.ManifoldParameter(start.clone(), manifold=GeooptManifold(problem.manifold))


@dataclass(frozen=True, kw_only=True)
class _BatchedSolver(GeooptSolver):
    """All items of the batch in step; the host looks at them every ``check_every`` iterations."""

    max_iterations: int = 10_000
    check_every: int = whole_number(20, least=1)

    @abc.abstractmethod
    def _optimiser(self, parameter: geoopt.ManifoldParameter) -> torch.optim.Optimizer:
        """geoopt's optimiser; its learning rate is set at every check."""

    @abc.abstractmethod
    def _step_size(self, problem: Problem, y: Tensor) -> Tensor:
        """Step size of each item before any halving, (B,)."""

    #: A rise of the objective, in roundings, at which the step size is halved.
    _tolerated_rise: ClassVar[float]

    def _descend(self, problem: Problem, start: Tensor, tolerance: float) -> Progress:
        progress = Progress(problem, start, tolerance, self.max_time)
        parameter = _parameter(problem, start)
        optimiser = self._optimiser(parameter)
        factor = torch.ones_like(progress.tolerance)
        for iteration in range(self.max_iterations + 1):
            y = _plain(parameter)
            value, gradient = problem.value_and_gradient(y)
            gradient = problem.manifold.tangent(y, gradient)
            late = progress.deadline.passed
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


@dataclass(frozen=True, kw_only=True)
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

    learning_rate: float = number(1.0, above=0)
    momentum: float = number(0.9, below=1)

    def _optimiser(self, parameter: geoopt.ManifoldParameter) -> torch.optim.Optimizer:
        return geoopt.optim.RiemannianSGD([parameter], lr=1.0, momentum=self.momentum)

    def _step_size(self, problem: Problem, y: Tensor) -> Tensor:
        return self.learning_rate / curvature_bound(problem, y)


@dataclass(frozen=True, kw_only=True)
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

    learning_rate: float = number(0.1, above=0)
    betas: tuple[float, float] = number((0.9, 0.99), below=1)

    def _optimiser(self, parameter: geoopt.ManifoldParameter) -> torch.optim.Optimizer:
        # Adam's usual ε of 1e-8 would set a scale for the gradient; here it only avoids 0/0.
        tiny = torch.finfo(parameter.dtype).tiny
        return geoopt.optim.RiemannianAdam([parameter], lr=1.0, betas=self.betas, eps=tiny)

    def _step_size(self, problem: Problem, y: Tensor) -> Tensor:
        return self.learning_rate * point_size(y)


@dataclass(frozen=True, kw_only=True)
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

    max_iterations: int = 2000
    direction: str = choice("pr", "fr", "steepest")
    curvature_condition: float = number(0.4, above=0, below=1)

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
        parameter = _parameter(problem, progress.y)
        # A line search starts from a unit step: right for an objective of unit curvature.
        curvature = curvature_bound(problem, progress.y)

        def objective() -> float:
            value, gradient = problem.value_and_gradient(_plain(parameter))
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
            y = _plain(parameter)
            value, gradient = problem.value_and_gradient(y)
            gradient = problem.manifold.tangent(y, gradient)
            rise = float(progress.check(y, value, gradient, iteration))
            # At the rounding level of f a search may go on taking steps that change nothing.
            idle = idle + 1 if rise >= 0 else 0
            if idle == _IDLE_ITERATIONS:
                progress.end(progress.active, Status.STALLED, iteration)
            if progress.deadline.passed and iteration < self.max_iterations:
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
