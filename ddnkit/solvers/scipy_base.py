"""SciPy behind the Solver contract: what its methods have in common.

SciPy works on numpy arrays. Each item of a batch goes to it alone, in float64 on the CPU, whatever the
dtype and device of the problem; the result comes back in those of the problem (see `scipy_item`). A
method that gives up is run again from where it was, as long as that halves the error. One that ends
without a solution is asked why: if its last point violates the constraints, whether they can be met
at all (`least_violation`), and if so it goes on from where they are; else whether f falls without bound
along a ray of feasible points (`no_solution`).

Source: Virtanen et al. (2020), *SciPy 1.0*.
"""

from __future__ import annotations

import abc

import numpy as np
import torch
from torch import Tensor

from ..problem import Problem, flat
from ..solution import Solution, Status
from ..solver import Solver
from .deadline import Deadline
from .least_violation import least_violation
from .no_solution import falls_along
from .scipy_item import Ended, ScipyItem

_TOLERANCE = 1e-8
_TOLERANCE_BELOW_FLOAT64 = 1e-6
_TOLERANCE_IN_FLOAT32 = 1e-5
#: Backward error from which Newton steps may finish what a method has left.
_NEARLY = 1e-6
_UNEXPLAINED = (Status.MAX_ITERATIONS, Status.STALLED, Status.NON_FINITE)


class ScipySolver(Solver):
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

    def __init__(
        self, *, max_iterations: int, tolerance: float | None = None, max_time: float | None = None
    ) -> None:
        self.max_iterations = max_iterations
        self.tolerance = tolerance
        self.max_time = max_time

    @abc.abstractmethod
    def _minimise(self, item: ScipyItem) -> None:
        """Run the method from ``item.last`` until it ends by itself, or raise `Ended`."""

    def solve(self, problem: Problem, start: Tensor | None = None) -> Solution:
        """Solve the items one after the other from ``start``, which need not be feasible."""
        start = problem.start() if start is None else start
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

    def _solve_item(self, problem: Problem, index: int, y: Tensor) -> tuple[Tensor, Status, int]:
        deadline = Deadline(self.max_time)
        try:
            item = self._item(problem, index, y, deadline)
        except Ended as end:
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
            one = _single(problem, index, dtype)
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
            except Ended as end:
                return end.status
            before = error
        return Status.CONVERGED if error <= 1 or self._finished(item, error) else Status.STALLED

    @staticmethod
    def _finished(item: ScipyItem, error: float) -> bool:
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


def _single(problem: Problem, index: int, dtype: torch.dtype) -> Problem:
    """One item, in ``dtype``; what else belongs to the problem stays as it is."""

    def convert(x: object) -> object:
        if not isinstance(x, Tensor):
            return x
        x = x[index : index + 1].detach()
        return x.to(dtype) if x.is_floating_point() else x

    one = problem.with_inputs([convert(x) for x in problem.inputs])
    one.batch_size = 1
    return one
