"""Limited-memory BFGS for a batch, with an augmented Lagrangian where there are constraints.

Each iteration takes the direction d = −H∇M from the last pairs (`History`) and a step along it by
a strong Wolfe search (`wolfe_search`), where M is f, or the augmented Lagrangian
(`augmented_lagrangian`) of f and h. An item whose ∇M is small enough for its present multipliers gets
better ones at once, while its neighbours go on minimising; the tolerance for that starts at 1% and
falls tenfold with each update. The first multipliers are those of least squares at the start, so that a
start at the solution is recognised as such.

Only gradients are used: O(m·history) memory and time an iteration for y of m entries. The price is
linear convergence, slower the worse the conditioning; `Newton` is better for small problems.

With the pairs s = y⁺ − y, u = ∇⁺ − ∇ of the last k steps, the L-BFGS approximation of the inverse
Hessian is H = Vᵀ H' V + ρ s sᵀ, ρ = 1/(sᵀu), V = I − ρ u sᵀ, recursively down to H = γI with
γ = sᵀu/uᵀu of the newest pair. Hg takes 4km operations and 2km numbers of memory. Each item of the batch
has pairs of its own: one it skips or forgets has ρ = 0, which takes it out of the recursion.

Source: Liu and Nocedal (1989); Nocedal and Wright, *Numerical Optimization*, chapters 3, 7 and 17.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..problem import Problem, flat
from ..solution import Solution, Status
from .augmented_lagrangian import AugmentedLagrangian, Evaluation
from .iterative import Deadline, IterativeSolver, number, whole_number
from .no_solution import Depth, stuck, stuck_at_rest
from .residual import ConstraintProducts, Scales, norm
from .wolfe_search import search

_RUNNING = -1
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
_TOLERANCE_BELOW = 1e-2
_FIRST_INNER = 1e-2
_FIRST_STEP = 0.1
_FAILURES = 4
_LAST_RESORT = 2
_IDLE = 200
_NEARLY_FEASIBLE = 1e-2
_ROUNDINGS = 16
_ESCAPED_FACTOR = 100.0


@dataclass(frozen=True, kw_only=True)
class LBFGS(IterativeSolver):
    """Solves  min f(x, y) over y subject to h(x, y) = 0  and the manifold's constraints, if any.

    First-order and matrix-free: O(m·history) memory. Finds a stationary point that f does not rise
    to, normally a local minimum. The whole batch is iterated together, on the device and in the dtype of
    the inputs; each item has its own history, multipliers and line search. Constraints may be
    dependent, as long as they are consistent.

    Args:
        max_iterations: L-BFGS steps allowed, those for all multipliers of a problem taken together.
        tolerance: largest backward error of ∇L = 0 and h = 0 (see `residual`); None for 1e-9 in
            float64, 1e-5 in float32 and 1e-2 in half precision.
        max_time: seconds for one call, the whole batch; None for no limit. Looked at between
            iterations.
        history: pairs kept an item.

    Status per item: CONVERGED; MAX_ITERATIONS; TIME_LIMIT; STALLED, where no step decreases M any
    more; INFEASIBLE and UNBOUNDED (see `no_solution`); NON_FINITE, where f, h or a derivative is so
    at the start.
    """

    name = "lbfgs"

    max_iterations: int = 2000
    tolerance: float | None = number(None)
    history: int = whole_number(20, least=1)

    def solve(self, problem: Problem, start: Tensor | None = None) -> Solution:
        """Solve every item from ``start``, which need not be feasible."""
        deadline = Deadline(self.max_time)
        y = (problem.start() if start is None else start).detach()
        status = torch.full((len(y),), _RUNNING, device=y.device)
        iterations = torch.zeros_like(status)
        if len(y) == 0:
            return Solution(y, status, iterations, self.name)
        run = _Run(problem, y, self.tolerance, self.history)
        for iteration in range(self.max_iterations + 1):
            running = status == _RUNNING
            status = torch.where(running, run.judge(running, iteration), status)
            running = status == _RUNNING
            if iteration == self.max_iterations:
                status = torch.where(running, int(Status.MAX_ITERATIONS), status)
            elif deadline.passed:
                status = torch.where(running, int(Status.TIME_LIMIT), status)
            running = status == _RUNNING
            if not bool(running.any()):
                break
            run.step(running)
            iterations = iterations + running
        return Solution(run.y.reshape(y.shape), status, iterations, self.name)


class _Run:
    """The iterates of a batch; what belongs to one call of `LBFGS.solve`."""

    def __init__(
        self, problem: Problem, start: Tensor, tolerance: float | None, pairs: int
    ) -> None:
        self.problem = problem
        self.shape = start.shape
        self.y = flat(start).clone()
        if tolerance is None:
            tolerance = _TOLERANCE.get(start.dtype, _TOLERANCE_BELOW)
        # Iterated to half of it, so that what was a solution is one still when started from.
        self.scales = Scales(problem, tolerance / 2)
        products = ConstraintProducts(problem, start)
        self.merit = AugmentedLagrangian(problem, start.shape, products.h)
        self.here = self.merit.evaluate(self.y)
        f, gradient = self.here.objective, self.here.gradient
        size = torch.where(norm(self.y) > 0, norm(self.y), 1.0)
        # With the penalty, a violation within the tolerance may hide that the start is a solution.
        self.solved = torch.zeros_like(f, dtype=torch.bool)
        if self.merit.constrained:
            self.merit.multipliers = products.least_squares(gradient)
            residual = gradient - products.transpose_times(self.merit.multipliers)
            self.scales.measure(start, self.merit.multipliers, residual, products.h)
            self.solved = self.scales.within(residual, products.h, slack=2)
            curvature = torch.maximum(self.scales.stationarity, norm(gradient)) / size
            self.merit.first_penalty(curvature, self.scales.norm_of_A)
            self.here = self.merit.evaluate(self.y)
        self._measure()
        self.depth = Depth(problem, start, f, gradient, self.scales.stationarity)
        slope = norm(self.here.gradient)
        tiny = torch.finfo(start.dtype).tiny
        self.history = History(pairs, gradient, _FIRST_STEP * size / slope.clamp_min(tiny))
        self.inner = torch.full_like(f, _FIRST_INNER)
        self.failures = torch.zeros_like(f, dtype=torch.long)
        self.idle = torch.zeros_like(self.failures)
        self.least = torch.full_like(f, torch.inf)
        self.outer = self.y

    # -- judging --------------------------------------------------------------------------------

    def judge(self, active: Tensor, iteration: int) -> Tensor:
        """The status of each item at its iterate, (B,), -1 to go on; updates multipliers on the way."""
        finite, unbounded = self.here.finite, self._check_escape(active)
        stalled = active & ((self.failures >= _FAILURES) | (self.idle >= _IDLE))
        converged = self._converged(active, stalled, iteration)
        hopeless = self._settle_minima(active & ~converged & ~unbounded, stalled)
        outcome = torch.full_like(self.failures, _RUNNING)
        for status, items in (
            (Status.STALLED, stalled),
            (Status.INFEASIBLE, hopeless),
            (Status.UNBOUNDED, unbounded),
            (Status.CONVERGED, converged),
            (Status.NON_FINITE, ~finite),
        ):
            outcome = torch.where(items, int(status), outcome)
        return outcome

    def _converged(self, active: Tensor, stalled: Tensor, iteration: int) -> Tensor:
        h, residual = self.here.constraints, self.here.gradient
        at = (self.y.reshape(self.shape), self.merit.estimates(h), residual, h)
        self.scales.refresh(iteration, *at)
        converged = self.scales.confirm(*at, of=active)
        if iteration == 0:
            converged = converged | self.solved
        # What comes to rest between half the tolerance and all of it is good enough, before other multipliers
        # are tried on it.
        at_rest = stalled | (active & (self.failures >= _LAST_RESORT))
        return converged | (at_rest & self.scales.within(residual, h, slack=2))

    def _settle_minima(self, items: Tensor, stalled: Tensor) -> Tensor:
        """Better multipliers for those of ``items`` at a minimum of M; those that are stuck there."""
        if not self.merit.constrained:
            return torch.zeros_like(items)
        low = norm(self.here.gradient) <= self.inner * self.scales.stationarity
        at_minimum = items & (low | (self.failures == _LAST_RESORT) | stalled)
        hopeless = self._stuck(at_minimum, stalled)
        self._update(at_minimum & ~hopeless & ~stalled)
        return hopeless

    def _measure(self) -> None:
        nu = self.merit.estimates(self.here.constraints)
        y = self.y.reshape(self.shape)
        self.scales.measure(y, nu, self.here.gradient, self.here.constraints)

    def _check_escape(self, active: Tensor) -> Tensor:
        """Those without a bound; with too small a penalty M has none either, which is mended here."""
        beyond = active & self.depth.beyond(self.y.reshape(self.shape), self.here.objective)
        if not bool(beyond.any()):
            return beyond
        self._measure()
        feasible = norm(self.here.constraints) <= _NEARLY_FEASIBLE * self.scales.feasibility
        loose = beyond & ~feasible & (self.merit.penalty < self.merit.highest)
        if self.merit.constrained and bool(loose.any()):
            self.y = torch.where(loose.unsqueeze(-1), self.outer, self.y)
            self.merit.raise_penalty(loose, _ESCAPED_FACTOR)
            self._reconsider(loose, loose, _ESCAPED_FACTOR)
        self.failures = torch.where(beyond & ~loose, _FAILURES, self.failures)
        y = self.y.reshape(self.shape)
        return beyond & feasible & self.depth.unbounded(y, self.here.objective)

    def _stuck(self, items: Tensor, stalled: Tensor) -> Tensor:
        """Those of ``items`` that violate the constraints as little as a neighbourhood allows."""
        h = self.here.constraints
        violated = items & ~self.scales.feasible(h) & (self.merit.stagnant(h) | stalled)
        if not bool(violated.any()):
            return violated
        pulled = ConstraintProducts(self.problem, self.y.reshape(self.shape)).transpose_times(h)
        at_rest = stalled | (self.merit.penalty >= self.merit.highest)
        resting = at_rest & stuck_at_rest(h, pulled, norm(self.y))
        return violated & (stuck(h, pulled, self.scales.norm_of_A) | resting)

    # -- moving ---------------------------------------------------------------------------------

    def _update(self, items: Tensor) -> None:
        if not bool(items.any()):
            return
        h = self.here.constraints
        raised = self.merit.update(items, h, self.scales.feasible(h))
        tightened = (self.inner / 10).clamp_min(self.scales.tolerance / 2)
        self.inner = torch.where(items, tightened, self.inner)
        self.outer = torch.where(items.unsqueeze(-1), self.y, self.outer)
        self._reconsider(items, raised, 10.0)

    def _reconsider(self, items: Tensor, raised: Tensor, factor: float) -> None:
        """Evaluate M with the new multipliers of ``items``; forget the pairs of those with a new ρ."""
        self.history.forget(raised)
        self.history.gamma = torch.where(raised, self.history.gamma / factor, self.history.gamma)
        self.here = self.merit.evaluate(self.y)
        self.least = torch.where(items, torch.inf, self.least)
        self.failures = torch.where(raised, 0, self.failures)

    def step(self, active: Tensor) -> None:
        """One L-BFGS step of the ``active`` items, (B,)."""
        here, direction = self.here, self._direction()
        tiny = torch.finfo(direction.dtype).tiny
        longest = 2 * self.depth.bound / norm(direction).clamp_min(tiny)
        t, there = search(self.merit.evaluate, self.y, here, direction, longest, active)
        change = t.unsqueeze(-1) * direction
        # A step may be too short to be one in this dtype.
        moved = active & (self.y + change != self.y).any(dim=-1)
        self.history.push(moved, change, there.gradient - here.gradient)
        self.history.forget(active & ~moved)
        self._count(active, moved, there)
        self.y = torch.where(moved.unsqueeze(-1), self.y + change, self.y)
        self.here = there.where(moved, here)

    def _direction(self) -> Tensor:
        gradient = self.here.gradient
        direction = -self.history.apply(gradient)
        uphill = ~((direction * gradient).sum(dim=-1) < 0)
        self.history.forget(uphill)
        steepest = -self.history.gamma.unsqueeze(-1) * gradient
        return torch.where(uphill.unsqueeze(-1), steepest, direction)

    def _count(self, active: Tensor, moved: Tensor, there: Evaluation) -> None:
        """Steps in a row that failed, and those that brought neither M nor its gradient down."""
        self.failures = torch.where(moved, 0, self.failures + (active & ~moved))
        slope = norm(there.gradient)
        noise = _ROUNDINGS * torch.finfo(slope.dtype).eps * self.here.magnitude
        progress = (slope < 0.9 * self.least) | (self.here.value - there.value > noise)
        self.least = torch.where(moved, torch.minimum(self.least, slope), self.least)
        self.idle = torch.where(progress, 0, self.idle + active)


class History:
    """A ring of ``pairs`` pairs for each item of a batch.

    Args:
        pairs: how many to keep.
        gradient: (B, m), the first gradient, for shape, dtype and device.
        first_step: (B,), γ while there is no pair.
    """

    def __init__(self, pairs: int, gradient: Tensor, first_step: Tensor) -> None:
        self.pairs = pairs
        batch = len(gradient)
        self.gamma = first_step
        self._s = gradient.new_zeros(pairs, *gradient.shape)
        self._u = torch.zeros_like(self._s)
        self._rho = gradient.new_zeros(pairs, batch)
        self._next = torch.zeros(batch, dtype=torch.long, device=gradient.device)
        self._item = torch.arange(batch, device=gradient.device)
        self._filled = 0

    def push(self, items: Tensor, s: Tensor, u: Tensor) -> None:
        """Remember the pair (s, u), (B, m) each, of ``items`` (B,) where its curvature is positive."""
        product = _dot(s, u)
        length = torch.linalg.vector_norm(u, dim=-1)
        eps = torch.finfo(s.dtype).eps
        kept = items & (product > eps * length * torch.linalg.vector_norm(s, dim=-1))
        at = (self._next, self._item)
        self._s[at] = torch.where(kept.unsqueeze(-1), s, self._s[at])
        self._u[at] = torch.where(kept.unsqueeze(-1), u, self._u[at])
        self._rho[at] = torch.where(kept, 1 / product, self._rho[at])
        self.gamma = torch.where(kept, product / length.square(), self.gamma)
        self._next = (self._next + kept) % self.pairs
        self._filled = min(self._filled + 1, self.pairs)

    def forget(self, items: Tensor) -> None:
        """Drop all pairs of ``items`` (B,); γ stays."""
        self._rho = torch.where(items, 0.0, self._rho)

    def apply(self, gradient: Tensor) -> Tensor:
        """H g of each item, (B, m)."""
        slots = [(self._next - 1 - age) % self.pairs for age in range(self._filled)]
        q, coefficients = gradient, []
        for slot in slots:
            at = (slot, self._item)
            coefficients.append(self._rho[at] * _dot(self._s[at], q))
            q = q - coefficients[-1].unsqueeze(-1) * self._u[at]
        q = self.gamma.unsqueeze(-1) * q
        for slot, coefficient in zip(reversed(slots), reversed(coefficients), strict=True):
            at = (slot, self._item)
            change = coefficient - self._rho[at] * _dot(self._u[at], q)
            q = q + change.unsqueeze(-1) * self._s[at]
        return q


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=-1)
