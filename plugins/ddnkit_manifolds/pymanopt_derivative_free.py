"""pymanopt's derivative-free methods, Nelder-Mead and particle swarm, on Stiefel and Sphere.

They compare values of f and nothing else. How well they have done is judged by the gradient all the
same: it is taken at each point that is better than all before, and the solve ends, CONVERGED, as soon
as its norm is within the tolerance. That is a looser one than elsewhere, since near a minimum f
changes by the square of the distance.

Source: Nelder and Mead (1965); Borckmans, Ishteva and Absil (2010), *A modified particle swarm
optimization algorithm for the best low multilinear rank approximation of higher-order tensors*.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pymanopt
from pymanopt.optimizers.optimizer import Optimizer, OptimizerResult
from torch import Tensor

from ddnkit import Status

from .chordal import ChordalStiefel, GivenSphere
from .pymanopt_base import Item, LeftDomainError, PymanoptSolver, ending
from .stiefel import Stiefel
from .support import GOAL

_ASIDE = 1e-3


class _ReachedError(Exception):
    """The gradient at the best point is within the tolerance."""


class _DerivativeFree(PymanoptSolver):
    """What both have in common; pymanopt's manifolds need some help (see `chordal`)."""

    @abc.abstractmethod
    def optimise(self, watch: _Watch, manifold: Any) -> OptimizerResult:
        """Run pymanopt's optimiser; may raise `_ReachedError`."""

    @abc.abstractmethod
    def iterations(self, watch: _Watch, manifold: Any) -> int:
        """How many have been done so far."""

    def run(self, item: Item, tolerance: float) -> tuple[Tensor, Status, int]:
        """Watch the best point while pymanopt runs."""
        kind = ChordalStiefel if isinstance(item.problem.manifold, Stiefel) else GivenSphere
        manifold = kind(*item.start.shape)
        watch = _Watch(item, GOAL * tolerance)
        try:
            status = ending(self.optimise(watch, manifold).stopping_criterion)
        except _ReachedError:
            status = Status.CONVERGED
        except LeftDomainError:
            status = Status.NON_FINITE
        else:
            if item.tangent_norm(watch.point) <= tolerance:
                status = Status.CONVERGED
        return watch.point, status, min(self.iterations(watch, manifold), self.max_iterations)


class _Watch:
    """f of one item, and the best point so far."""

    def __init__(self, item: Item, tolerance: float) -> None:
        self.item = item
        self.tolerance = tolerance
        self.point = item.start
        self.evaluations = 0
        self._least = item.cost(self.start)

    @property
    def start(self) -> np.ndarray:
        """The item's start."""
        start: np.ndarray = self.item.start.cpu().numpy()
        return start

    @property
    def best(self) -> np.ndarray:
        """The best point so far."""
        best: np.ndarray = self.point.cpu().numpy()
        return best

    def problem(self, manifold: Any) -> pymanopt.Problem:
        """The problem without derivatives."""
        return pymanopt.Problem(manifold, pymanopt.function.numpy(manifold)(self._cost))

    def _cost(self, point: np.ndarray) -> np.float64:
        self.evaluations += 1
        value = self.item.cost(point)
        if value < self._least:
            y = self.item.tensor(point)
            norm = self.item.tangent_norm(y)
            if not np.isfinite(norm):
                raise LeftDomainError
            self._least, self.point = value, y
            if norm <= self.tolerance:
                raise _ReachedError
        return value


class NelderMead(_DerivativeFree):
    """A simplex of n + 1 points on a manifold of dimension n that crawls downhill by comparing values.

    For a handful of unknowns and an f without useful derivatives. Each iteration has pymanopt find
    a mean of n points. See `PymanoptSolver` for the common settings and the statuses; the default
    ``gradient_tolerance`` is 1e-4.

    Args:
        size: length of the edges of the first simplex at the start, relative to the norm of a point.
        reflection, expansion, contraction: how far the worst point is moved through, or towards,
            the mean of the others.
    """

    name = "nelder_mead"
    _tolerance = 1e-4

    def __init__(
        self,
        *,
        max_iterations: int = 1000,
        gradient_tolerance: float | None = None,
        max_time: float | None = None,
        size: float = 0.3,
        reflection: float = 1.0,
        expansion: float = 2.0,
        contraction: float = 0.5,
    ) -> None:
        super().__init__(
            max_iterations=max_iterations,
            gradient_tolerance=gradient_tolerance,
            max_time=max_time,
        )
        self.size = size
        self.reflection, self.expansion, self.contraction = reflection, expansion, contraction

    def optimise(self, watch: _Watch, manifold: Any) -> OptimizerResult:
        """``pymanopt.optimizers.NelderMead``, on a simplex at the start."""
        # pymanopt refuses a simplex of the right size, and takes it from random_point instead.
        simplex = _simplex(watch.start, manifold, self.size)

        def near_the_best() -> np.ndarray:
            # Steepest descent for a mean divides by zero if it starts at the mean itself.
            away = manifold.projection(watch.best, simplex[-1] - simplex[0])
            point: np.ndarray = manifold.retraction(watch.best, _ASIDE * away)
            return point

        manifold.give(simplex, near_the_best)
        limits = self.limits() | {"max_iterations": self.max_iterations + 1}
        optimiser = pymanopt.optimizers.NelderMead(
            reflection=self.reflection,
            expansion=self.expansion,
            contraction=self.contraction,
            **limits,
        )
        return optimiser.run(watch.problem(manifold))

    def iterations(self, watch: _Watch, manifold: Any) -> int:
        """Each starts a mean."""
        return int(manifold.asked)


class ParticleSwarm(_DerivativeFree):
    """A swarm that explores the manifold, each particle drawn to its own best point and to the best of all.

    For objectives with several minima, of few unknowns. The start is one of the particles; the others
    are spread over the manifold. Deterministic for a seed; numpy's global generator, which pymanopt
    draws from, is left as it was (other threads that draw from it meanwhile see the difference). See
    `PymanoptSolver` for the common settings and the statuses; the default ``gradient_tolerance`` is
    1e-3.

    Args:
        population: number of particles; None for pymanopt's, 40 or ten times the dimension.
        nostalgia, social: how strongly a particle is drawn to its own best point, and to the swarm's.
        seed: of the particles and their velocities.
    """

    name = "particle_swarm"
    _tolerance = 1e-3

    def __init__(
        self,
        *,
        max_iterations: int = 500,
        gradient_tolerance: float | None = None,
        max_time: float | None = None,
        population: int | None = None,
        nostalgia: float = 1.4,
        social: float = 1.4,
        seed: int = 0,
    ) -> None:
        super().__init__(
            max_iterations=max_iterations,
            gradient_tolerance=gradient_tolerance,
            max_time=max_time,
        )
        self.population, self.nostalgia, self.social = population, nostalgia, social
        self.seed = seed

    def optimise(self, watch: _Watch, manifold: Any) -> OptimizerResult:
        """``pymanopt.optimizers.ParticleSwarm``."""
        with _numpy_seed(self.seed):
            draw = watch.item.pymanopt_manifold().random_point
            others = [draw() for _ in range(self._size(manifold) - 1)]
            optimiser: Optimizer = pymanopt.optimizers.ParticleSwarm(
                population_size=self._size(manifold),
                nostalgia=self.nostalgia,
                social=self.social,
                **(self.limits() | {"max_iterations": self.max_iterations + 1}),
            )
            return optimiser.run(watch.problem(manifold), initial_point=[watch.start, *others])

    def iterations(self, watch: _Watch, manifold: Any) -> int:
        """Each evaluates the whole swarm, after it was evaluated once at first."""
        return max(0, -(-watch.evaluations // self._size(manifold)) - 1)

    def _size(self, manifold: Any) -> int:
        return self.population or min(40, 10 * int(manifold.dim))


def _simplex(start: np.ndarray, manifold: Any, size: float) -> list[np.ndarray]:
    """The start, and a point at a distance along each direction of an orthonormal tangent basis."""
    units = np.eye(start.size).reshape(-1, *start.shape)
    projector = np.stack([manifold.projection(start, unit).ravel() for unit in units])
    basis = np.linalg.svd(projector)[0].T[: int(manifold.dim)]
    step = size * np.linalg.norm(start)
    return [start] + [manifold.retraction(start, step * z.reshape(start.shape)) for z in basis]


@contextmanager
def _numpy_seed(seed: int) -> Iterator[None]:
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)
