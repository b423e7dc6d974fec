"""SciPy behind the Solver contract: what its methods have in common.

SciPy works on numpy arrays. Each item of a batch goes to it alone, in float64 on the CPU, whatever the
dtype and device of the problem; the result comes back in those of the problem. A method that gives up
is run again from where it was, as long as that halves the error. One that ends without a solution is
asked why (`no_solution`): if its last point violates the constraints, whether they can be met at all, and
if so it goes on from where they are; else whether f falls without bound along a ray of feasible points.

What SciPy sees of an item (`ScipyItem`) is y and h flattened. The problem itself is evaluated where its
inputs are, in the dtype of the start (float64, unless the node holds tensors of its own in another);
each evaluation is a round trip.

*Iterates.* SciPy's methods ask for a gradient or a Jacobian only where they have gone to, and for values
wherever they look. So every point of the former kind is judged here: the solve ends by an exception,
`EndOfSolve`, as soon as one is a solution, is beyond all bounds, or has no derivative. SciPy's own stopping
rules, which depend on the units of f, are set out of reach.

*Outside the domain* f is infinite, NaN included, and h very large, so that a trial point there is no
improvement. Every evaluation looks at the time limit.

*Dependent constraints* would make SciPy's factorisations fail. Where A = Dh has rank r < p, the r
combinations h̃ = Uᵣᵀh with the leading left singular vectors are handed over instead; a solution is still
judged by all of h. The rank is the larger one of those at the start and close to it, for a point may
be special (the centre of a circle).

Source: Virtanen et al. (2020), *SciPy 1.0*.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..lagrangian import lagrangian_hessian, least_squares_multipliers
from ..problem import Problem, derivative, flat
from ..solution import Solution, Status
from .iterative import Deadline, IterativeSolver, number
from .no_solution import Depth, falls_along, least_violation
from .residual import LocalModel, Scales, constraint_values, local_model
from .scipy_inequalities import OUTSIDE, Array, EndOfSolve, InequalityItem, Result, solve_item

_TOLERANCE = 1e-8
_TOLERANCE_BELOW_FLOAT64 = 1e-6
_TOLERANCE_IN_FLOAT32 = 1e-5
#: Backward error from which Newton steps may finish what a method has left.
_NEARLY = 1e-6
_UNEXPLAINED = (Status.MAX_ITERATIONS, Status.STALLED, Status.NON_FINITE)
_CLOSE_BY = 1e-2


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
        self._here: LocalModel = local_model(problem, start)
        if not bool(self._here.finite):
            raise EndOfSolve(Status.NON_FINITE)
        # Iterated to half of it, so that what was a solution is one still when started from.
        self.scales = Scales(problem, tolerance / 2)
        self.combinations = self._combinations()
        nu, residual = self._multipliers(self._here)
        self.scales.measure(start, nu, residual, self._here.constraints)
        change = self.scales.stationarity
        self.depth = Depth(problem, start, self._here.value, self._here.gradient, change)
        if bool(self.scales.within(residual, self._here.constraints, slack=2)):
            raise EndOfSolve(Status.CONVERGED)

    # -- values, anywhere -----------------------------------------------------------------------

    def objective(self, x: Array) -> float:
        """f(x), infinite outside its domain."""
        self._check_deadline()
        with torch.no_grad():
            value = self.problem.objective(self.tensor(x))
        return float(torch.nan_to_num(value, nan=torch.inf, posinf=torch.inf))

    def constraints(self, x: Array) -> Array:
        """h̃(x), (r,)."""
        self._check_deadline()
        with torch.no_grad():
            h = constraint_values(self.problem, self.tensor(x))
        return self.combinations @ self.array(_tame(h))

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
            weighted = (
                constraint_values(self.problem, y) * self._row(self.combinations.T @ weights)
            ).sum()
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

    def iterate(self, x: Array) -> LocalModel:
        """Derivatives at an iterate; raises `EndOfSolve` where the solve is over with it."""
        if np.array_equal(x, self.last):
            return self._here
        self._check_deadline()
        if self.steps >= self.limit:
            raise EndOfSolve(Status.MAX_ITERATIONS)
        local = self.local(x)
        if not bool(local.finite):
            raise EndOfSolve(Status.NON_FINITE)
        self.last, self._here = x.copy(), local
        self.steps += 1
        if self.solved(local):
            raise EndOfSolve(Status.CONVERGED)
        if bool(self.depth.beyond(self.tensor(x), local.value)):
            fallen = bool(self.depth.unbounded(self.tensor(x), local.value))
            raise EndOfSolve(Status.UNBOUNDED if fallen else Status.STALLED)
        return local

    def solved(self, local: LocalModel) -> bool:
        """Whether the last iterate, with these derivatives, is a solution within half the tolerance."""
        nu, residual = self._multipliers(local)
        at = (self.tensor(self.last), nu, residual, local.constraints)
        self.scales.refresh(self.steps, *at)
        return bool(self.scales.confirm(*at, of=local.value.isfinite()))

    def settle(self, x: Array) -> None:
        """Take x for the last iterate: where a method goes back to, or is sent."""
        local = self.local(x)
        if bool(local.finite):
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

    def local(self, x: Array) -> LocalModel:
        """f, h and their derivatives at x."""
        return (
            self._here
            if np.array_equal(x, self.last)
            else local_model(self.problem, self.tensor(x))
        )

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

    def _multipliers(self, local: LocalModel) -> tuple[Tensor, Tensor]:
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

    def _check_deadline(self) -> None:
        if self.deadline.passed:
            raise EndOfSolve(Status.TIME_LIMIT)


@dataclass(frozen=True, kw_only=True)
class ScipySolver(IterativeSolver):
    """Solves  min f(x, y) over y subject to h(x, y) = 0  and the manifold's constraints, if any.

    One item at a time, in float64 on the CPU (numpy). Dense: O(m²) memory or more for y of m entries.

    Args:
        max_iterations: iterations allowed an item.
        tolerance: largest backward error of ∇L = 0 and h = 0 (see `residual`); None for 1e-8 in
            float64 and 1e-6 in lower precision, which the result is rounded to (1e-5 where a node
            with tensors of its own cannot be evaluated in float64).
        max_time: seconds for one item; None for no limit. Looked at in each evaluation.

    Status: CONVERGED; MAX_ITERATIONS; TIME_LIMIT; STALLED, where the method gives up; INFEASIBLE and
    UNBOUNDED (see `no_solution`; an infeasible item's solution is the point of least violation nearby);
    NON_FINITE, where f, h or a derivative is so at the start or an iterate.
    """

    max_iterations: int = 500
    tolerance: float | None = number(None)

    @abc.abstractmethod
    def _minimise(self, item: ScipyItem) -> None:
        """Run the method from ``item.last`` until it ends by itself, or raise `EndOfSolve`."""

    def solve(self, problem: Problem, start: Tensor | None = None) -> Solution:
        """Solve the items one after the other from ``start``, which need not be feasible."""
        start = problem.start() if start is None else start
        if problem.node.has_inequalities:
            return self._solve_with_inequalities(problem, start)
        points, statuses, iterations = [], [], []
        for index in range(problem.batch_size):
            y, status, steps = self._solve_item(problem, index, start[index : index + 1].detach())
            points.append(y)
            statuses.append(int(status))
            iterations.append(steps)
        return Solution(
            torch.cat([y.to(start.dtype) for y in points]) if points else start,
            torch.tensor(statuses, dtype=torch.long, device=start.device),
            torch.tensor(iterations, dtype=torch.long, device=start.device),
            self.name,
        )

    def run_with_inequalities(self, item: InequalityItem) -> None:
        """Run the method from ``item.last`` to its own end, or until it raises `EndOfSolve`."""
        raise NotImplementedError  # where `takes_inequalities` is false

    def _solve_with_inequalities(self, problem: Problem, start: Tensor) -> Solution:
        results = []
        for index in range(problem.batch_size):
            deadline = Deadline(self.max_time)

            def seen_in(
                dtype: torch.dtype,
                tolerance: float,
                index: int = index,
                deadline: Deadline = deadline,
            ) -> Result:
                one, y = _single_item(problem, index, dtype), start[index : index + 1].detach()
                tolerance = tolerance if self.tolerance is None else self.tolerance
                return solve_item(
                    self.run_with_inequalities, one, y.to(dtype), tolerance, self.max_iterations, deadline
                )  # fmt: skip

            try:
                found = seen_in(torch.float64, _TOLERANCE)
            except RuntimeError:
                # A node's own tensors may keep it to their dtype; another error comes again.
                found = seen_in(start.dtype, _TOLERANCE_IN_FLOAT32)
            results.append(found)
        if not results:
            return Solution(start, solver=self.name)
        columns = ([r.status for r in results], [r.steps for r in results])
        status, steps = (torch.tensor(c, dtype=torch.long, device=start.device) for c in columns)
        y, nu, lam = (
            torch.cat(parts).to(start.dtype)
            for parts in zip(*((r.y, r.nu, r.lam) for r in results), strict=True)
        )
        return Solution(y, status, steps, self.name, multipliers=(nu, lam))

    def _solve_item(self, problem: Problem, index: int, y: Tensor) -> tuple[Tensor, Status, int]:
        deadline = Deadline(self.max_time)
        try:
            item = self._item(problem, index, y, deadline)
        except EndOfSolve as end:
            return y, end.status, 0
        status = self._run(item)
        if status in _UNEXPLAINED and not item.feasible:
            nearest, hopeless = least_violation(item.problem, item.tensor(item.last), deadline)
            if bool(hopeless):
                return nearest, Status.INFEASIBLE, item.steps
            if status is Status.STALLED:
                item.settle(item.array(nearest))
                status = self._run(item)
        y = item.tensor(item.last)
        if status in _UNEXPLAINED and item.feasible and self._unbounded(item, y):
            status = Status.UNBOUNDED
        return y, status, item.steps

    def _item(self, problem: Problem, index: int, y: Tensor, deadline: Deadline) -> ScipyItem:
        def seen_in(dtype: torch.dtype, tolerance: float) -> ScipyItem:
            one = _single_item(problem, index, dtype)
            tolerance = tolerance if self.tolerance is None else self.tolerance
            return ScipyItem(one, y.to(dtype), tolerance, self.max_iterations, deadline)

        if y.dtype == torch.float64:
            return seen_in(torch.float64, _TOLERANCE)
        try:
            return seen_in(torch.float64, _TOLERANCE_BELOW_FLOAT64)
        except RuntimeError:
            # A node's own tensors may keep it to their dtype; another error comes again.
            return seen_in(y.dtype, _TOLERANCE_IN_FLOAT32)

    def _run(self, item: ScipyItem) -> Status:
        """Let the method go on as long as each run halves the error that the last one has left."""
        before = np.inf
        while (error := item.backward_error()) < before / 2:
            if error <= 1:
                return Status.CONVERGED
            try:
                # Trial points outside the domain are part of a search.
                with np.errstate(all="ignore"):
                    self._minimise(item)
            except EndOfSolve as end:
                return end.status
            before = error
        return Status.CONVERGED if error <= 1 or self._finish(item, error) else Status.STALLED

    @staticmethod
    def _finish(item: ScipyItem, error: float) -> bool:
        """Whether Newton steps on ∇L = 0 and h = 0 reach the tolerance, each halving the error at least.

        Methods that judge a step by values of f and h cannot see one below √eps, whose decrease is
        lost in rounding: whether they come within a tolerance near to that is chance.
        """
        while 1 < error <= _NEARLY / item.tolerance:
            before, kept = error, item.last
            item.settle(item.last + item.newton_step())
            error = item.backward_error()
            if not error < before / 2:
                item.settle(kept)
                return False
        return error <= 1

    @staticmethod
    def _unbounded(item: ScipyItem, y: Tensor) -> bool:
        gone = flat(y) - torch.from_numpy(item.x0).to(y)
        return any(
            bool(falls_along(item.problem, y, direction.reshape(y.shape)))
            for direction in (gone, -item.tangent_gradient())
        )


def _single_item(problem: Problem, index: int, dtype: torch.dtype) -> Problem:
    """One item, in ``dtype``; what else belongs to the problem stays as it is."""

    def convert(x: object) -> object:
        if not isinstance(x, Tensor):
            return x
        x = x[index : index + 1].detach()
        return x.to(dtype) if x.is_floating_point() else x

    one = problem.with_inputs([convert(x) for x in problem.inputs])
    one.batch_size = 1
    return one


def _tame(h: Tensor) -> Tensor:
    return torch.nan_to_num(h, nan=OUTSIDE, posinf=OUTSIDE, neginf=-OUTSIDE)
