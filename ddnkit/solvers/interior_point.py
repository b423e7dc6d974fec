"""A primal-dual interior point, for problems with inequality constraints and bounds.

    minimise f(y)  subject to  h(y) = 0,  g(y) + s = 0,  s > 0,  l < y < u.
Each step is Newton's on the conditions of optimality with sᵢλᵢ = τ in the place of sᵢλᵢ = 0, and likewise
for the bounds, which iterates keep strictly within. A first one with τ = 0 tells how much of the mean of
sᵢλᵢ a step can take away; from that follow τ and the second-order term of the step that is taken (Mehrotra).
Where the first could go less than a tenth of its way, the term counts by so much less.

A step is taken whole, up to the boundary, if it leaves no more error than the last few points had. One that
does not is halved, then given up: the item goes on carefully, with τ fixed, and its steps are shortened
until a merit function has decreased,
    M = f − τ Σ log s − τ Σ log(y − l) − τ Σ log(u − y) + ρ ‖(h, g + s)‖₁,      rows of h and g of length 1,
until the error is down by a tenth. Where the curvature is not positive on the tangent space, it is made so
(`constrained.System`), and the item goes carefully too, so that no saddle point or maximum attracts it.

Close to a solution the polish takes over (`constrained.polish`). Where it finds none with the constraints
that their sizes tell to be held, it is tried with those that the ratios of sᵢ and λᵢ tell; then the iteration
goes on to a smaller error, and the polish is tried again. An item that is stuck at a y far from the size of
its units starts anew there, in units of that y.

*Infeasible.* For weights λ ≥ 0, ν the function λᵀg − νᵀh is nonpositive at each feasible point. Where it is
positive at y, and its slope v so small that it stays so out to a distance of 1e8 times the size of y, there
is none within. Multipliers of infeasible problems grow into such weights. *Unbounded* is what `no_solution`
says, along the way the iterates took.

Source: Nocedal and Wright, *Numerical Optimization*, chapter 19; Mehrotra (1992); Cartis (2009), on the
weight of the second-order term.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ..lagrangian import least_squares_multipliers
from ..linalg.items import apply
from ..problem import Problem, flat
from ..solution import Solution, Status
from .constrained import (
    Multipliers,
    Point,
    Program,
    System,
    chosen,
    falls_without_bound,
    held_at,
    held_by_ratio,
    held_near,
    into_bounds,
    is_minimum,
    lowest_curvature,
    multipliers_of,
    polish,
    size_of,
    units_of,
    violation,
)
from .iterative import Deadline, IterativeSolver, number
from .no_solution import least_violation
from .residual import norm

_RUNNING = -1
_READY = -2
_TO_BOUNDARY = 0.995
_RECENT = 4
_TRIALS = 30
_TRIALS_WHOLE = 3
_ARMIJO = 1e-4
_FAR = 1e8
_FARTHER = 1e4
#: A step is no longer than this many times the size of y.
_LONGEST_STEP = 100
#: Over a unit f changes by this part of its curvatures at least.
_PART_OF_CURVATURE = 0.1
_ESCAPE = 0.1
_PATIENCE = 25
#: The second-order term counts in whole from one over so much of the first step's way on.
_TRUSTED = 10
#: A y of so many of its units, or one over so many, asks for others.
_OUTGROWN = 100


@dataclass(frozen=True, kw_only=True)
class InteriorPoint(IterativeSolver):
    """Solves  min f(x, y) over y subject to h(x, y) = 0, g(x, y) ≤ 0, bounds and a manifold's constraints.

    Dense: O(m³) time and O(m²) memory for y of m entries, for up to a few hundred. Finds a local minimum;
    f, g and h must be twice differentiable within the bounds, and need not be defined beyond. The start need
    not be feasible. All items of a batch are iterated together, each until it is done. Inside in float64,
    unless the node holds tensors of its own in another dtype. Constraints that are active at the solution
    hold to rounding there, bounds exactly.

    Args:
        max_iterations: steps allowed, those of the polish not counted.
        tolerance: largest relative residual of the conditions of optimality (see `constrained`) that
            counts as a solution; None for 1e-9, and 1e-5 where it is iterated in float32. Polished
            solutions are good to rounding.
        max_time: seconds for one call, the whole batch; None for no limit. Looked at between steps.

    Status per item: CONVERGED; MAX_ITERATIONS; TIME_LIMIT; STALLED, where no step helps; INFEASIBLE, where
    constraints contradict each other, near y at least; UNBOUNDED; NON_FINITE, where a function or a
    derivative is so at the start.
    """

    name = "interior_point"
    takes_inequalities = True
    keeps_items_apart = True

    tolerance: float | None = number(None)

    def solve(self, problem: Problem, start: Tensor | None = None) -> Solution:
        """Solve every item from ``start``; one close to a solution is polished before all else."""
        deadline = Deadline(self.max_time)
        y = (problem.start() if start is None else start).detach()
        if not len(y):
            empty = torch.zeros(0, dtype=torch.long, device=y.device)
            return Solution(y.clone(), empty, empty, self.name)
        warm = start is not None
        if y.dtype == torch.float64:
            return self._solve(problem, y, warm, deadline)
        try:
            found = self._solve(problem.in_float64(), y.double(), warm, deadline)
        except RuntimeError:
            # A node's own tensors may keep it to their dtype; another error comes again.
            return self._solve(problem, y, warm, deadline)
        nu, lam = found.multipliers or (y, y)
        return replace(found, y=found.y.to(y.dtype), multipliers=(nu.to(y.dtype), lam.to(y.dtype)))

    def _solve(self, problem: Problem, y: Tensor, warm: bool, deadline: Deadline) -> Solution:
        with torch.no_grad():
            run = _Run(problem, y, self.tolerance, self.max_iterations, deadline)
            if warm:
                run.polish_start()
            run.iterate()
            run.iterate_in_other_units()
            status = run.verdict()
        multipliers = run.state.multipliers
        every = (multipliers.nu, run.program.rows_of_multipliers(multipliers))
        y = run.program.shaped(run.state.y).reshape(y.shape)
        return Solution(y, status, run.state.iterations, self.name, multipliers=every)


@dataclass
class _State:
    """Where each item is; all tensors have the batch dimension first.

    Attributes:
        y, s, multipliers: the iterate.
        status, iterations: of each item; `_READY` for one that waits for a polish.
        error: the relative residual, and recent: that of the last points, (B, _RECENT).
        careful: which items go by the merit function; tau: their τ; entry: their error when they began.
        rests: how many steps in a row found no length.
        far: beyond which size of y it is asked whether f falls without bound.
        best: the least error so far, and since: for how many steps it has not fallen by a tenth.
        doomed: for how many steps in a row the multipliers have told that nothing is feasible.
    """

    y: Tensor
    s: Tensor
    nu: Tensor
    lam: Tensor
    lower: Tensor
    upper: Tensor
    status: Tensor
    iterations: Tensor
    error: Tensor
    recent: Tensor
    careful: Tensor
    tau: Tensor
    entry: Tensor
    rests: Tensor
    doomed: Tensor
    penalty: Tensor
    far: Tensor
    best: Tensor
    since: Tensor

    @property
    def multipliers(self) -> Multipliers:
        return Multipliers(self.nu, self.lam, self.lower, self.upper)

    def of(self, items: Tensor) -> _State:
        return _State(**{f.name: getattr(self, f.name)[items] for f in fields(self)})

    def put(self, items: Tensor, part: _State) -> None:
        for f in fields(self):
            value = getattr(self, f.name).clone()
            value[items] = getattr(part, f.name)
            setattr(self, f.name, value)


class _Run:
    """One call of `InteriorPoint.solve`."""

    def __init__(
        self, problem: Problem, y: Tensor, tolerance: float | None, limit: int, deadline: Deadline
    ) -> None:
        self.deadline = deadline
        self.limit = limit
        self.eps = torch.finfo(y.dtype).eps
        double = y.dtype == torch.float64
        self.tolerance = (1e-9 if double else 1e-5) if tolerance is None else tolerance
        #: at which errors a polish is tried
        self.stops = (self.eps**0.45, self.eps**0.75, self.eps**0.9)
        program = Program(problem, y)
        unit = units_of(program, flat(y))
        self.program, self.start = program.in_units(unit), flat(y) / unit
        self.state = self._first_state(self.program, self.start)
        self.start_slope = norm(self.program.at(into_bounds(self.program, self.start)).gradient)

    # -- the start ------------------------------------------------------------------------------

    def _first_state(self, program: Program, start: Tensor) -> _State:
        y = into_bounds(program, start)
        point = program.at(y)
        batch = len(y)
        zero, no = y.new_zeros(batch), torch.zeros(batch, dtype=torch.bool, device=y.device)
        count = torch.zeros(batch, dtype=torch.long, device=y.device)
        # How much f, and each of g, changes over a unit.
        none = Multipliers(torch.zeros_like(point.h), torch.zeros_like(point.g), y * 0, y * 0)
        # A start may be the least of f, or all but, where the gradient is no measure of f.
        of_f = (
            point.gradient.abs()
            .sum(dim=1)
            .maximum(_PART_OF_CURVATURE * program.hessian(y, none).abs().sum(dim=(1, 2)))
        )
        of_f = torch.where(of_f > 0, of_f, 1.0).unsqueeze(1)
        of_g = point.G.abs().sum(dim=2).clamp_min(torch.finfo(y.dtype).tiny ** 0.5)
        s = torch.maximum(-point.g, 0.1 * of_g)
        rows = max(program.k + 2 * y.shape[1] * int(program.bounded), 1)
        tau = of_f / rows
        lower, upper = _rooms(program, y)
        slope = point.gradient + apply(point.G.mT, tau / s)
        state = _State(
            y=y,
            s=s,
            nu=least_squares_multipliers(point.A, slope),
            lam=tau / s,
            lower=tau / lower,
            upper=tau / upper,
            status=torch.full_like(count, _RUNNING),
            iterations=count,
            error=zero + torch.inf,
            recent=y.new_full((batch, _RECENT), torch.inf),
            careful=no,
            tau=zero,
            entry=zero + torch.inf,
            rests=count,
            doomed=count,
            penalty=zero,
            far=_FAR * size_of(y),
            best=zero + torch.inf,
            since=count,
        )
        bad = ~point.finite | ~start.isfinite().all(dim=1)
        state.status = torch.where(bad, int(Status.NON_FINITE), state.status)
        nothing = program.contradictory & ~bad
        state.status = torch.where(nothing, int(Status.INFEASIBLE), state.status)
        state.y = state.y.masked_fill(bad.unsqueeze(1), torch.nan)
        return state

    def polish_start(self) -> None:
        """Take those items for solved that are, once polished with what is active at the start."""
        program, state = self.program, self.state
        y = program.within(self.start)
        point = program.at(y)
        held = held_near(program, point, self.eps**0.4)
        found = polish(program, point, multipliers_of(program, point, held), held, state.error)
        H = program.hessian(found.y, found.multipliers)
        held = held_at(program, program.at(found.y), found.multipliers, H)
        solved = (found.error <= self.eps**0.8) & (state.status == _RUNNING)
        solved = solved & is_minimum(program, found.y, H, held)
        self._take(solved, found.y, found.multipliers, found.error)

    def _take(self, items: Tensor, y: Tensor, multipliers: Multipliers, error: Tensor) -> None:
        state, column = self.state, items.unsqueeze(1)
        state.y = torch.where(column, y, state.y)
        for name, value in vars(multipliers).items():
            setattr(state, name, torch.where(column, value, getattr(state, name)))
        state.error = torch.where(items, error, state.error)
        state.status = torch.where(items, int(Status.CONVERGED), state.status)

    # -- the iteration --------------------------------------------------------------------------

    def iterate(self) -> None:
        """Until each item is solved, or has ended otherwise."""
        for turn, stop in enumerate(self.stops):
            self._iterate_to(stop)
            waiting = (self.state.status == _READY).nonzero()[:, 0]
            if len(waiting):
                self._polish(waiting, turn == len(self.stops) - 1)
            self._restore(turn == len(self.stops) - 1)

    def iterate_in_other_units(self) -> None:
        """Again from where they got stuck, those items whose y has far outgrown its units, or is far below.

        Relative residuals then say little: a bound counts as held, or the barrier as down, too soon.
        """
        state = self.state
        size = norm(state.y) / state.y.shape[1] ** 0.5
        stuck = (state.status == int(Status.STALLED)) & (size < torch.inf)
        items = (stuck & ((size > _OUTGROWN) | (size < 1 / _OUTGROWN))).nonzero()[:, 0]
        if not len(items) or self.deadline.passed:
            return
        program, part = self.program.of(items), state.of(items)
        y = program.shaped(part.y)
        other = _Run(program.problem, y, self.tolerance, self.limit, self.deadline)
        other.state.iterations = part.iterations
        other.iterate()
        found, ratio = other.state, other.program.unit / program.unit
        found.y, found.lower, found.upper = (
            found.y * ratio,
            found.lower / ratio,
            found.upper / ratio,
        )
        solved = (found.status == int(Status.CONVERGED)).nonzero()[:, 0]
        state.put(items[solved], found.of(solved))

    def _polish(self, items: Tensor, last: bool) -> None:
        program, part = self.program.of(items), self.state.of(items)
        start = self.start[items]
        point = program.at(part.y)
        H = program.hessian(part.y, part.multipliers)
        held = held_at(program, point, part.multipliers, H)
        error = program.error(point, part.multipliers, H)
        found = polish(program, point, part.multipliers, held, error)
        sound = found.error <= self.eps**0.8
        if not bool(sound.all()):
            held = held_by_ratio(program, point, part.multipliers)
            other = polish(program, point, part.multipliers, held, found.error)
            # Of two that are none, neither is better: where constraints touch, a small error says little.
            better = (other.error < found.error) & (other.error <= self.eps**0.8)
            found = chosen(better, other, found)
            sound = found.error <= self.eps**0.8
        # Residuals beside a y or multipliers without bounds are small whatever they are.
        far = norm(found.y) > size_of(start) / self.eps**0.6
        pull = torch.cat(
            [found.multipliers.nu * norm(point.A), found.multipliers.lam * norm(point.G)], dim=1
        )
        slope = torch.maximum(norm(program.at(found.y).gradient), self.start_slope[items])
        absurd = far | ((norm(pull) > slope / self.eps**0.6) & (slope > 0))
        solved = (sound | ((found.error <= self.tolerance) & last)) & ~absurd
        left = torch.where(found.error < error, found.error, error)
        part.y = torch.where((solved | last).unsqueeze(1), found.y, part.y)
        for name, value in vars(found.multipliers).items():
            old = getattr(part, name)
            setattr(part, name, torch.where((solved | last).unsqueeze(1), value, old))
        part.error = torch.where(solved | last, left, part.error)
        ended = part.iterations >= self.limit
        otherwise = int(Status.STALLED) if last else _RUNNING
        part.status = torch.where(solved, int(Status.CONVERGED), otherwise)
        # A curvature that is nothing but rounding has its minimum there.
        way = part.y - start
        bend = (way * apply(H, way)).sum(dim=1).abs() / way.square().sum(dim=1)
        gone = norm(part.y) > size_of(start) / self.eps**0.6
        gone = gone & (bend <= self.eps**0.75 * norm(H.flatten(1)))
        part.status = torch.where(gone, int(Status.UNBOUNDED), part.status)
        suspected = absurd & ~gone
        part.status = torch.where(suspected, int(Status.INFEASIBLE), part.status)
        part.doomed = torch.where(suspected, 1, part.doomed)
        part.status = torch.where(~solved & ended, int(Status.MAX_ITERATIONS), part.status)
        if not last:
            self._leave_saddles(items, program, part)
        self.state.put(items, part)

    def _leave_saddles(self, items: Tensor, program: Program, part: _State) -> None:
        """Start anew beside a solved item's point where the curvature along its constraints is negative."""
        H = program.hessian(part.y, part.multipliers)
        held = held_at(program, program.at(part.y), part.multipliers, H)
        lowest, way = lowest_curvature(program, part.y, H, held)
        solved = part.status == int(Status.CONVERGED)
        saddles = (solved & (lowest < -(self.eps**0.5) * norm(H.flatten(1)))).nonzero()[:, 0]
        if not len(saddles):
            return
        part_of = program.of(saddles)
        y, step = part.y[saddles], _ESCAPE * size_of(part.y[saddles]).unsqueeze(1) * way[saddles]
        ends = torch.stack([part_of.within(y + step), part_of.within(y - step)])
        values = torch.stack([part_of.at(end).value for end in ends])
        y = torch.where((values[0] <= values[1]).unsqueeze(1), ends[0], ends[1])
        fresh = self._first_state(part_of, y)
        fresh.iterations = part.iterations[saddles]
        part.put(saddles, fresh)

    def _restore(self, last: bool) -> None:
        """Start anew where the constraints hold, those items that got stuck where they do not, or whose
        multipliers tell that they cannot; `INFEASIBLE` for those that find no such point."""
        state = self.state
        state.since = torch.zeros_like(state.since)
        told = (state.status == int(Status.INFEASIBLE)) & (state.doomed > 0)
        stuck = (state.status == _RUNNING) & (state.error > self.eps**0.4)
        asked = (told | stuck).nonzero()[:, 0]
        if not len(asked):
            return
        program, part = self.program.of(asked), state.of(asked)
        off = violation(program, program.at(part.y)) > self.eps**0.5
        far = norm(part.y) > size_of(self.start[asked]) / self.eps**0.6
        near = torch.where(far.unsqueeze(1), self.start[asked], part.y).nan_to_num(nan=0.0)
        nearest, hopeless = least_violation(program.problem, program.shaped(near), self.deadline)
        y = program.within(flat(nearest) / program.unit)
        still_off = violation(program, program.at(y)) > self.eps**0.5
        nothing = still_off & (hopeless | told[asked])
        fresh = self._first_state(program, y)
        fresh.iterations = part.iterations
        fresh.status = torch.where(nothing, int(Status.INFEASIBLE), fresh.status)
        # From far away there is nothing to gain by another start.
        over = ~nothing & (far | last)
        fresh.status = torch.where(over, int(Status.STALLED), fresh.status)
        fresh.y = torch.where(over.unsqueeze(1), part.y, fresh.y)
        fresh.y = torch.where(nothing.unsqueeze(1), y, fresh.y)
        changed = (off | told[asked]).nonzero()[:, 0]
        state.put(asked[changed], fresh.of(changed))

    def _iterate_to(self, stop: float) -> None:
        everything = self.state
        items = (everything.status == _RUNNING).nonzero()[:, 0]
        if not len(items):
            return
        program, state = self.program.of(items), everything.of(items)
        point = program.at(state.y)
        while True:
            point = _advance(program, state, point, stop, self.eps)
            self._ask_far_ones(items, program, state)
            running = state.status == _RUNNING
            over = running & (state.iterations >= self.limit)
            # Whatever it is short of, a polish may make up for it.
            state.status = torch.where(over, _READY, state.status)
            running = state.status == _RUNNING
            left = running.nonzero()[:, 0]
            late = self.deadline.passed
            if late:
                state.status = torch.where(running, int(Status.TIME_LIMIT), state.status)
            if late or not len(left):
                everything.put(items, state)
                return
            if 4 * len(left) <= 3 * len(items):
                everything.put(items, state)
                items, program, state = items[left], program.of(left), state.of(left)
                point = Point(**{name: value[left] for name, value in vars(point).items()})

    def _ask_far_ones(self, items: Tensor, program: Program, state: _State) -> None:
        going = (state.status == _RUNNING) | (state.status == _READY)
        far = (going & (norm(state.y) > state.far)).nonzero()[:, 0]
        if len(far):
            y, start = state.y[far], self.start[items[far]]
            unbounded = falls_without_bound(program.of(far), y, start)
            state.status[far] = torch.where(unbounded, int(Status.UNBOUNDED), state.status[far])
            state.far = torch.where(norm(state.y) > state.far, _FARTHER * state.far, state.far)

    # -- the end --------------------------------------------------------------------------------

    def verdict(self) -> Tensor:
        """The status of each item, (B,), with what stopped those that have no solution."""
        state = self.state
        status = state.status
        doubtful = (status == int(Status.STALLED)) | (status == int(Status.MAX_ITERATIONS))
        items = doubtful.nonzero()[:, 0]
        if len(items):
            part, program = state.of(items), self.program.of(items)
            shaped = program.shaped(part.y)
            unbounded = falls_without_bound(program, part.y, self.start[items])
            nearest, hopeless = least_violation(program.problem, shaped, self.deadline)
            told = ~hopeless & unbounded
            part.status = torch.where(told, int(Status.UNBOUNDED), part.status)
            none = hopeless & ~told
            part.status = torch.where(none, int(Status.INFEASIBLE), part.status)
            part.y = torch.where(none.unsqueeze(1), flat(nearest) / program.unit, part.y)
            state.put(items, part)
        return state.status


def _advance(program: Program, state: _State, point: Point, stop: float, eps: float) -> Point:
    """One step of each item that runs, in ``state``; the point it leads to."""
    y, s, lam = state.y, state.s, state.lam
    H = program.hessian(y, state.multipliers)
    lower, upper = _rooms(program, y)
    has_lower, has_upper = lower < torch.inf, upper < torch.inf
    running = state.status == _RUNNING
    slope = program.slope(point, state.multipliers)
    gap = point.g + s
    count = (program.k + has_lower.sum(dim=1) + has_upper.sum(dim=1)).clamp_min(1)

    def mean(s: Tensor, lam: Tensor, zl: Tensor, zu: Tensor, lo: Tensor, up: Tensor) -> Tensor:
        both = torch.where(has_lower, lo * zl, 0.0) + torch.where(has_upper, up * zu, 0.0)
        return ((s * lam).sum(dim=1) + both.sum(dim=1)) / count

    tau = mean(s, lam, state.lower, state.upper, lower, upper)
    scales = _Scales(program, point, state.multipliers, H, s)
    error = scales.error(slope, point.h, gap, tau)
    state.error = torch.where(running, error, state.error)
    state.recent = torch.cat([error.unsqueeze(1), state.recent[:, :-1]], dim=1)
    better = error < 0.9 * state.best
    state.best = torch.where(better, error, state.best)
    state.since = torch.where(better, 0, state.since + 1)
    done = (error <= stop) | (state.since > _PATIENCE)
    state.status = torch.where(running & done, _READY, state.status)

    # How the multipliers are taken for weights, see the text above.
    weighted = (lam * point.g).sum(dim=1) - (state.nu * point.h).sum(dim=1)
    weighted = weighted - mean(s * 0, lam, state.lower, state.upper, lower, upper) * count
    pulled = norm((slope - point.gradient).masked_fill(program.fixed, 0.0))
    size = size_of(y)
    certified = (weighted > 0) & (pulled * size * _FAR <= weighted)
    state.doomed = torch.where(certified, state.doomed + 1, 0)
    running = state.status == _RUNNING
    state.status = torch.where(running & (state.doomed >= 2), int(Status.INFEASIBLE), state.status)
    running = state.status == _RUNNING
    if not bool(running.any()):
        return point

    weights = lam / s
    of_lower, of_upper = state.lower / lower, state.upper / upper
    K = H + point.G.mT @ (weights.unsqueeze(2) * point.G)
    diagonal = torch.where(program.fixed, norm(K.flatten(1)).clamp_min(1e-30).unsqueeze(1), 0.0)
    free = ~program.fixed
    K = torch.where(free.unsqueeze(1) & free.unsqueeze(2), K, 0.0)
    K = K + torch.diag_embed(of_lower + of_upper + diagonal)
    system = System(K, point.A * free.unsqueeze(1))
    bent = system.added > eps**0.7
    state.tau = torch.where(bent & ~state.careful, tau, state.tau)
    state.entry = torch.where(bent & ~state.careful, error, state.entry)
    state.careful = state.careful | bent

    def direction(rest: Tensor, of_l: Tensor, of_u: Tensor) -> _Direction:
        """For the products sλ less what they are to be, (B, k) and (B, m) twice."""
        right = -slope - apply(point.G.mT, (lam * gap - rest) / s) - of_l / lower + of_u / upper
        right = torch.where(free, right, 0.0)
        dy, dnu = system.solve(right, -point.h)
        dy = torch.where(free, dy, 0.0)
        ds = -gap - apply(point.G, dy)
        return _Direction(
            dy, ds, dnu, -(rest + lam * ds) / s,
            torch.where(has_lower, -(of_l + state.lower * dy) / lower, 0.0),
            torch.where(has_upper, (-of_u + state.upper * dy) / upper, 0.0),
        )  # fmt: skip

    products = [s * lam]
    products += [torch.where(has_lower, lower * state.lower, 0.0)]
    products += [torch.where(has_upper, upper * state.upper, 0.0)]
    first = direction(*products)
    reach = _reach(state, first, lower, upper, 1.0)
    long = reach.unsqueeze(1)
    ahead = mean(
        s + long * first.s, lam + long * first.lam,
        state.lower + long * first.lower, state.upper + long * first.upper,
        lower + long * first.y, upper - long * first.y,
    )  # fmt: skip
    part = torch.where(tau > 0, (ahead / tau).clamp(0, 1), 0.0) ** 3
    target = torch.where(state.careful, state.tau, part * tau).unsqueeze(1)
    second = [first.s * first.lam, first.y * first.lower, -first.y * first.upper]
    bold = (~state.careful).unsqueeze(1)
    # Of a first step that goes nowhere, the second-order term says nothing.
    trusted = (_TRUSTED * long).clamp_max(1)
    rests = [
        product + torch.where(bold, trusted * more, 0.0) - torch.where(there, target, 0.0)
        for product, more, there in zip(
            products, second, (s > 0, has_lower, has_upper), strict=True
        )
    ]
    step = direction(*rests)
    reach = _reach(state, step, lower, upper, _TO_BOUNDARY)
    point = _search(program, state, point, step, reach, scales, gap, target[:, 0], running, mean)

    # A careful item goes on boldly once its error is down, or has a smaller τ once it has solved for this.
    calm = state.careful & (state.error < 0.9 * state.entry) & ~bent
    state.careful = state.careful & ~calm
    off = [(r.abs()).amax(dim=1) if r.shape[1] else r.new_zeros(len(r)) for r in rests]
    centred = torch.stack(off).amax(dim=0) <= 10 * state.tau
    state.tau = torch.where(state.careful & centred, state.tau * 0.2, state.tau)
    return point


@dataclass(frozen=True)
class _Direction:
    y: Tensor
    s: Tensor
    nu: Tensor
    lam: Tensor
    lower: Tensor
    upper: Tensor


class _Scales:
    """What residuals are divided by, taken at one point for all that are compared there."""

    def __init__(
        self, program: Program, point: Point, multipliers: Multipliers, H: Tensor, s: Tensor
    ) -> None:
        self.slope = program.sizes_of_slope(point, multipliers, H)
        self.h = program.sizes_of_rows(point.A, point.y)
        self.g = program.sizes_of_rows(point.G, point.y)
        # Of the change of f over the size of y.
        self.value = self.slope * norm(point.y).clamp_min(1)
        self.of_h = norm(point.A).clamp_min(torch.finfo(s.dtype).tiny ** 0.5)
        self.of_g = norm(point.G).clamp_min(torch.finfo(s.dtype).tiny ** 0.5)

    def error(self, slope: Tensor, h: Tensor, gap: Tensor, tau: Tensor) -> Tensor:
        parts = [norm(slope) / self.slope, tau / self.value]
        parts += [
            (r.abs() / of).amax(dim=1) for r, of in ((h, self.h), (gap, self.g)) if r.shape[1]
        ]
        return torch.stack(parts).amax(dim=0).nan_to_num(nan=torch.inf)

    def violation(self, h: Tensor, gap: Tensor) -> Tensor:
        return (h.abs() / self.of_h).sum(dim=1) + (gap.abs() / self.of_g).sum(dim=1)


def _search(
    program: Program,
    state: _State,
    point: Point,
    step: _Direction,
    reach: Tensor,
    scales: _Scales,
    gap: Tensor,
    target: Tensor,
    running: Tensor,
    mean: Callable[..., Tensor],
) -> Point:
    """Go along the step in ``state`` as far as it helps, and count the step; the point there."""
    lower, upper = _rooms(program, state.y)
    before = scales.violation(point.h, gap)
    ratios = torch.where(lower < torch.inf, step.y / lower, 0.0)
    ratios = ratios - torch.where(upper < torch.inf, step.y / upper, 0.0)
    fall = (point.gradient * step.y).sum(dim=1)
    fall = fall - target * ((step.s / state.s).sum(dim=1) + ratios.sum(dim=1))
    needed = torch.where((before > 0) & (fall > 0), 2 * fall / before, 0.0)
    # The least ρ by which the multipliers of the step hold the constraints.
    of_rows = [
        ((state.nu + step.nu).abs() * scales.of_h),
        ((state.lam + step.lam).abs() * scales.of_g),
    ]
    weights = torch.cat(of_rows, dim=1)
    if weights.shape[1]:
        needed = torch.maximum(needed, 1.1 * weights.amax(dim=1) * (before > 0))
    state.penalty = torch.maximum(state.penalty, torch.where(state.careful, needed, 0.0))
    fall = fall - state.penalty * before

    def merit(value: Tensor, y: Tensor, s: Tensor, h: Tensor, gap: Tensor) -> Tensor:
        low, up = _rooms(program, y)
        logs = torch.where(low < torch.inf, low.log(), 0.0) + torch.where(
            up < torch.inf, up.log(), 0.0
        )
        logs = s.log().sum(dim=1) + logs.sum(dim=1)
        return value - target * logs + state.penalty * scales.violation(h, gap)

    here = merit(point.value, state.y, state.s, point.h, gap)
    noise = 16 * torch.finfo(here.dtype).eps * (here.abs() + point.value.abs())
    limit = state.recent.amax(dim=1)
    length, accepted = reach.clone(), ~running
    found, best = state, point
    for trial in range(_TRIALS):
        long = length.unsqueeze(1)
        y = _strictly_within(program, state.y, long * step.y)
        s = state.s + long * step.s
        moved = [
            getattr(state, n) + long * getattr(step, n) for n in ("nu", "lam", "lower", "upper")
        ]
        multipliers = Multipliers(*moved)
        there = program.at(y)
        tau = mean(s, multipliers.lam, multipliers.lower, multipliers.upper, *_rooms(program, y))
        error = scales.error(program.slope(there, multipliers), there.h, there.g + s, tau)
        good = ~state.careful & (error <= limit)
        good = good | (state.careful & (error <= 0.5 * state.error))
        value = merit(there.value, y, s, there.h, there.g + s)
        down = (fall < 0) & (value <= here + _ARMIJO * length * fall + noise)
        good = (good | down) & there.finite & y.isfinite().all(dim=1)
        new = good & ~accepted
        names = ("y", "s", "nu", "lam", "lower", "upper")
        values = (y, s, *moved)
        chosen = {
            n: torch.where(new.unsqueeze(1), v, getattr(found, n))
            for n, v in zip(names, values, strict=True)
        }
        found = replace(found, **chosen)
        best = Point(
            **{
                n: torch.where(new.reshape(-1, *[1] * (v.ndim - 1)), v, getattr(best, n))
                for n, v in vars(there).items()
            }
        )
        accepted = accepted | new
        given_up = ~accepted & ~state.careful & (trial + 1 >= _TRIALS_WHOLE)
        pending = ~accepted & ~given_up
        if not bool(pending.any()):
            break
        length = torch.where(pending, length / 2, length)
    rested = running & ~accepted
    for name in ("y", "s", "nu", "lam", "lower", "upper"):
        setattr(state, name, getattr(found, name))
    state.iterations = state.iterations + running.long()
    begins = rested & ~state.careful
    average = mean(state.s, state.lam, state.lower, state.upper, *_rooms(program, state.y))
    state.tau = torch.where(begins, average, state.tau)
    state.entry = torch.where(begins, state.error, state.entry)
    fails = rested & state.careful
    state.careful = state.careful | begins
    state.rests = torch.where(fails, state.rests + 1, torch.where(running, 0, state.rests))
    # Nearer to the middle once more, then it is over: a polish may still find what is near.
    state.tau = torch.where(fails, 10 * state.tau, state.tau)
    state.status = torch.where(fails & (state.rests >= 3), _READY, state.status)
    return best


def _rooms(program: Program, y: Tensor) -> tuple[Tensor, Tensor]:
    """The distances of y (B, m) from its bounds, infinite where there is none, or it is fixed."""
    lower = (y - program.lower).masked_fill(program.fixed, torch.inf)
    return lower, (program.upper - y).masked_fill(program.fixed, torch.inf)


def _reach(state: _State, step: _Direction, lower: Tensor, upper: Tensor, part: float) -> Tensor:
    """How much of the step keeps all that must be positive so, (B,), at most 1."""
    tiny = torch.finfo(state.y.dtype).tiny
    longest = (_LONGEST_STEP * size_of(state.y) / norm(step.y).clamp_min(tiny)).clamp_max(1)
    for here, change in (
        (state.s, step.s), (state.lam, step.lam), (lower, step.y), (upper, -step.y),
        (state.lower, step.lower), (state.upper, step.upper),
    ):  # fmt: skip
        if here.shape[1]:
            ratio = torch.where((change < 0) & (here < torch.inf), -here / change, torch.inf)
            longest = torch.minimum(longest, part * ratio.amin(dim=1))
    return longest


def _strictly_within(program: Program, y: Tensor, change: Tensor) -> Tensor:
    """y + change, and off a bound that rounding put it on, or beyond."""
    moved = y + change
    below = (moved <= program.lower) & ~program.fixed
    above = (moved >= program.upper) & ~program.fixed
    return torch.where(below | above, y, moved)
