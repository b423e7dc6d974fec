"""The equations of a call with inequality constraints and bounds, where it is clear which of them hold.

As `equations`, with g = 0 for those inequality constraints that hold and without the others. All of them stay
in the matrices, so that a program is one for all active sets: the row of one that does not hold is zero, with
a one on the diagonal of what is factorised. An unknown at a bound is none of the system's: its row and column
are those of the unit matrix, and what the bound takes up is what is left of ∇_y L there.

Clear is, by the measures of `ddnkit.active_set`, what lies far on one side of its edges:

* a constraint that holds has a slack of rounding, and a multiplier well above what rounding leaves of one
  that is zero;
* of one that does not, the slack is as far above that;
* those that hold are at an angle at which they neither depend on each other nor nearly touch. With U the n
  rows of unit length of those that are no bounds, and U_F their part on the free unknowns, the least singular
  value of all rows is at least σ(U_F)/(1 + √n), and the largest at most √(1 + n).

Where the wider edge, that of a solution which is good to the tolerance, would not tell, the eager way takes
the narrow one of a y that solves the problem to rounding. What "to rounding" means there is measured here
too. All else is left to the eager way: constraints that are weakly active, meet, touch, or follow from
others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..active_set import EDGE, sharp_edge
from ..lagrangian import objective_gradient
from ..linalg.rows import unit_rows
from ..perturbation import STEP, relative_changes
from ..problem import Problem, flat
from ..solution import SETTLED
from .equations import (
    AtBounds,
    Limits,
    Local,
    Rows,
    Shape,
    System,
    cholesky,
    factorise,
    hessian,
    jacobian,
    largest_ratio,
    stated,
    times,
)

#: How far beyond an edge is clear, and how far beyond the wide one nothing finer is asked.
_CLEAR, _BEYOND = 16, 2
_PROBES = 3


class Points(NamedTuple):
    """What is measured beside y.

    Attributes:
        gradient: ∇f at y (B, m).
        changes: of ∇f with relative changes of operands and y (probes, B, m), of size one.
        by_operands: the length of the first of them with y as it is, (B,).
        slack: g at y, (B, q): of `stated` ones, lower and upper bounds, as far as there are such.
        ahead: of a size of y (B,), how much g changes with relative changes of the operands, and of y where
            its entries count as that large, (B, q).
    """

    gradient: Tensor
    changes: Tensor
    by_operands: Tensor
    slack: Tensor
    ahead: Callable[[Tensor | None], Tensor]


class Sides(NamedTuple):
    """Which inequality constraints there are: how many besides bounds, and on which sides there are some."""

    own: int
    lower: bool
    upper: bool

    @classmethod
    def of(cls, problem: Problem, y: Tensor) -> Sides:
        """Those of a problem."""
        return cls(problem.inequality_sizes(y)[0], *problem.bound_sides(y))

    def values(self, problem: Problem, y: Tensor) -> Tensor:
        """g (B, q)."""
        parts = []
        if self.own:
            g = problem.inequalities(y)
            assert g is not None
            parts.append(g[:, : self.own])
        bounds = problem.bounds(y)
        if bounds is not None and self.lower:
            parts.append(bounds[0] - flat(y))
        if bounds is not None and self.upper:
            parts.append(flat(y) - bounds[1])
        return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]

    def split(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(B, q) as (B, k), and (B, m) of the lower and the upper bounds."""
        m = (x.shape[-1] - self.own) // max(self.lower + self.upper, 1)
        own, at = x[..., : self.own], self.own
        lower = x[..., at : at + m] if self.lower else None
        upper = x[..., at + m * self.lower :] if self.upper else None
        return own, lower, upper

    def at_bounds(self, held: Tensor) -> AtBounds | None:
        """Those of ``held`` (B, q) that are bounds."""
        _, lower, upper = self.split(held)
        if lower is None and upper is None:
            return None
        if lower is None:
            assert upper is not None
            return AtBounds(torch.zeros_like(upper), upper)
        return AtBounds(lower, torch.zeros_like(lower) if upper is None else upper)


def held_solution(
    problem: Problem, y: Tensor, limits: Limits, shape: Shape, tolerance: float
) -> Callable[..., tuple[Tensor, ...]]:
    """The function of y (B, *y) and the operands that says what is to be known at y.

    As `equations.at_solution`, with a lower bound of licq, and behind it the margin of the active set (B,).

    Args:
        y: a solution, of whose shape others are.
    """
    sides, look = Sides.of(problem, y), _points(problem, y)
    eps = torch.finfo(y.dtype).eps
    sharp = sharp_edge(y.dtype)
    edge = EDGE * tolerance if tolerance < math.inf else sharp
    sharp = min(sharp, edge)
    clearly = _CLEAR * sharp
    apart = max(limits.margin, EDGE * edge)
    pattern = flat(relative_changes(y, y.shape[1:], 1.0, 0, 0).expand(y.shape))

    def found(y: Tensor, *operands: Tensor) -> tuple[Tensor, ...]:
        here, Y = problem.with_operands(operands), flat(y)
        points = look(y, operands)
        distance = _ratio_of_slack(points.slack, points.ahead(None))
        held = distance <= sharp
        local, moved, sigma = _local(here, y, shape, sides, held, points)
        rows = local.rows
        slope = points.gradient
        if shape is Shape.DIAGONAL:
            scale = (local.hessian * Y).abs()
        else:
            scale = (local.hessian * Y.unsqueeze(-2)).abs().sum(dim=-1)
        feasibility, count = torch.zeros_like(Y[:, 0]), 0
        clear = []
        if rows is not None:
            count, size = rows.A.shape[1], rows.A.abs()
            slope = slope - times(rows.A.mT, rows.nu)
            scale = scale + times(size.mT, rows.nu.abs())
            feasibility = largest_ratio(rows.h, times(size, Y.abs()))
            clear.append(rows.pivot >= limits.pivot)
        r = slope
        at = sides.at_bounds(held)
        if at is not None:
            r = torch.where(at.free, slope, 0.0)
            off = torch.where(at.free, 0.0, Y - at.bound(here, y))
            feasibility = torch.maximum(feasibility, largest_ratio(off, Y.abs()))
            clear.append(~(at.lower & at.upper).any(dim=-1))
        stationarity = largest_ratio(r, scale)
        system, pivot = factorise(local, shape)

        relative = _relative_multipliers(sides, local, slope, points.changes, moved)
        by = local.hessian * pattern if shape is Shape.DIAGONAL else times(local.hessian, pattern)
        own = points.by_operands / torch.linalg.vector_norm(by, dim=-1)
        size = Y.square().mean(dim=-1).sqrt()
        size = torch.where(own.isfinite() & (size <= tolerance * own), own, size)
        of_size = _ratio_of_slack(points.slack, points.ahead(size))
        away = torch.minimum(distance, of_size)
        told = torch.where(held, relative, torch.where(points.slack < 0, away, 0.0))
        least = told.amin(dim=-1)
        left = torch.linalg.vector_norm(r, dim=-1)
        most = torch.linalg.vector_norm(points.changes.abs().amax(dim=0), dim=-1)
        solved = left <= SETTLED * eps * most
        clear += [least >= clearly, solved | (least >= _BEYOND * edge)]
        licq = sigma / ((1 + count**0.5) * (1 + count) ** 0.5) if count else sigma
        clear += [licq >= apart, feasibility <= limits.rounding]
        clear += [stationarity <= limits.rounding, pivot >= limits.pivot]
        clear.append((scale + Y.abs()).amax(dim=-1) <= torch.finfo(y.dtype).max ** 0.5)
        margin = torch.where(held, relative, distance).amin(dim=-1)
        rest = [*system.parts(), *([] if rows is None else [rows.nu])]
        if at is not None:
            rest += [at.lower, at.upper]
        flags = torch.stack(clear)
        return flags.all(), stationarity, feasibility, licq, margin, *rest

    return found


def margin_of_rows(
    problem: Problem, y: Tensor, shape: Shape
) -> Callable[[Sequence[Tensor]], Tensor]:
    """The function of what `held_solution` leaves for the way back that gives `Certificate.licq` (B,)."""
    count, bounded = len(y), any(problem.bound_sides(y))
    constrained = stated(problem, y) is not None

    def found(rest: Sequence[Tensor]) -> Tensor:
        parts = []
        if constrained:
            end = len(rest) - 1 - 2 * bounded
            A = System.of(rest[:end], shape).A
            assert A is not None
            parts.append(unit_rows(A)[0].expand(count, -1, -1))
        if bounded:
            at_bound = ~AtBounds(*rest[-2:]).free
            parts.append(torch.diag_embed(at_bound.to(y.dtype)).expand(count, -1, -1))
        rows = torch.cat(parts, dim=1)
        there = (rows != 0).any(dim=-1).sum(dim=-1, keepdim=True)
        sizes = torch.linalg.svdvals(rows)
        least = sizes.gather(1, (there - 1).clamp(0, sizes.shape[1] - 1)).squeeze(1)
        return torch.where(there.squeeze(1) > 0, least / sizes[:, 0], 1.0)

    return found


def _points(problem: Problem, y: Tensor) -> Callable[[Tensor, Sequence[Tensor]], Points]:
    """What is measured beside a y of that shape; all points as one batch."""
    step, shape, sides = STEP[y.dtype], y.shape[1:], Sides.of(problem, y)
    flags, count = problem.operands_batched, len(y)
    changes = torch.stack([relative_changes(y, shape, step, 0, k) for k in range(_PROBES)])
    changes = changes.expand(_PROBES, *shape).unsqueeze(1)
    zeros = torch.zeros_like(changes[:1])
    factors = [
        torch.stack([1 + relative_changes(x, x.shape[1:], step, i + 1, k) for k in range(_PROBES)])
        .expand(_PROBES, *x.shape[1:])
        .unsqueeze(1)
        if own
        else None
        for i, (x, own) in enumerate(zip(problem.operands, flags, strict=True))
    ]

    def batch(operands: Sequence[Tensor], order: Sequence[int]) -> Problem:
        """The problem at the operands (0), or with those of a probe (1, 2, 3), one after the other."""
        there = []
        for x, f in zip(operands, factors, strict=True):
            if f is None:
                there.append(x)
                continue
            by = torch.cat([torch.ones_like(f[:1]), f])[list(order)]
            there.append((x * by).reshape(-1, *x.shape[1:]))
        return problem.resize(there, len(order) * count, flags)

    def apart(x: Tensor) -> Tensor:
        return x.reshape(-1, count, x.shape[-1])

    def look(y: Tensor, operands: Sequence[Tensor]) -> Points:
        order = list(range(_PROBES + 1))
        ahead = (y * (1 + torch.cat([zeros, changes, zeros]))).reshape(-1, *shape)
        g = apart(objective_gradient(batch(operands, [*order, 1]), ahead))
        gradient = g[0]
        moved = (g[1:] - gradient) / step
        there = (y + torch.cat([zeros, changes]) * y.abs()).reshape(-1, *shape)
        own = apart(sides.values(batch(operands, order), there))
        slack = own[0]

        def largest(values: Tensor) -> Tensor:
            change = (values - slack).abs() / step
            return torch.where(change.isfinite(), change, 0.0).amax(dim=0)

        def beside(size: Tensor | None) -> Tensor:
            if size is None:
                return largest(own[1:])
            least = size.reshape(-1, *[1] * len(shape))
            there = (y + changes * torch.maximum(y.abs(), least)).reshape(-1, *shape)
            return largest(apart(sides.values(batch(operands, order[1:]), there)))

        by_operands = torch.linalg.vector_norm(moved[-1], dim=-1)
        return Points(gradient, moved[:-1], by_operands, slack, beside)

    return look


def _ratio_of_slack(slack: Tensor, change: Tensor) -> Tensor:
    ratio = torch.where(slack.isfinite(), slack.abs() / change, torch.inf)
    return torch.where(slack == 0, 0.0, ratio)


def _local(
    problem: Problem, y: Tensor, shape: Shape, sides: Sides, held: Tensor, points: Points
) -> tuple[Local, Tensor | None, Tensor]:
    """The derivatives at y; the multipliers of the changes of ∇f (B, n, probes); and the least singular value
    (B,) of the rows, of unit length, on the free unknowns, or less."""
    h = stated(problem, y)
    at = sides.at_bounds(held)
    free = None if at is None else at.free
    sigma = torch.ones_like(points.gradient[:, 0])
    if h is None:
        return (
            Local(points.gradient, *hessian(problem, y, None, shape), None, None, free),
            None,
            sigma,
        )
    A = jacobian(problem, y, h[:, :0], lambda here, y, _: stated(here, y))
    there = torch.ones_like(h, dtype=torch.bool)
    if sides.own:
        there = torch.cat([there[:, sides.own :], held[:, : sides.own]], dim=-1)
        h, A = torch.where(there, h, 0.0), torch.where(there.unsqueeze(-1), A, 0.0)
    right = torch.cat([points.gradient.unsqueeze(0), points.changes]).permute(1, 2, 0)
    nu, sigma, pivot = least_squares(A, there, free, right)
    rows = Rows(h, A, nu[..., 0], sigma, pivot)
    local = Local(points.gradient, *hessian(problem, y, rows.nu, shape), rows, there, free)
    return local, nu[..., 1:], sigma


def least_squares(
    A: Tensor, there: Tensor, free: Tensor | None, right: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The ν (B, n, r) that minimise ‖right − Aᵀν‖ over the free unknowns, for right sides (B, m, r).

    Then the least singular value of the rows there at unit length, or less, (B,), and the least pivot of
    their Gram matrix.
    """
    length = torch.where(there, torch.linalg.vector_norm(A, dim=-1), 1.0).unsqueeze(-1)
    unit = A / length
    unit = unit if free is None else unit * free.unsqueeze(-2)
    gram = unit @ unit.mT
    one = torch.ones_like(gram[:, 0, 0])
    if gram.shape[-1] == 1:
        gram = gram + ~there.unsqueeze(-1)
        pivot = gram[:, 0, 0].sqrt()
        return unit @ right / (gram * length), torch.minimum(pivot, one), pivot
    L, pivot = cholesky(gram + torch.diag_embed((~there).to(gram.dtype)))
    nu = torch.cholesky_solve(unit @ right, L)
    nu = nu + torch.cholesky_solve(unit @ (right - unit.mT @ nu), L)
    eye = torch.eye(L.shape[-1], dtype=L.dtype, device=L.device).expand_as(L)
    inverse = torch.linalg.solve_triangular(L, eye, upper=False)
    return nu / length, torch.minimum(1 / torch.linalg.matrix_norm(inverse), one), pivot


def _relative_multipliers(
    sides: Sides, local: Local, slope: Tensor, changes: Tensor, moved: Tensor | None
) -> Tensor:
    """λ (B, q), relative as `active_set` has them, of those that hold."""
    c = changes.abs().amax(dim=0)
    parts = []
    of_changes = changes
    if local.rows is not None and moved is not None:
        A = local.rows.A
        of_changes = changes - (A.mT @ moved).permute(2, 0, 1)
        if sides.own:
            first = A.shape[1] - sides.own
            G = A[:, first:]
            lengths = G.square().sum(dim=-1)
            most = torch.maximum(times(G.abs(), c), moved[:, first:].abs().amax(dim=-1) * lengths)
            parts.append(-local.rows.nu[:, first:] * lengths / most)
    if sides.lower or sides.upper:
        most = torch.maximum(c, of_changes.abs().amax(dim=0))
        parts += [slope / most] * sides.lower + [-slope / most] * sides.upper
    found = torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
    return torch.where(found.isnan(), 0.0, found)
