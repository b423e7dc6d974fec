"""pymanopt's derivative-free methods: Nelder-Mead and particle swarm.

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
from dataclasses import dataclass

import numpy as np
import pymanopt
import torch
from pymanopt.optimizers.optimizer import Optimizer, OptimizerResult
from torch import Tensor

from ddnkit import Status
from ddnkit.solvers import number, whole_number

from .pymanopt_solvers import (
    Array,
    Item,
    LeftDomainError,
    PymanoptManifold,
    PymanoptSolver,
    end_status,
)
from .riemannian import GOAL

_ASIDE = 1e-3


class _ReachedError(Exception):
    """The gradient at the best point is within the tolerance."""


@dataclass(frozen=True, kw_only=True)
class _DerivativeFree(PymanoptSolver):
    """What both have in common: the best point is watched."""

    @abc.abstractmethod
    def optimise(self, watch: _Watch, manifold: PymanoptManifold) -> OptimizerResult:
        """Run pymanopt's optimiser; may raise `_ReachedError`."""

    @abc.abstractmethod
    def iterations(self, watch: _Watch, manifold: PymanoptManifold) -> int:
        """How many have been done so far."""

    def run(self, item: Item, tolerance: float) -> tuple[Tensor, Status, int]:
        """Watch the best point while pymanopt runs."""
        manifold = item.pymanopt_manifold()
        watch = _Watch(item, GOAL * tolerance)
        try:
            status = end_status(self.optimise(watch, manifold).stopping_criterion)
        except _ReachedError:
            status = Status.CONVERGED
        except LeftDomainError:
            status = Status.NON_FINITE
        else:
            if item.tangent_norm(watch.point) <= tolerance:
                status = Status.CONVERGED
        return watch.point, status, min(self.iterations(watch, manifold), self.max_iterations)


class _Watch:
    """f of one item, the best point so far, and how much was done."""

    def __init__(self, item: Item, tolerance: float) -> None:
        self.item = item
        self.tolerance = tolerance
        self.point = item.start
        self.evaluations = self.means = 0
        self._least = item.cost(self.start)

    @property
    def start(self) -> Array:
        """The item's start."""
        start: Array = self.item.start.cpu().numpy()
        return start

    @property
    def best(self) -> Array:
        """The best point so far."""
        best: Array = self.point.cpu().numpy()
        return best

    def problem(self, manifold: PymanoptManifold) -> pymanopt.Problem:
        """The problem without derivatives."""
        return pymanopt.Problem(manifold, pymanopt.function.numpy(manifold)(self._cost))

    def _cost(self, point: Array) -> np.float64:
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


@dataclass(frozen=True, kw_only=True)
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

    max_iterations: int = 1000
    size: float = number(0.3, above=0)
    reflection: float = number(1.0, above=0)
    expansion: float = number(2.0, above=0)
    contraction: float = number(0.5, above=0)

    def optimise(self, watch: _Watch, manifold: PymanoptManifold) -> OptimizerResult:
        """``pymanopt.optimizers.NelderMead``, on a simplex at the start."""
        # pymanopt refuses a simplex of the right size, and takes it from random_point instead.
        simplex = _simplex(watch.start, manifold, self.size)
        given = list(simplex)

        def draw() -> Array:
            if given:
                return given.pop(0)
            watch.means += 1
            # Steepest descent for a mean divides by zero if it starts at the mean itself.
            away = manifold.projection(watch.best, simplex[-1] - simplex[0])
            return manifold.retraction(watch.best, _ASIDE * away)

        manifold.draw = draw
        limits = self.limits() | {"max_iterations": self.max_iterations + 1}
        optimiser = pymanopt.optimizers.NelderMead(
            reflection=self.reflection,
            expansion=self.expansion,
            contraction=self.contraction,
            **limits,
        )
        return optimiser.run(watch.problem(manifold))

    def iterations(self, watch: _Watch, manifold: PymanoptManifold) -> int:
        """Each starts a mean."""
        return watch.means


@dataclass(frozen=True, kw_only=True)
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

    max_iterations: int = 500
    population: int | None = whole_number(None, least=1)
    nostalgia: float = number(1.4)
    social: float = number(1.4)
    seed: int = whole_number(0)

    def optimise(self, watch: _Watch, manifold: PymanoptManifold) -> OptimizerResult:
        """``pymanopt.optimizers.ParticleSwarm``."""
        with _numpy_seed(self.seed):
            generator = torch.Generator().manual_seed(self.seed)
            others = [manifold.random(generator) for _ in range(self._size(manifold) - 1)]
            optimiser: Optimizer = pymanopt.optimizers.ParticleSwarm(
                population_size=self._size(manifold),
                nostalgia=self.nostalgia,
                social=self.social,
                **(self.limits() | {"max_iterations": self.max_iterations + 1}),
            )
            return optimiser.run(watch.problem(manifold), initial_point=[watch.start, *others])

    def iterations(self, watch: _Watch, manifold: PymanoptManifold) -> int:
        """Each evaluates the whole swarm, after it was evaluated once at first."""
        return max(0, -(-watch.evaluations // self._size(manifold)) - 1)

    def _size(self, manifold: PymanoptManifold) -> int:
        return self.population or min(40, 10 * int(manifold.dim))


def _simplex(start: Array, manifold: PymanoptManifold, size: float) -> list[Array]:
    """The start, and a point at a distance along each direction of an orthonormal tangent basis."""
    units = np.eye(start.size).reshape(-1, *start.shape)
    projector = np.stack([manifold.projection(start, unit).ravel() for unit in units])
    basis = np.linalg.svd(projector)[0].T[: int(manifold.dim)]
    # A point at the origin has no size of its own.
    step = size * (np.linalg.norm(start) or 1.0)
    return [start] + [manifold.retraction(start, step * z.reshape(start.shape)) for z in basis]


@contextmanager
def _numpy_seed(seed: int) -> Iterator[None]:
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)
