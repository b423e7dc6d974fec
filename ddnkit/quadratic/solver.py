"""Solving a batch of quadratic programs, to rounding, with the factors that its derivative is computed by.

First by pivoting. Items that this does not solve (Q only semidefinite, rows that depend on each other) go
through an interior point, which tells which rows hold; these then hold as equations, and are changed where
that was wrong, a few times. An item counts as solved only where its conditions of optimality hold to
rounding; what is not solved is left to others, with the point that was reached.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..solution import SETTLED, Solution, Status
from .interior_point import find_near
from .pivoting import LEAST_PIVOT, pivot
from .program import (
    ActiveRows,
    Factors,
    Figures,
    QuadraticProgram,
    RowFactors,
    figures_at,
    is_clear,
    times,
)

_ROUNDS = 8
#: An entry's residual beside its own terms may be so many roundings.
_UNEVEN = 1e4


@dataclass
class Solved:
    """What was found for each item of a batch.

    Attributes:
        y: (B, n). w: multipliers of the rows, (B, r). rows: which hold.
        factors: of the system at the solution.
        figures: at y, in the precision in which it was solved.
        done: which items are solved to rounding, (B,). Of others y is near the solution, or NaN.
        rounds: how many systems were solved for each item, (B,).
        curvature: below 0 for items with inequalities that are not convex, which are not solved; (B,), None
            where each is known to be convex.
    """

    y: Tensor
    w: Tensor
    rows: ActiveRows
    factors: Factors
    figures: Figures
    done: Tensor
    rounds: Tensor
    curvature: Tensor | None = None

    def of(self, items: Tensor) -> Solved:
        """Those of some items, indices."""
        return Solved(
            self.y[items], self.w[items], self.rows.of(items), self.factors.of(items),
            self.figures.of(items), self.done[items], self.rounds[items],
            None if self.curvature is None else self.curvature[items],
        )  # fmt: skip

    def solution(self, program: QuadraticProgram, dtype: torch.dtype) -> Solution:
        """What a solver returns of it: "unknown" of items that are not done, whose y may be near."""
        status = torch.where(self.done, int(Status.CONVERGED), int(Status.UNKNOWN))
        nu, lam, lower, upper = program.multipliers(self.w, self.rows)
        # `Problem.inequalities` has both bounds, infinite where there are none.
        ends = [torch.zeros_like(self.y) if x is None else x for x in (lower, upper)]
        multipliers = (nu.to(dtype), torch.cat([lam, *ends], dim=1).to(dtype))
        uniqueness = self.curvature
        if uniqueness is not None:
            uniqueness = torch.where(uniqueness < 0, uniqueness, torch.inf).to(dtype)
        return Solution(
            self.y.to(dtype), status, self.rounds.clone(), "block_pivoting",
            multipliers=multipliers, uniqueness=uniqueness,
        )  # fmt: skip


def solve(program: QuadraticProgram, start: Tensor | None = None) -> Solved:
    """Solve every item, from the rows that hold at ``start`` (B, n) if it is given."""
    rows = None if start is None else _rows_at(program, start)
    found = pivot(program, rows)
    y, w = _refined(program, found.y, found.w, found.rows, found.factors)
    figures = figures_at(program, y, w, found.rows)
    done = found.done & is_settled(figures, y.dtype) & ~_wrong(program, w, found.rows).any(dim=1)
    solved = Solved(y, w, found.rows, found.factors, figures, done, found.rounds)
    if not bool(done.all()):
        _solve_rest(program, solved, (~done).nonzero()[:, 0])
    return solved


def is_settled(figures: Figures, dtype: torch.dtype) -> Tensor:
    """Whether conditions of optimality hold to rounding in this precision, (B,)."""
    eps = torch.finfo(dtype).eps
    settled = torch.maximum(figures.stationarity, figures.feasibility) <= SETTLED * eps
    return settled & (figures.uneven <= _UNEVEN * eps)


def _wrong(program: QuadraticProgram, w: Tensor, rows: ActiveRows) -> Tensor:
    """The rows that hold whose multipliers have the wrong sign, beyond rounding, (B, r)."""
    signed = w if rows.down is None else torch.where(rows.down, -w, w)
    # In units in which each row has length 1: of a short row the multiplier is large.
    signed = signed * torch.linalg.vector_norm(program.C, dim=2)
    largest = torch.linalg.vector_norm(signed, dim=1, keepdim=True)
    wrong = rows.held & (signed < -8 * torch.finfo(w.dtype).eps * largest)
    return wrong if program.fixed is None else wrong & ~program.fixed


def _rows_at(program: QuadraticProgram, y: Tensor) -> ActiveRows:
    """Those that hold at y, or are violated there."""
    value = times(program.C, y)
    size = times(program.C.abs(), y.abs())
    edge = torch.finfo(y.dtype).eps ** 0.5 * (size + program.high.abs())
    held = value >= program.high - edge
    held = held & (program.high < torch.inf)
    if program.low is None:
        return ActiveRows(held, None)
    down = value <= program.low + torch.finfo(y.dtype).eps ** 0.5 * (size + program.low.abs())
    down = down & (program.low > -torch.inf) & ~held
    return ActiveRows(held | down, down)


def _refined(
    program: QuadraticProgram, y: Tensor, w: Tensor, rows: ActiveRows, factors: Factors
) -> tuple[Tensor, Tensor]:
    """y and w after one step of refinement, bounds that hold being met exactly."""
    target = program.target(rows.down)
    short = torch.where(rows.held, target - times(program.C, y), 0.0)
    dy, dw = factors.solve(program.C, -program.slope(y, w), short)
    y, w = y + dy, w + dw
    if program.sign:
        first = program.first_bound
        bound = program.sign * target[:, first:]
        y = torch.where(rows.held[:, first:], bound, y)
    return y, w


def _solve_rest(program: QuadraticProgram, solved: Solved, items: Tensor) -> None:
    """The same for these items, in ``solved``, by an interior point."""
    part = program.of(items)
    p, r = part.equations, part.C.shape[1]
    if r > p:
        # A minimum need not be the least one there.
        curvature = torch.zeros_like(solved.figures.stationarity)
        curvature[items] = _curvature_of(part)
        if bool((curvature < 0).any()):
            solved.curvature = curvature
            items = items[curvature[items] == 0]
            if not len(items):
                return
            part = program.of(items)
    near = find_near(part)
    holds = near.multiplier > near.slack
    held = torch.ones(len(items), r, dtype=torch.bool, device=items.device)
    down = None if part.low is None else torch.zeros_like(held)
    held[:, p:] = holds[:, : r - p]
    if down is not None:
        down[:, p:] = holds[:, r - p :] & ~holds[:, : r - p]
        held = held | down
    if part.fixed is not None:
        held = held | part.fixed
    # How clear it is that a row holds.
    ratio = near.multiplier / near.slack
    ratio = ratio[:, : r - p] if down is None else torch.maximum(*ratio.split(r - p, dim=1))
    sure = torch.full_like(program.high[items], torch.inf)
    sure[:, p:] = ratio
    solved.y[items] = torch.where(near.found.unsqueeze(1), near.y, torch.nan)
    solved.rounds[items] += near.steps
    _separate(solved, len(program.q))
    for _ in range(_ROUNDS):
        rows = ActiveRows(held, down)
        factors, clear = _factors_of(part, rows)
        target = part.target(down)
        gap = torch.where(held, target, 0.0)
        y, w = factors.solve(part.C, -part.q, gap)
        y, w = _refined(part, y, w, rows, factors)
        y, w = _refined(part, y, w, rows, factors)
        figures = figures_at(part, y, w, rows)
        wrong = _wrong(part, w, rows)
        done = clear & is_settled(figures, y.dtype) & ~wrong.any(dim=1)
        _put(solved, items, done, y, w, rows, factors, figures)
        left = (~done).nonzero()[:, 0]
        solved.rounds[items] += 1
        if not len(left):
            return
        items, part, sure = items[left], part.of(left), sure[left]
        y, w, held, wrong, clear = y[left], w[left], held[left], wrong[left], clear[left]
        value = times(part.C, y)
        size = 1e-9 * times(part.C.abs(), y.abs())
        above = ~held & (value > part.high + size)
        # Of rows that depend on each other, as where one too many seems to hold, nothing else is to be told.
        least = _least_sure(part, held, sure)
        some = clear | ~least.any(dim=1)
        wrong = torch.where(some.unsqueeze(1), wrong, least)
        above = above & some.unsqueeze(1)
        # If it comes back, another one leaves.
        sure = torch.where(least & ~some.unsqueeze(1), torch.inf, sure)
        held = (held & ~wrong) | above
        if down is not None:
            assert part.low is not None
            below = ~held & (value < part.low - size) & some.unsqueeze(1)
            down = (down[left] & held) | below
            held = held | below


def _least_sure(program: QuadraticProgram, held: Tensor, sure: Tensor) -> Tensor:
    """The row of each item that holds least surely, besides those that always do, (B, r)."""
    free = held if program.fixed is None else held & ~program.fixed
    if not held.shape[1]:
        return held
    among = torch.where(free, sure, torch.inf)
    # One of those that are alike, as a row that is stated twice.
    place = torch.arange(among.shape[1], device=among.device)
    return free & (among < torch.inf) & (place == among.argmin(dim=1, keepdim=True))


def _curvature_of(program: QuadraticProgram) -> Tensor:
    """As `QuadraticProgram.negative_curvature`; 0 of items that are no numbers, or overflow."""
    sound = program.Q.isfinite().all(dim=(1, 2)) & program.C.isfinite().all(dim=(1, 2))
    sound = sound.expand(len(program.q))
    found = torch.zeros_like(program.q[:, 0])
    ready = sound.nonzero()[:, 0]
    if len(ready):
        found[ready] = program.of(ready).negative_curvature().nan_to_num(0.0)
    return found


def _factors_of(program: QuadraticProgram, rows: ActiveRows) -> tuple[Factors, Tensor]:
    """Those for rows that hold, Q being made definite by them where it can be; and whether they are clear.

    For y with C_S y = t the terms ρC_SᵀC_S y and ρC_Sᵀt are the same: ρ changes w alone. It is taken back by
    refinement, whose residuals are those of the program itself.
    """
    Q, batch, n = program.Q, len(program.q), program.Q.shape[1]
    C = torch.where(rows.held.unsqueeze(2), program.C, 0.0)
    length = torch.linalg.vector_norm(C, dim=2, keepdim=True)
    C = C / torch.where(length > 0, length, 1.0)
    size = Q.diagonal(dim1=1, dim2=2).abs().amax(dim=1)
    rho = torch.where(size > 0, size, 1.0)
    whole = Q + rho.reshape(-1, 1, 1) * (C.mT @ C)
    L, info = torch.linalg.cholesky_ex(whole)
    clear = (info == 0) & is_clear(L, whole.diagonal(dim1=1, dim2=2), program.least_pivot)
    W = torch.cholesky_solve(program.C.mT.expand(batch, n, -1), L)
    factors = RowFactors(program.C @ W, rows.held)
    return Factors(L, W, factors), clear & factors.is_clear(LEAST_PIVOT)


def _separate(solved: Solved, batch: int) -> None:
    """Have factors of its own for each item."""
    factors = solved.factors
    for name in ("L", "W"):
        x = getattr(factors, name)
        setattr(
            factors,
            name,
            x.expand(batch, *x.shape[1:]).clone() if len(x) < batch else x.contiguous(),
        )


def _put(
    solved: Solved,
    items: Tensor,
    done: Tensor,
    y: Tensor,
    w: Tensor,
    rows: ActiveRows,
    factors: Factors,
    figures: Figures,
) -> None:
    ready = done.nonzero()[:, 0]
    if not len(ready):
        return
    at = items[ready]
    solved.y[at], solved.w[at], solved.done[at] = y[ready], w[ready], True
    solved.rows.held[at] = rows.held[ready]
    if rows.down is not None:
        assert solved.rows.down is not None
        solved.rows.down[at] = rows.down[ready]
    for name in ("L", "W"):
        getattr(solved.factors, name)[at] = getattr(factors, name)[ready]
    solved.factors.rows.put(at, factors.rows, ready)
    for name, value in vars(figures).items():
        getattr(solved.figures, name)[at] = value[ready]
