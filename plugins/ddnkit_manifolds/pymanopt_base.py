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
from torch import Tensor

from ddnkit import Problem, Solution, Solver, Status

from .sphere import Sphere
from .stiefel import Stiefel
from .support import gradient_scale, in_dtype, item_norm, manifold_reason

_MANIFOLDS: dict[type, Any] = {Sphere: PymanoptSphere, Stiefel: PymanoptStiefel}
# A tangent gradient this many roundings above its scale is as good as zero.
_ROUNDING = 16 * np.finfo(np.float64).eps
# The least tolerance by default for a problem in float32 or below, which the result is rounded to.
_BELOW_FLOAT64 = 1e-6


class LeftDomainError(Exception):
    """The derivative of the objective is not finite at an iterate."""


class PymanoptSolver(Solver):
    """Solves  min f(x, y) over y on the Stiefel manifold or the sphere,  with a pymanopt optimiser.

    One item at a time, in float64 on the CPU (numpy). No console output.

    Args:
        max_iterations: pymanopt's ``max_iterations``.
        gradient_tolerance: largest norm of the Riemannian gradient, relative to
            ‖∇f(y₀)‖ + ‖∇²f(y₀) y₀‖; None for what each solver names, but no less than 1e-6 for a
            problem in lower precision than float64.
        max_time: pymanopt's ``max_time``, in seconds, for one item; None for no limit.

    Status: CONVERGED, where the gradient at the returned point is within the tolerance;
    MAX_ITERATIONS; TIME_LIMIT; STALLED, where no step decreases the objective; NON_FINITE, where
    objective or gradient are so at the start or at an iterate (the solution is then the last
    iterate at which they were finite, or the start). On these compact manifolds no problem is
    infeasible, nor unbounded but through the edge of its domain.
    """

    #: ``gradient_tolerance`` by default, in float64.
    _tolerance: float

    def __init__(
        self,
        *,
        max_iterations: int,
        gradient_tolerance: float | None = None,
        max_time: float | None = None,
    ) -> None:
        self.max_iterations = max_iterations
        self.gradient_tolerance = gradient_tolerance
        self.max_time = max_time

    @abc.abstractmethod
    def run(self, item: Item, tolerance: float) -> tuple[Tensor, Status, int]:
        """Point, status and iterations of one item, to `GOAL` times a gradient norm of ``tolerance``.

        May raise `LeftDomainError`.
        """

    def limits(self) -> dict[str, Any]:
        """The options that all of pymanopt's optimisers have in common."""
        return {
            "max_iterations": self.max_iterations,
            "max_time": np.inf if self.max_time is None else self.max_time,
            "max_cost_evaluations": np.inf,
            "verbosity": 0,
        }

    def unsupported(self, problem: Problem) -> str | None:
        """Needs a Stiefel manifold or a sphere and no further constraints."""
        return manifold_reason(problem, _MANIFOLDS)

    def solve(self, problem: Problem, start: Tensor | None = None) -> Solution:
        """Solve the items one after the other, from the projection of ``start``."""
        start = problem.start() if start is None else start
        relative = self.gradient_tolerance
        if relative is None:
            exact = start.dtype == torch.float64
            relative = self._tolerance if exact else max(self._tolerance, _BELOW_FLOAT64)
        exact_problem = in_dtype(problem, torch.float64)
        y = problem.manifold.project(start.detach().to(torch.float64))
        points, statuses, iterations = [], [], []
        for index in range(problem.batch_size):
            item = Item(Problem.single(problem.node, exact_problem.item(index)), y[index])
            point, status, count = self._solve_item(item, max(relative, _ROUNDING))
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

    def _solve_item(self, item: Item, relative: float) -> tuple[Tensor, Status, int]:
        scale = item.scale()
        if not np.isfinite(scale):
            return item.start, Status.NON_FINITE, 0
        if item.tangent_norm(item.start) <= relative * scale:
            return item.start, Status.CONVERGED, 0
        try:
            # A trial step out of the domain gives inf or NaN, which the line search deals with.
            with np.errstate(all="ignore"):
                return self.run(item, relative * scale)
        except LeftDomainError:
            return item.last_finite, Status.NON_FINITE, item.gradients


def ending(criterion: str) -> Status:
    """The status for pymanopt's account of why it ended, if it is not a solution."""
    if "max iterations" in criterion:
        return Status.MAX_ITERATIONS
    return Status.TIME_LIMIT if "max time" in criterion else Status.STALLED


class Item:
    """One problem in float64, seen from numpy."""

    def __init__(self, problem: Problem, start: Tensor) -> None:
        self.problem = problem
        self.start = start
        self.last_finite = start
        self.gradients = 0

    def tensor(self, array: np.ndarray) -> Tensor:
        """The point as a tensor."""
        return torch.tensor(array, dtype=torch.float64, device=self.start.device)

    def scale(self) -> float:
        """What the gradient norm is relative to; not finite where f or ∇f is not at the start."""
        y = self.start.unsqueeze(0)
        value, _ = self.problem.value_and_gradient(y)
        # Infinite or NaN where the objective itself is.
        return float(gradient_scale(self.problem, y) + 0 * value)

    def tangent_norm(self, y: Tensor) -> float:
        """Norm of the Riemannian gradient at y."""
        y = y.unsqueeze(0)
        return float(item_norm(self.problem.manifold.tangent(y, self.problem.gradient(y))))

    def pymanopt_manifold(self) -> Any:
        """pymanopt's counterpart of the manifold."""
        return next(
            build(*self.start.shape)
            for kind, build in _MANIFOLDS.items()
            if isinstance(self.problem.manifold, kind)
        )

    def pymanopt_problem(self) -> pymanopt.Problem:
        """The problem with its derivatives."""
        manifold = self.pymanopt_manifold()
        function = pymanopt.function.numpy(manifold)
        return pymanopt.Problem(
            manifold,
            function(self.cost),
            euclidean_gradient=function(self._gradient),
            euclidean_hessian=function(self._hessian),
        )

    def cost(self, point: np.ndarray) -> np.float64:
        """f, infinite outside its domain."""
        with torch.no_grad():
            value = self.problem.objective(self.tensor(point).unsqueeze(0))
        # NaN compares false with everything, so a line search would accept it as a decrease.
        return np.float64(torch.nan_to_num(value, nan=torch.inf, posinf=torch.inf).item())

    def _gradient(self, point: np.ndarray) -> np.ndarray:
        y = self.tensor(point)
        gradient = self.problem.gradient(y.unsqueeze(0)).squeeze(0)
        if not bool(gradient.isfinite().all()):
            raise LeftDomainError
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
