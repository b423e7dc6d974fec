"""pymanopt behind the Solver contract: trust regions, conjugate gradient and steepest descent.

pymanopt works on numpy arrays. Each item of a batch goes to it alone, as a float64 array on the
CPU, whatever the dtype and device of the problem; the result comes back in those of the problem.
On a GPU every evaluation is therefore a round trip: prefer the geoopt solvers or `Procrustes` there.

f, ∇f and ∇²f Z come from automatic differentiation, all that is asked of the manifold from its own
methods (`PymanoptManifold`). In the metric of the space around it
    grad f = Π(∇f),      Hess f[Z] = Π(∇²f Z − Σᵢ σᵢ ∇²jᵢ Z),
with the multipliers σ of ∇f. Distances, logarithms and means, which the derivative-free methods ask for,
are chordal,
    dist(a, b) = ‖a − b‖,    log_a(b) = Π_a(b − a),    pair_mean(a, b) = the projection of a + b,
which fit together: −Σ log_y(bᵢ) is the Riemannian gradient of ½ Σ dist(y, bᵢ)², so that pymanopt's
Karcher mean becomes the chordal one; they agree with the geodesic ones to second order in ‖a − b‖.

Source: Townsend, Koep and Weichwald, *Pymanopt*; Boumal, Mishra, Absil and Sepulchre, *Manopt*.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import pymanopt
import torch
from pymanopt.manifolds.manifold import RiemannianSubmanifold
from pymanopt.optimizers.optimizer import Optimizer
from torch import Tensor

from ddnkit import Manifold, Problem, Solution, Status
from ddnkit.solvers import choice, number

from .riemannian import GOAL, RiemannianSolver, gradient_scale, in_dtype, item_norm

Array = np.ndarray

# A tangent gradient this many roundings above its scale is as good as zero.
_ROUNDING = 16 * np.finfo(np.float64).eps
# The least tolerance by default for a problem in float32 or below, which the result is rounded to.
_BELOW_FLOAT64 = 1e-6


class PymanoptManifold(RiemannianSubmanifold):
    """A `ddnkit.Manifold`, in the metric of the space around it, as pymanopt asks for one.

    Args:
        like: a point in float64, for shape and device.

    Attributes:
        draw: what `random_point` returns.
    """

    def __init__(self, manifold: Manifold, like: Tensor) -> None:
        dimension = like.numel() - manifold.constraint(like).shape[-1]
        super().__init__(type(manifold).__name__, max(dimension, 0))
        self._manifold, self._like = manifold, like
        self.draw: Callable[[], Array] = self.random

    def random(self, generator: torch.Generator | None = None) -> Array:
        """The manifold's own random point."""
        like = torch.zeros((), dtype=torch.float64)
        shape = tuple(self._like.shape)
        return _to_numpy(self._manifold.random(shape, generator=generator, like=like))

    def random_point(self) -> Array:
        """What `draw` returns."""
        return self.draw()

    def random_tangent_vector(self, point: Array) -> Array:
        """Of length one, drawn by numpy's global generator."""
        vector = self.projection(point, np.random.normal(size=point.shape))
        return vector / max(np.linalg.norm(vector), np.finfo(np.float64).tiny)

    def zero_vector(self, point: Array) -> Array:
        """Zeros."""
        return np.zeros_like(point)

    @property
    def typical_dist(self) -> float:
        """The size of a point, by which trust regions begin."""
        size = float(torch.linalg.vector_norm(self._like))
        if size == 0:  # then they go by the dimension
            raise NotImplementedError
        return size

    def inner_product(
        self, point: Array, tangent_vector_a: Array, tangent_vector_b: Array
    ) -> float:
        """⟨a, b⟩."""
        return float(np.vdot(tangent_vector_a, tangent_vector_b))

    def norm(self, point: Array, tangent_vector: Array) -> float:
        """‖a‖."""
        return float(np.linalg.norm(tangent_vector))

    def projection(self, point: Array, vector: Array) -> Array:
        """Π(vector)."""
        return self._call(self._manifold.tangent, point, vector)

    to_tangent_space = projection

    def retraction(self, point: Array, tangent_vector: Array) -> Array:
        """The manifold's own retraction."""
        return self._call(self._manifold.retract, point, tangent_vector)

    exp = retraction

    def transport(self, point_a: Array, point_b: Array, tangent_vector_a: Array) -> Array:
        """The manifold's own transport."""
        return self._call(self._manifold.transport, point_a, point_b, tangent_vector_a)

    def euclidean_to_riemannian_hessian(
        self,
        point: Array,
        euclidean_gradient: Array,
        euclidean_hessian: Array,
        tangent_vector: Array,
    ) -> Array:
        """Π(∇²f Z − Σᵢ σᵢ ∇²jᵢ Z)."""

        def hessian(y: Tensor, gradient: Tensor, product: Tensor, z: Tensor) -> Tensor:
            sigma = self._manifold.multipliers(y, gradient)
            curvature = self._manifold.constraint_curvature(y, sigma, z)
            return self._manifold.tangent(y, product - curvature)

        return self._call(hessian, point, euclidean_gradient, euclidean_hessian, tangent_vector)

    def dist(self, point_a: Array, point_b: Array) -> float:
        """‖a − b‖."""
        return float(np.linalg.norm(point_a - point_b))

    def log(self, point_a: Array, point_b: Array) -> Array:
        """Π_a(b − a)."""
        return self.projection(point_a, point_b - point_a)

    def pair_mean(self, point_a: Array, point_b: Array) -> Array:
        """The point nearest to a + b."""
        return self._call(self._manifold.project, point_a + point_b)

    def _call(self, method: Callable[..., Tensor], *arrays: Array) -> Array:
        device = self._like.device
        return _to_numpy(method(*(torch.from_numpy(array).to(device) for array in arrays)))


def _to_numpy(tensor: Tensor) -> Array:
    array: Array = tensor.detach().cpu().numpy()
    return array


class LeftDomainError(Exception):
    """The derivative of the objective is not finite at an iterate."""


@dataclass(frozen=True, kw_only=True)
class PymanoptSolver(RiemannianSolver):
    """Solves  min f(x, y) over y on a manifold,  with a pymanopt optimiser.

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
    iterate at which they were finite, or the start). No problem on a compact manifold is
    infeasible, nor unbounded but through the edge of its domain.
    """

    #: ``gradient_tolerance`` by default, in float64.
    _tolerance: ClassVar[float]

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


def end_status(criterion: str) -> Status:
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

    def tensor(self, array: Array) -> Tensor:
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

    def pymanopt_manifold(self) -> PymanoptManifold:
        """The manifold as pymanopt sees it."""
        return PymanoptManifold(self.problem.manifold, self.start)

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

    def cost(self, point: Array) -> np.float64:
        """f, infinite outside its domain."""
        with torch.no_grad():
            value = self.problem.objective(self.tensor(point).unsqueeze(0))
        # NaN compares false with everything, so a line search would accept it as a decrease.
        return np.float64(torch.nan_to_num(value, nan=torch.inf, posinf=torch.inf).item())

    def _gradient(self, point: Array) -> Array:
        y = self.tensor(point)
        gradient = self.problem.gradient(y.unsqueeze(0)).squeeze(0)
        if not bool(gradient.isfinite().all()):
            raise LeftDomainError
        self.last_finite = y
        self.gradients += 1
        return _to_numpy(gradient)

    def _hessian(self, point: Array, direction: Array) -> Array:
        y, z = self.tensor(point).unsqueeze(0), self.tensor(direction).unsqueeze(0)
        return _to_numpy(self.problem.hessian_vector(y, z).squeeze(0))


@dataclass(frozen=True, kw_only=True)
class _GradientSolver(PymanoptSolver):
    """What the three have in common: f, ∇f and ∇²f at work, from one start."""

    #: pymanopt's optimiser. What settings a solver adds are named as its options are.
    _optimiser: ClassVar[type[Optimizer]]

    def run(self, item: Item, tolerance: float) -> tuple[Tensor, Status, int]:
        """Run pymanopt's optimiser, and see where it ended."""
        common = {field.name for field in fields(PymanoptSolver)}
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in common}
        optimiser = self._optimiser(min_gradient_norm=GOAL * tolerance, **own, **self.limits())
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
            status = end_status(result.stopping_criterion)
        return point, status, result.iterations


@dataclass(frozen=True, kw_only=True)
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
    _optimiser = pymanopt.optimizers.TrustRegions
    kappa: float = number(0.1, above=0)
    theta: float = number(1.0)
    rho_prime: float = number(0.1, below=0.25)


@dataclass(frozen=True, kw_only=True)
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
    _optimiser = pymanopt.optimizers.ConjugateGradient
    max_iterations: int = 2000
    beta_rule: str = choice(
        "HestenesStiefel", "PolakRibiere", "FletcherReeves", "HagerZhang", "LiuStorey"
    )
    orth_value: float = number(float("inf"))


@dataclass(frozen=True, kw_only=True)
class SteepestDescent(_GradientSolver):
    """Riemannian steepest descent with a backtracking line search.

    See `PymanoptSolver` for the settings and the statuses. It converges linearly, at a rate set by
    the conditioning of the Riemannian Hessian.
    """

    name = "steepest_descent"
    _tolerance = 1e-7
    _optimiser = pymanopt.optimizers.SteepestDescent
    max_iterations: int = 5000
