"""Block principal pivoting, for strictly convex quadratic programs.

With Q = LLᵀ the multipliers alone are unknown: y = −Q⁻¹(q + Cᵀw), C y = c − M w, M = C Q⁻¹Cᵀ, c = −C Q⁻¹q.
For a set S of rows that hold, M_SS w_S = c_S − t_S. Rows of S with a multiplier of the wrong sign then leave
it, and others that are violated enter, all at once; where nothing is to be changed, y is the solution, to
rounding. Mostly that takes 3 to 8 rounds, whatever the size. It may come back to a set that it had before: an
item in which the number of wrong rows has not fallen for some rounds exchanges one row at a time, the last,
until it has. What has not come to an end after 20 rounds in all is left to an interior point.

M is singular where rows depend on each other. An S whose M_SS is not definite is solved with a little added
to the diagonal, and the S that is found counts only where M_SS is definite.

Source: Júdice and Pires, *A block principal pivoting algorithm for large-scale strictly monotone linear
complementarity problems* (1994); Kim and Park, *Fast nonnegative matrix factorization* (2011), section 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .program import (
    ActiveRows,
    Factors,
    QuadraticProgram,
    RowFactors,
    cholesky_solve,
    eye,
    is_clear,
    times,
)

#: Rounds in which all items exchange all that is wrong, before each is looked at.
_FREE = 8
#: Rounds that the number of wrong rows may go without falling.
_PATIENCE = 4
#: Further rounds, after which an interior point is sooner done: mostly with more rows than unknowns.
_MOST = 12
#: Of a row's scale, what counts as violated.
_EDGE = 1e-13
#: What is added to the diagonal where M_SS is not definite, relative.
_ADDED = 1e-7
#: The least pivot, relative to the diagonal, of a matrix that counts as definite.
LEAST_PIVOT = 1e-11
#: Entries of M from which on it pays to go on with those items alone that are not done.
_LARGE = 20_000


@dataclass
class Pivoted:
    """What was found for each item.

    Attributes:
        done: whether it is the solution, (B,); the rest is meaningless where it is not.
        rounds: (B,).
    """

    y: Tensor
    w: Tensor
    rows: ActiveRows
    factors: Factors
    done: Tensor
    rounds: Tensor


def pivot(program: QuadraticProgram, start: ActiveRows | None = None) -> Pivoted:
    """Solve each item; from the set of rows ``start``, or from those that the unconstrained y violates."""
    Q, C, q = program.Q, program.C, program.q
    n, r, batch = Q.shape[1], C.shape[1], q.shape[0]
    L, info = torch.linalg.cholesky_ex(Q)
    definite = (info == 0) & is_clear(L, Q.diagonal(dim1=1, dim2=2), program.least_pivot)
    if Q.shape[0] == 1 and C.shape[0] == 1:
        W = torch.cholesky_solve(C.mT, L)
        of_q = cholesky_solve(q, L)
    else:
        both = max(Q.shape[0], C.shape[0], batch)
        right = torch.cat([q.unsqueeze(2), C.mT.expand(both, n, r)], dim=2)
        found = torch.cholesky_solve(right, L)
        of_q, W = found[:, :, 0], found[:, :, 1:]
    M, c = C @ W, -times(C, of_q)
    if not bool(definite.all()):
        M, c, start = _at_rest(program, definite, M, c, start)
    run = _Run(program, M, c, start)
    run.iterate()
    rows = ActiveRows(run.held, run.down)
    y = -(of_q + times(W, run.w))
    done = run.done & definite & run.factors.is_clear(LEAST_PIVOT) & y.isfinite().all(dim=1)
    return Pivoted(y, run.w, rows, Factors(L, W, run.factors), done, run.rounds)


def _at_rest(
    program: QuadraticProgram,
    definite: Tensor,
    M: Tensor,
    c: Tensor,
    start: ActiveRows | None,
) -> tuple[Tensor, Tensor, ActiveRows | None]:
    """M, c and start with which items whose Q is not definite have nothing to exchange."""
    own = definite.reshape(-1, 1)
    size = max(len(M), len(definite))
    M = torch.where(own.unsqueeze(2), M.expand(size, -1, -1), eye(M.shape[1], M))
    inside = torch.minimum(torch.zeros_like(c), program.high)
    if program.low is not None:
        inside = torch.maximum(inside, program.low)
    c = torch.where(own, c, inside.nan_to_num())
    if start is not None:
        down = start.down
        start = ActiveRows(start.held & own, None if down is None else down & own)
    return M, c, start


class _Run:
    """The exchange of rows: items that are done drop out of the loop where that pays."""

    def __init__(
        self, program: QuadraticProgram, M: Tensor, c: Tensor, start: ActiveRows | None
    ) -> None:
        self.M, self.c = M, c
        self.high, self.low, self.fixed = program.high, program.low, program.fixed
        self.high_edge = self.high + _EDGE * (c.abs() + self.high.abs())
        size = _EDGE * c.abs() + _EDGE * self.high.abs().nan_to_num(posinf=0.0)
        self.low_edge = None
        self.down: Tensor | None = None
        if self.low is not None:
            below = self.low.abs()
            size = size + _EDGE * below.nan_to_num(posinf=0.0)
            self.low_edge = self.low - _EDGE * (c.abs() + below)
            self.down = c < self.low_edge
        # A multiplier moves its row by itself times the diagonal of M.
        self.least = -size / M.diagonal(dim1=1, dim2=2).clamp_min(torch.finfo(c.dtype).tiny)
        self.held = c > self.high_edge
        if self.down is not None:
            self.held = self.held | self.down
        if start is not None:
            self.held, self.down = start.held, start.down
        if self.fixed is not None:
            self.held = self.held | self.fixed
        batch = c.shape[0]
        self.w = c
        self.factors: RowFactors
        self.identity = eye(c.shape[1], c)
        self.done = torch.zeros(batch, dtype=torch.bool, device=c.device)
        self.rounds = torch.zeros(batch, dtype=torch.long, device=c.device)

    def iterate(self) -> None:
        """All items, then those that are left."""
        held, down, round, lifted = self.held, self.down, 0, True
        large = self.c.shape[0] > 1 and self.c.shape[1] ** 2 * self.c.shape[0] >= _LARGE
        while True:
            round += 1
            w, factors, after, after_down, lifted = self._exchange(self, held, down, lifted)
            if round == _FREE or torch.equal(after, held):
                break
            if large and round >= 3:
                left = (after != held).any(dim=1)
                if 4 * int(left.sum()) <= 3 * len(left):
                    break
            held, down = after, after_down
        self.w, self.factors, self.held, self.down = w, factors, held, down
        self.done = (after == held).all(dim=1)
        self.rounds += round
        left = (~self.done).nonzero()[:, 0]
        if len(left):
            self._exchange_in(left, after[left], None if after_down is None else after_down[left])
            self.factors = RowFactors(self.M, self.held)

    def _exchange_in(self, items: Tensor, held: Tensor, down: Tensor | None) -> None:
        """The same for these items, which become fewer, with an eye on those that get no further."""
        part = _Part(self, items)
        best = torch.full_like(items, held.shape[1] + 1)
        patience = torch.zeros_like(items)
        last = torch.arange(held.shape[1], device=held.device)
        for _ in range(_MOST):
            w, _, after, after_down, _ = self._exchange(part, held, down, True)
            wrong = after != held
            count = wrong.sum(dim=1)
            finished = count == 0
            self.rounds[items] += 1
            if bool(finished.any()):
                rows = finished.nonzero()[:, 0]
                whole = items[rows]
                self.w[whole], self.held[whole] = w[rows], held[rows]
                if down is not None:
                    assert self.down is not None
                    self.down[whole] = down[rows]
                self.done[whole] = True
                left = (~finished).nonzero()[:, 0]
                if not len(left):
                    return
                items, part = items[left], _Part(self, items[left])
                held, wrong, after = held[left], wrong[left], after[left]
                best, count, patience = best[left], count[left], patience[left]
                if down is not None:
                    assert after_down is not None
                    down, after_down = down[left], after_down[left]
            fewer = count < best
            best = torch.minimum(best, count)
            patience = torch.where(fewer, 0, patience + 1)
            one = (patience >= _PATIENCE).unsqueeze(1)
            only = last == (wrong * (last + 1)).amax(dim=1, keepdim=True) - 1
            changed = torch.where(one, wrong & only, wrong)
            held = held ^ changed
            if down is not None:
                assert after_down is not None
                down = torch.where(changed, after_down, down)

    def _exchange(
        self, of: _Run | _Part, held: Tensor, down: Tensor | None, lifts: bool
    ) -> tuple[Tensor, RowFactors, Tensor, Tensor | None, bool]:
        """w and the factors for rows that hold, which ones ought to hold, and whether some depend on others.

        Args:
            lifts: whether to look for these, and add to the diagonal. Where the first set has none, the next
                ones mostly have none either; what comes of one that has is another set to go on from, and is
                never taken for a solution.
        """
        factors = RowFactors(of.M, held, identity=self.identity)
        used = factors
        lifts = lifts and bool(factors.info.any())
        if lifts:
            used = RowFactors(of.M, held, _ADDED)
        target = of.high
        if down is not None:
            assert of.low is not None
            target = torch.where(down, of.low, of.high)
        # Of an infinite side nothing holds.
        w = used.solve(of.c - target)
        value = of.c - times(of.M, w)
        if down is None:
            after = torch.where(held, w > of.least, value > of.high_edge)
            after_down = None
        else:
            assert of.low_edge is not None
            below = value < of.low_edge
            signed = torch.where(down, -w, w)
            after = torch.where(held, signed > of.least, below | (value > of.high_edge))
            after_down = torch.where(held, down, below)
        if of.fixed is not None:
            after = after | of.fixed
        return w, factors, after, after_down, lifts


class _Part:
    """The data of some items, indices."""

    def __init__(self, run: _Run, items: Tensor) -> None:
        def part(x: Tensor) -> Tensor:
            return x if len(x) == 1 and len(run.c) > 1 else x[items]

        self.M, self.c, self.high = part(run.M), run.c[items], run.high[items]
        self.high_edge, self.least = run.high_edge[items], run.least[items]
        self.low = None if run.low is None else run.low[items]
        self.low_edge = None if run.low_edge is None else run.low_edge[items]
        self.fixed = None if run.fixed is None else part(run.fixed)
