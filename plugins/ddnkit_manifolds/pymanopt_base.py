"""pymanopt behind the Solver contract: what its optimisers have in common.

pymanopt works on numpy arrays. Each item of a batch goes to it alone, as a float64 array on the
CPU, whatever the dtype and device of the problem; the result comes back in those of the problem.
On a GPU every evaluation is therefore a round trip: prefer the geoopt solvers or `Procrustes` there.

The Riemannian gradient and Hessian on an embedded manifold come from the Euclidean ones,
    grad f = Π(∇f),      Hess f[Z] = Π(∇²f Z) + (Weingarten map of the normal part of ∇f)(Z),
which pymanopt assembles; here it is given f, ∇f and ∇²f Z by automatic differentiation.

Source: Townsend, Koep and Weichwald, *Pymanopt*; Boumal, Mishra, Absil and Sepulchre, *Manopt*.
"""

from __future__ import annotations

import abc
from typing import Any

import numpy as np
import pymanopt
import torch
from pymanopt.manifolds import Sphere as PymanoptSphere
from pymanopt.manifolds import Stiefel as PymanoptStiefel
from pymanopt.optimizers.optimizer import Optimizer
from torch import Tensor

from ddnkit import Problem, Solution, Solver, Status

from .sphere import Sphere
from .stiefel import Stiefel
from .support import gradient_scale, in_dtype, item_norm, manifold_reason

_MANIFOLDS: dict[type, Any] = {Sphere: PymanoptSphere, Stiefel: PymanoptStiefel}
# A tangent gradient this many roundings above its scale is as good as zero.
_ROUNDING = 16 * np.finfo(np.float64).eps


class _LeftDomainError(Exception):
    """The derivative of the objective is not finite at an iterate."""


class PymanoptSolver(Solver):
    """Solves  min f(x, y) over y on the Stiefel manifold or the sphere,  with a pymanopt optimiser.

    One item at a time, in float64 on the CPU (numpy). No console output.

    Args:
        max_iterations: pymanopt's ``max_iterations``.
        gradient_tolerance: largest norm of the Riemannian gradient, relative to
            ‖∇f(y₀)‖ + ‖∇²f(y₀) y₀‖; times that scale it is pymanopt's ``min_gradient_norm``.
        max_time: pymanopt's ``max_time``, in seconds, for one item.

    Status: CONVERGED, where the gradient at the returned point is within the tolerance;
    MAX_ITERATIONS; TIME_LIMIT; STALLED, where no step decreases the objective; NON_FINITE, where
    objective or gradient are so at the start or at an iterate (the solution is then the last
    iterate at which they were finite, or the start).
    """

    def __init__(
        self, *, max_iterations: int, gradient_tolerance: float, max_time: float = 1000.0
    ) -> None:
        self.max_iterations = max_iterations
        self.gradient_tolerance = gradient_tolerance
        self.max_time = max_time

    @abc.abstractmethod
    def optimiser(self, **limits: Any) -> Optimizer:
        """pymanopt's optimiser, with the options ``limits`` that are common to all of them."""

    def unsupported(self, problem: Problem) -> str | None:
        """Needs a Stiefel manifold or a sphere and no further constraints."""
        return manifold_reason(problem, _MANIFOLDS)

    def solve(self, problem: Problem, start: Tensor | None = None) -> Solution:
        """Solve the items one after the other, from the projection of ``start``."""
        start = problem.start() if start is None else start
        exact = in_dtype(problem, torch.float64)
        y = problem.manifold.project(start.detach().to(torch.float64))
        points, statuses, iterations = [], [], []
        for index in range(problem.batch_size):
            item = _Item(Problem.single(problem.node, exact.item(index)), y[index])
            point, status, count = self._solve_item(item)
            points.append(point)
            statuses.append(int(status))
            iterations.append(count)
        solution = torch.stack(points) if points else y
        return Solution(
            problem.manifold.project(solution).to(start.dtype),
            torch.tensor(statuses, dtype=torch.long, device=start.device),
            torch.tensor(iterations, dtype=torch.long, device=start.device),
            self.name,
        )

    def _solve_item(self, item: _Item) -> tuple[Tensor, Status, int]:
        scale = item.scale()
        if not np.isfinite(scale):
            return item.start, Status.NON_FINITE, 0
        tolerance = max(self.gradient_tolerance, _ROUNDING) * scale
        if item.tangent_norm(item.start) <= tolerance:
            return item.start, Status.CONVERGED, 0
        optimiser = self.optimiser(
            max_iterations=self.max_iterations,
            min_gradient_norm=tolerance,
            max_time=self.max_time,
            max_cost_evaluations=np.inf,
            verbosity=0,
        )
        try:
            # A trial step out of the domain gives inf or NaN, which the line search deals with.
            with np.errstate(all="ignore"):
                result = optimiser.run(
                    item.pymanopt_problem(), initial_point=item.start.cpu().numpy()
                )
        except _LeftDomainError:
            return item.last_finite, Status.NON_FINITE, item.gradients
        point = item.tensor(result.point)
        # Two habits of pymanopt: of several criteria met it names the gradient late, and steepest
        # descent takes one more step, uphill in the gradient, after the point that met it.
        if item.tangent_norm(point) <= tolerance:
            status = Status.CONVERGED
        elif item.tangent_norm(item.last_finite) <= tolerance:
            point, status = item.last_finite, Status.CONVERGED
        elif "max iterations" in result.stopping_criterion:
            status = Status.MAX_ITERATIONS
        elif "max time" in result.stopping_criterion:
            status = Status.TIME_LIMIT
        else:
            status = Status.STALLED
        return point, status, result.iterations


class _Item:
    """One problem in float64, seen from numpy."""

    def __init__(self, problem: Problem, start: Tensor) -> None:
        self.problem = problem
        self.start = start
        self.last_finite = start
        self.gradients = 0

    def tensor(self, array: np.ndarray) -> Tensor:
        return torch.tensor(array, dtype=torch.float64, device=self.start.device)

    def scale(self) -> float:
        y = self.start.unsqueeze(0)
        value, _ = self.problem.value_and_gradient(y)
        # Infinite or NaN where the objective itself is.
        return float(gradient_scale(self.problem, y) + 0 * value)

    def tangent_norm(self, y: Tensor) -> float:
        y = y.unsqueeze(0)
        return float(item_norm(self.problem.manifold.tangent(y, self.problem.gradient(y))))

    def pymanopt_problem(self) -> pymanopt.Problem:
        manifold = next(
            build(*self.start.shape)
            for kind, build in _MANIFOLDS.items()
            if isinstance(self.problem.manifold, kind)
        )
        function = pymanopt.function.numpy(manifold)
        return pymanopt.Problem(
            manifold,
            function(self._cost),
            euclidean_gradient=function(self._gradient),
            euclidean_hessian=function(self._hessian),
        )

    def _cost(self, point: np.ndarray) -> np.float64:
        with torch.no_grad():
            value = self.problem.objective(self.tensor(point).unsqueeze(0))
        # NaN compares false with everything, so a line search would accept it as a decrease.
        return np.float64(torch.nan_to_num(value, nan=torch.inf, posinf=torch.inf).item())

    def _gradient(self, point: np.ndarray) -> np.ndarray:
        y = self.tensor(point)
        gradient = self.problem.gradient(y.unsqueeze(0)).squeeze(0)
        if not bool(gradient.isfinite().all()):
            raise _LeftDomainError
        self.last_finite = y
        self.gradients += 1
        return self._numpy(gradient)

    def _hessian(self, point: np.ndarray, direction: np.ndarray) -> np.ndarray:
        y, z = self.tensor(point).unsqueeze(0), self.tensor(direction).unsqueeze(0)
        return self._numpy(self.problem.hessian_vector(y, z).squeeze(0))

    @staticmethod
    def _numpy(tensor: Tensor) -> np.ndarray:
        array: np.ndarray = tensor.detach().cpu().numpy()
        return array
