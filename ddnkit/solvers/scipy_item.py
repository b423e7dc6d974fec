"""One problem as SciPy sees it: float64 arrays on the CPU, y and h flattened.

The problem itself is evaluated where its inputs are, in the dtype of the start (float64, unless the node
holds tensors of its own in another, see `scipy_base`); each evaluation is a round trip.

*Iterates.* SciPy's methods ask for a gradient or a Jacobian only where they have gone to, and for values
wherever they look. So every point of the former kind is judged here: the solve ends by an exception,
`Ended`, as soon as one is a solution, is beyond all bounds, or has no derivative. SciPy's own stopping
rules, which depend on the units of f, are set out of reach.

*Outside the domain* f is infinite, NaN included, and h very large, so that a trial point there is no
improvement. Every evaluation looks at the time limit.

*Dependent constraints* would make SciPy's factorisations fail. Where A = Dh has rank r < p, the r
combinations h̃ = Uᵣᵀh with the leading left singular vectors are handed over instead; a solution is still
judged by all of h. The rank is the larger one of those at the start and close to it, for a point may
be special (the centre of a circle).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..lagrangian import constraint_jacobian, lagrangian_hessian, least_squares_multipliers
from ..problem import Problem, derivative, flat
from ..solution import Status
from .deadline import Deadline
from .no_solution import Depth
from .residual import Scales

Array = np.ndarray

#: |h| outside the domain; its square is finite.
_OUTSIDE = 1e100
_CLOSE_BY = 1e-2


class Ended(Exception):  # noqa: N818 - no error: how a callback leaves a SciPy routine
    """The solve has ended with this status, at the last iterate."""

    def __init__(self, status: Status) -> None:
        super().__init__(status)
        self.status = status


@dataclass(frozen=True)
class Local:
    """f, h and first derivatives at one point, as tensors with a batch dimension of one."""

    value: Tensor
    gradient: Tensor
    constraints: Tensor
    jacobian: Tensor

    @property
    def finite(self) -> bool:
        """Whether all of them are."""
        parts = (self.value, self.gradient, self.constraints, self.jacobian)
        return all(bool(part.isfinite().all()) for part in parts)


class ScipyItem:
    """A batch of one, seen from SciPy.

    Args:
        problem: with inputs in the dtype of the start.
        start: (1, *y).
        tolerance: largest backward error that ends the solve.
        limit: iterates allowed after the start.

    Attributes:
        x0: (m,), the start. last: (m,), the last iterate.
        steps: iterates after the start.
        combinations: (r, p), what the constraints handed over are of all of them.
    """

    def __init__(
        self, problem: Problem, start: Tensor, tolerance: float, limit: int, deadline: Deadline
    ) -> None:
        self.problem = problem
        self.tolerance = tolerance
        self.limit = limit
        self.deadline = deadline
        self._like = start
        self.x0 = self.last = self.array(start)
        self.steps = 0
        self._here: Local = self._evaluated(self.x0)
        if not self._here.finite:
            raise Ended(Status.NON_FINITE)
        # Iterated to half of it, so that what was a solution is one still when started from.
        self.scales = Scales(problem, tolerance / 2)
        self.combinations = self._combinations()
        nu, residual = self._multipliers(self._here)
        self.scales.measure(start, nu, residual, self._here.constraints)
        change = self.scales.stationarity
        self.depth = Depth(problem, start, self._here.value, self._here.gradient, change)
        if bool(self.scales.pass_(residual, self._here.constraints, slack=2)):
            raise Ended(Status.CONVERGED)

    # -- values, anywhere -----------------------------------------------------------------------

    def objective(self, x: Array) -> float:
        """f(x), infinite outside its domain."""
        self._look_at_the_clock()
        with torch.no_grad():
            value = self.problem.objective(self.tensor(x))
        return float(torch.nan_to_num(value, nan=torch.inf, posinf=torch.inf))

    def constraints(self, x: Array) -> Array:
        """h̃(x), (r,)."""
        self._look_at_the_clock()
        return self.combinations @ self.array(_tamed(self._all_constraints(x)))

    # -- derivatives, at iterates ---------------------------------------------------------------

    def gradient(self, x: Array) -> Array:
        """∇f(x), (m,)."""
        return self.array(self.iterate(x).gradient)

    def jacobian(self, x: Array) -> Array:
        """Dh̃(x), (r, m)."""
        return self.combinations @ self._matrix(self.iterate(x).jacobian)

    def hessian_vector(self, x: Array, v: Array) -> Array:
        """∇²f(x) v, (m,)."""
        return self.array(self.problem.hessian_vector(self.tensor(x), self.tensor(v)))

    def constraint_hessian_vector(self, x: Array, weights: Array, v: Array) -> Array:
        """Σ weightsᵢ ∇²h̃ᵢ(x) v, (m,)."""
        with torch.enable_grad():
            y = self.tensor(x).requires_grad_()
            h = self.problem.all_constraints(y)
            assert h is not None
            weighted = (h * self._row(self.combinations.T @ weights)).sum()
            slope = derivative(weighted, y, create_graph=True)
            return self.array(derivative((slope * self.tensor(v)).sum(), y))

    def lagrangian_hessian(self, x: Array, multipliers: Array) -> Array:
        """D²_yy (f − multipliersᵀh̃), (m, m)."""
        nu = self._row(self.combinations.T @ multipliers) if self.constrained else None
        return self._matrix(lagrangian_hessian(self.problem, self.tensor(x), nu))

    # -- judging --------------------------------------------------------------------------------

    @property
    def constrained(self) -> bool:
        """Whether there are constraints."""
        return self._here.constraints.shape[1] > 0

    def iterate(self, x: Array) -> Local:
        """Derivatives at an iterate; raises `Ended` where the solve is over with it."""
        if np.array_equal(x, self.last):
            return self._here
        self._look_at_the_clock()
        if self.steps >= self.limit:
            raise Ended(Status.MAX_ITERATIONS)
        local = self.local(x)
        if not local.finite:
            raise Ended(Status.NON_FINITE)
        self.last, self._here = x.copy(), local
        self.steps += 1
        if self.solved(local):
            raise Ended(Status.CONVERGED)
        if bool(self.depth.beyond(self.tensor(x), local.value)):
            fallen = bool(self.depth.unbounded(self.tensor(x), local.value))
            raise Ended(Status.UNBOUNDED if fallen else Status.STALLED)
        return local

    def solved(self, local: Local) -> bool:
        """Whether the last iterate, with these derivatives, is a solution within half the tolerance."""
        nu, residual = self._multipliers(local)
        at = (self.tensor(self.last), nu, residual, local.constraints)
        self.scales.refresh(self.steps, *at)
        return bool(self.scales.confirmed(*at, of=local.value.isfinite()))

    def settle(self, x: Array) -> None:
        """Take x for the last iterate: where a method goes back to, or is sent."""
        local = self.local(x)
        if local.finite:
            self.last, self._here = x.copy(), local

    def backward_error(self) -> float:
        """That of the last iterate, relative to the tolerance, by scales measured there."""
        nu, residual = self._multipliers(self._here)
        h = self._here.constraints
        self.scales.measure(self.tensor(self.last), nu, residual, h)
        return float(self.scales.excess(residual, h)) / 2

    def newton_step(self) -> Array:
        """That of ∇L = 0 and h = 0 at the last iterate, (m,); the shortest where there are several."""
        nu, residual = self._multipliers(self._here)
        y = self.tensor(self.last)
        hessian = lagrangian_hessian(self.problem, y, nu if self.constrained else None)
        G, A = self._matrix(hessian), self._matrix(self._here.jacobian)
        p, m = A.shape
        system = np.block([[G, -A.T], [A, np.zeros((p, p))]])
        right = np.concatenate([self.array(residual), self.array(self._here.constraints)])
        if not np.isfinite(system).all():
            return np.zeros(m)
        step: Array = np.linalg.lstsq(system, -right, rcond=None)[0][:m]
        return step

    @property
    def feasible(self) -> bool:
        """Whether the last iterate satisfies the constraints within the tolerance."""
        return bool(self.scales.feasible(self._here.constraints))

    def jacobian_at(self, x: Array) -> Array:
        """Dh̃ at any point, (r, m)."""
        return self.combinations @ self._matrix(self.local(x).jacobian)

    def multipliers(self) -> Array:
        """Least-squares multipliers of h̃ at the last iterate, (r,)."""
        gradient = self.gradient(self.last)
        nu: Array = np.linalg.lstsq(self.jacobian(self.last).T, gradient, rcond=None)[0]
        return nu

    def tangent_gradient(self) -> Tensor:
        """∇f − Aᵀν at the last iterate, ν by least squares: the steepest way along the constraints."""
        return self._multipliers(self._here)[1]

    def local(self, x: Array) -> Local:
        """f, h and their derivatives at x."""
        return self._here if np.array_equal(x, self.last) else self._evaluated(x)

    def _evaluated(self, x: Array) -> Local:
        y = self.tensor(x)
        value, gradient = self.problem.value_and_gradient(y)
        jacobian = constraint_jacobian(self.problem, y)
        if jacobian is None:
            jacobian = flat(gradient).new_zeros(1, 0, gradient.numel())
        return Local(value, flat(gradient), self._all_constraints(x), jacobian)

    # -- tensors and arrays ---------------------------------------------------------------------

    def tensor(self, x: Array) -> Tensor:
        """(m,) as (1, *y)."""
        return self._row(x).reshape(self._like.shape)

    def _row(self, x: Array) -> Tensor:
        return torch.tensor(x, dtype=self._like.dtype, device=self._like.device).reshape(1, -1)

    @staticmethod
    def array(tensor: Tensor) -> Array:
        """Any tensor as a flat float64 array."""
        array: Array = tensor.detach().to("cpu", torch.float64).numpy().reshape(-1)
        return array

    @staticmethod
    def _matrix(tensor: Tensor) -> Array:
        matrix: Array = tensor[0].detach().to("cpu", torch.float64).numpy()
        return matrix

    def _all_constraints(self, x: Array) -> Tensor:
        with torch.no_grad():
            h = self.problem.all_constraints(self.tensor(x))
        return flat(self._like)[:, :0] if h is None else h

    def _multipliers(self, local: Local) -> tuple[Tensor, Tensor]:
        nu = least_squares_multipliers(local.jacobian, local.gradient)
        return nu, local.gradient - (nu.unsqueeze(1) @ local.jacobian).squeeze(1)

    def _combinations(self) -> Array:
        p, m = self._here.jacobian.shape[1:]
        pattern = np.cos(np.arange(1, m + 1))
        close_by = self.x0 + _CLOSE_BY * pattern * np.maximum(np.abs(self.x0), _CLOSE_BY)
        ranked = []
        for jacobian in (self._here.jacobian, self.local(close_by).jacobian):
            A = self._matrix(jacobian.nan_to_num(nan=0, posinf=0, neginf=0))
            left, s, _ = np.linalg.svd(A, full_matrices=False)
            rounding = max(p, m) * torch.finfo(jacobian.dtype).eps * s.max(initial=0)
            rank = int((s > rounding).sum())
            ranked.append((rank, left[:, :rank].T))
        rank, combinations = max(ranked, key=lambda pair: pair[0])
        return np.eye(p) if rank == p else combinations

    def _look_at_the_clock(self) -> None:
        if self.deadline.passed:
            raise Ended(Status.TIME_LIMIT)


def _tamed(h: Tensor) -> Tensor:
    return torch.nan_to_num(h, nan=_OUTSIDE, posinf=_OUTSIDE, neginf=-_OUTSIDE)
