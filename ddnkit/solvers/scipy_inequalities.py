"""SciPy's minimisers on problems with inequality constraints and bounds.

A method of SciPy runs to its own end, on f, h, g and y in units of their size, since its rules on accuracy
depend on units. Where it stops, what holds as an equation is guessed from the distances, and the point
polished (`constrained.polish`); the result is judged by its residuals. Where it is no solution the method is
run again from there, as long as that lessens the error. What remains is explained as `no_solution` has it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..problem import Problem, flat
from ..solution import Status
from .constrained import (
    Multipliers,
    Point,
    Program,
    falls_without_bound,
    held_near,
    into_bounds,
    multipliers_of,
    polish,
    units_of,
)
from .iterative import Deadline
from .no_solution import least_violation
from .residual import constraint_values, norm

Array = np.ndarray

#: |h| outside the domain; its square is finite.
OUTSIDE = 1e100
_RUNS = 4
#: How near its boundary, in powers of the roundoff, a constraint is taken for active: several are tried.
#: trust_constr may end with a barrier of 1e-4, and so a hundredth away.
_NEAR = (0.6, 0.4, 0.25, 0.15, 0.1)


class EndOfSolve(Exception):  # noqa: N818 - no error: how a callback leaves a SciPy routine
    """The solve has ended with this status, at the last iterate."""

    def __init__(self, status: Status) -> None:
        super().__init__(status)
        self.status = status


class InequalityItem:
    """A batch of one with inequalities, seen from SciPy: f, h and g ≤ 0, each of a size of about one.

    Attributes:
        last: (m,), the last point with derivatives. steps: how many there were after the start.
        lower, upper: (m,), the bounds of y.
        equations, inequalities: how many there are.
    """

    def __init__(self, problem: Problem, start: Tensor, limit: int, deadline: Deadline) -> None:
        program = Program(problem, start)
        unit = units_of(program, flat(start))
        self.program = program.in_units(unit)
        self.start = self.program.within(flat(start) / unit).nan_to_num(nan=0.0)
        self.limit, self.deadline, self.steps = limit, deadline, 0
        self._here = self.program.at(self.start)
        if not bool(self._here.finite):
            self.start = into_bounds(self.program, self.start)
            self._here = self.program.at(self.start)
        self.usable = bool(self._here.finite)
        self.last = self._array(self.start)
        self.lower, self.upper = self._array(self.program.lower), self._array(self.program.upper)
        size = norm(self._here.gradient)
        self._of_f = float(torch.where(size > 0, size, 1.0))
        self._of_h, self._of_g = (
            self._array(torch.where(norm(rows) > 0, norm(rows), 1.0))
            for rows in (self._here.A, self._here.G)
        )
        self.equations, self.inequalities = len(self._of_h), len(self._of_g)
        self._looked_at = np.full_like(self.last, np.nan)  # which is equal to nothing
        self._found = np.inf, self._of_h, self._of_g

    def objective(self, x: Array) -> float:
        """f, infinite outside of its domain and of that of the constraints."""
        return self._values(x)[0]

    def gradient(self, x: Array) -> Array:
        """∇f."""
        return self._array(self._at(x).gradient) / self._of_f

    def h(self, x: Array) -> Array:
        """h (p,), very large outside of its domain."""
        return self._values(x)[1]

    def A(self, x: Array) -> Array:
        """Dh (p, m)."""
        return self._array(self._at(x).A).reshape(self.equations, -1) / self._of_h[:, None]

    def g(self, x: Array) -> Array:
        """g (k,), nonpositive where feasible; very large outside of its domain."""
        return self._values(x)[2]

    def G(self, x: Array) -> Array:
        """Dg (k, m)."""
        return self._array(self._at(x).G).reshape(self.inequalities, -1) / self._of_g[:, None]

    def hessian(
        self, x: Array, *, of_f: float = 0.0, of_h: Array | None = None, of_g: Array | None = None
    ) -> Array:
        """of_f ∇²f + Σ of_hᵢ ∇²hᵢ + Σ of_gᵢ ∇²gᵢ (m, m); None for no part of these."""
        y = self.row(x)
        none = torch.zeros_like(y)
        no_h, no_g = np.zeros(self.equations), np.zeros(self.inequalities)

        def at(of_h: Array, of_g: Array) -> Array:
            # L = f − νᵀh + λᵀg
            weights = Multipliers(-self.row(of_h), self.row(of_g), none, none)
            return self._array(self.program.hessian(y, weights)).reshape(len(x), len(x))

        alone = at(no_h, no_g)
        found: Array = of_f / self._of_f * alone
        if of_h is not None or of_g is not None:
            weights_h = no_h if of_h is None else of_h / self._of_h
            weights_g = no_g if of_g is None else of_g / self._of_g
            found = found + at(weights_h, weights_g) - alone
        return found

    def settle(self, y: Tensor) -> None:
        """Take y (1, m) for the last point."""
        self.last, self._here = self._array(y), self.program.at(y)

    def _at(self, x: Array) -> Point:
        if not np.array_equal(x, self.last):
            self._check()
            if self.steps >= self.limit:
                raise EndOfSolve(Status.MAX_ITERATIONS)
            self.settle(self.row(x))
            self.steps += 1
        return self._here

    def _values(self, x: Array) -> tuple[float, Array, Array]:
        """f, h and g, each over its size. A method asks for one after the other at the same x."""
        self._check()
        if not np.array_equal(x, self._looked_at):
            y = self.row(x)
            with torch.no_grad():
                f = self.program.problem.objective(self.program.shaped(y))
                h = constraint_values(self.program.problem, self.program.shaped(y))
                g = self.program.inequalities(y)
            inside = (
                not bool(f.isnan()) and bool(h.isfinite().all()) and bool((g < torch.inf).all())
            )
            value = float(f.nan_to_num(posinf=torch.inf)) / self._of_f if inside else np.inf
            self._found = value, self._tame(h, self._of_h), self._tame(g, self._of_g)
            self._looked_at = x.copy()
        return self._found

    def _check(self) -> None:
        if self.deadline.passed:
            raise EndOfSolve(Status.TIME_LIMIT)

    def row(self, x: Array) -> Tensor:
        """(m,) as (1, m)."""
        return torch.tensor(x, dtype=self.start.dtype, device=self.start.device).reshape(1, -1)

    def _tame(self, values: Tensor, of: Array) -> Array:
        return np.nan_to_num(self._array(values) / of, nan=OUTSIDE, posinf=OUTSIDE, neginf=-OUTSIDE)

    @staticmethod
    def _array(tensor: Tensor) -> Array:
        array: Array = tensor.detach().to("cpu", torch.float64).numpy().reshape(-1)
        return array


@dataclass(frozen=True)
class Result:
    """One item: y (1, *y), how it ended, and its multipliers."""

    y: Tensor
    status: Status
    steps: int
    nu: Tensor
    lam: Tensor


def solve_item(
    run: Callable[[InequalityItem], None],
    problem: Problem,
    start: Tensor,
    tolerance: float,
    limit: int,
    deadline: Deadline,
) -> Result:
    """Solve a batch of one from ``start`` (1, *y).

    Args:
        run: runs a minimiser of SciPy from ``item.last`` to its end, or raises `EndOfSolve`.
    """
    item = InequalityItem(problem, start, limit, deadline)
    program, y = item.program, item.start
    none = torch.zeros_like(y)
    multipliers = Multipliers(
        y.new_zeros(1, item.equations), y.new_zeros(1, item.inequalities), none, none
    )
    status = Status.STALLED
    if bool(program.contradictory):
        status = Status.INFEASIBLE
    elif not item.usable:
        y, status = y * torch.nan, Status.NON_FINITE
    else:
        least = torch.inf
        for _ in range(_RUNS):
            try:
                with np.errstate(all="ignore"):
                    run(item)
            except EndOfSolve as end:
                status = end.status
            found, at, error = _polished(program, program.within(item.row(item.last)), multipliers)
            if error <= tolerance:
                y, multipliers, status = found, at, Status.CONVERGED
            if status is not Status.STALLED or not error < least / 2:
                break
            least = error
        if status is not Status.CONVERGED:
            y = program.within(item.row(item.last))
            y, status = _explained(program, y, item.start, status, deadline)
    every = program.rows_of_multipliers(multipliers)
    return Result(program.shaped(y), status, item.steps, multipliers.nu, every)


def _polished(
    program: Program, y: Tensor, multipliers: Multipliers
) -> tuple[Tensor, Multipliers, float]:
    """The best of the points that come of y (1, m), its multipliers and its error."""
    point = program.at(y)
    best, at, least = y, multipliers, torch.full_like(point.value, torch.inf)
    for power in _NEAR:
        held = held_near(program, point, torch.finfo(y.dtype).eps ** power)
        found = polish(program, point, multipliers_of(program, point, held), held, least)
        best, at, least = found.y, found.multipliers, found.error
        if bool(least <= torch.finfo(y.dtype).eps ** 0.8):
            break
    return best, at, float(least)


def _explained(
    program: Program, y: Tensor, start: Tensor, status: Status, deadline: Deadline
) -> tuple[Tensor, Status]:
    """Whether nothing is feasible, or f falls without bound; else as it was."""
    if status is Status.TIME_LIMIT:
        return y, status
    if bool(falls_without_bound(program, y, start)):
        return y, Status.UNBOUNDED
    nearest, hopeless = least_violation(program.problem, program.shaped(y), deadline)
    if bool(hopeless):
        return flat(nearest) / program.unit, Status.INFEASIBLE
    return y, status
