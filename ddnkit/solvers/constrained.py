"""Problems with inequality constraints at a point: derivatives, residuals, the linear system, and a polish.

    minimise f(y)  subject to  h(y) = 0,  g(y) ≤ 0,  l ≤ y ≤ u,
    L = f − νᵀh + λᵀg + zᵤᵀ(y − u) − zₗᵀ(y − l),        λ, zₗ, zᵤ ≥ 0.
Bounds are no rows of a matrix here: what they add to a system is on its diagonal. All is flat, y of m
entries, p equations, k inequalities beside the bounds, B items.

*Units.* Each unknown is measured in a unit of its own, a power of two, so that nothing is rounded: about the
size of y at the start, in proportions by which the entries of ∇²f, Dh and Dg become alike where they differ
by orders of magnitude (Ruiz). All below is in these units.

*Residuals* are relative. That of ∇_y L is divided by the sizes of its terms, |∇f| + |A|ᵀ|ν| + |G|ᵀλ + zₗ +
zᵤ + |H||y|; that of a constraint by |Gᵢ||y|. An entry of y counts as a thousandth of its unit at least. Where
slack and multiplier, each so divided, are both large, the lesser of the two is what complementarity lacks.

*The system*   [K −Aᵀ; A 0][dy; dν] = [r₁; r₂]   is solved by Cholesky factors of K_ρ = K + ρAᵀA, which are
there exactly where K has positive curvature on the null space of A (ρ large enough), and of A K_ρ⁻¹Aᵀ.
K has a unit diagonal before, and the rows of A length 1. Where the curvature is not positive, what the least
eigenvalue lacks, and as much again, is added to the diagonal: then dy leads down (inertia correction).

*The polish* takes a point near a solution to rounding. The constraints whose multiplier is more than the
thousandth of their slack hold as equations; bounds among them by y being set to them. Newton steps on these
equations follow, and after each the set is changed where it was wrong: those with a negative multiplier
leave, those that are violated enter. A weakly active one stays. A bound at which a function is not finite,
such as 0 for log y, is none to hold: the steps end short of it. All this may lead nowhere: the point is kept
only where its residuals are smaller.

Source: Nocedal and Wright, *Numerical Optimization*, chapters 16, 18 and 19.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..lagrangian import (
    constraint_jacobian,
    inequality_jacobian,
    lagrangian_hessian,
    least_squares_multipliers,
    row_basis,
)
from ..linalg.items import apply
from ..problem import Problem, flat
from .no_solution import falls_along
from .residual import constraint_values, norm

#: Of its unit an unknown counts as at least this part.
_PART_OF_UNIT = 1e-3
_PUSH = 1e-2
_TO_EDGE = 0.9
_ACTIVE = 1e-3
_ROUNDS = 20
_ROUNDS_AT_ONCE = 4
_EQUILIBRATIONS = 8
_APART = 100
#: The logarithm by which a step may shorten the distance from the edge of a domain.
_LONGEST_LOG = 30.0


@dataclass(frozen=True)
class Point:
    """What the functions are at y (B, m).

    Attributes:
        value: (B,). gradient: (B, m).
        h: (B, p). A: (B, p, m). g: (B, k). G: (B, k, m).
        finite: whether all of it is, (B,); where it is not, all of it is 0.
    """

    y: Tensor
    value: Tensor
    gradient: Tensor
    h: Tensor
    A: Tensor
    g: Tensor
    G: Tensor
    finite: Tensor


@dataclass(frozen=True)
class Multipliers:
    """ν (B, p), λ (B, k), and those of the bounds (B, m)."""

    nu: Tensor
    lam: Tensor
    lower: Tensor
    upper: Tensor


@dataclass(frozen=True)
class Held:
    """The constraints that hold as equations: of g (B, k), and y at a lower and at an upper bound (B, m)."""

    g: Tensor
    lower: Tensor
    upper: Tensor

    def differs(self, other: Held) -> Tensor:
        """In which items, (B,)."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        parts = [(a != b).any(dim=1) for a, b in pairs]
        return parts[0] | parts[1] | parts[2]


class Program:
    """A batch with inequalities.

    Args:
        y: (B, *y), for shape, dtype and device.

    Attributes:
        lower, upper: (B, m), infinite where there is no bound.
        fixed: where both are equal, (B, m).
        open_lower, open_upper: where a function is not finite at that bound, the edge of its domain, (B, m).
            It is none to hold, and a y beside it is measured by its distance.
        contradictory: items whose lower bound is above the upper one, or a bound is NaN, (B,).
        k: how many inequalities there are beside the bounds.
        unit: what y is measured in, (B, m).
    """

    def __init__(self, problem: Problem, y: Tensor) -> None:
        self.problem = problem
        self.shape = y.shape[1:]
        x = flat(y)
        with torch.no_grad():
            g, bounds = problem.inequalities(y), problem.bounds(y)
        count = 0 if g is None else g.shape[1]
        self.bounded = bounds is not None
        self.k = count - (2 * x.shape[1] if self.bounded else 0)
        free = torch.full_like(x, torch.inf)
        self.lower, self.upper = (-free, free) if bounds is None else (b.detach() for b in bounds)
        self.fixed = self.lower == self.upper
        self.contradictory = ~(self.lower <= self.upper).all(dim=1)
        self.open_lower = self._open_at(self.lower, x)
        self.open_upper = self._open_at(self.upper, x)
        self.unit = torch.ones_like(x)

    def _open_at(self, bound: Tensor, y: Tensor) -> Tensor:
        there = bound.isfinite() & ~self.fixed
        if not bool(there.any()):
            return there
        point = torch.where(there, bound, y.nan_to_num(nan=0.0)).reshape(-1, *self.shape)
        return there & ~flat(self.problem.gradient(point)).isfinite()

    def in_units(self, unit: Tensor) -> Program:
        """The same, y measured in these (B, m), powers of two."""
        other = copy.copy(self)
        other.unit = unit
        other.lower, other.upper = self.lower / unit, self.upper / unit
        return other

    def shaped(self, y: Tensor) -> Tensor:
        """y (B, m) as the problem has it, (B, *y)."""
        return (y * self.unit).reshape(-1, *self.shape)

    def of(self, items: Tensor) -> Program:
        """Those of some items (indices)."""
        part = copy.copy(self)
        flags = self.problem.operands_batched
        pairs = zip(self.problem.operands, flags, strict=True)
        operands = [x[items] if own else x for x, own in pairs]
        part.problem = self.problem.resize(operands, len(items), flags)
        names = ("lower", "upper", "fixed", "open_lower", "open_upper", "contradictory", "unit")
        for name in names:
            setattr(part, name, getattr(self, name)[items])
        return part

    def within(self, y: Tensor) -> Tensor:
        """y (B, m), and at the bound where it is beyond."""
        return torch.minimum(torch.maximum(y, self.lower), self.upper)

    def at(self, y: Tensor) -> Point:
        """The functions and their derivatives at y (B, m)."""
        shaped = self.shaped(y)
        value, gradient = self.problem.value_and_gradient(shaped)
        gradient = flat(gradient)
        A = constraint_jacobian(self.problem, shaped)
        G = gradient.new_zeros(len(y), 0, y.shape[1])
        if self.k:
            rows = torch.arange(self.k, device=y.device)
            G = inequality_jacobian(self.problem, shaped, rows)
        with torch.no_grad():
            h, g = constraint_values(self.problem, shaped), self.inequalities(y)
        A = gradient.new_zeros(len(y), 0, y.shape[1]) if A is None else A
        gradient, unit = gradient * self.unit, self.unit.unsqueeze(1)
        A, G = A * unit, G * unit
        parts = (value.unsqueeze(1), gradient, h, A.flatten(1), g, G.flatten(1))
        finite = torch.stack([part.isfinite().all(dim=1) for part in parts]).all(dim=0)
        if not bool(finite.all()):
            value, gradient, h, A, g, G = (
                torch.where(finite.reshape(-1, *[1] * (x.ndim - 1)), x, 0.0)
                for x in (value, gradient, h, A, g, G)
            )
        return Point(y, value, gradient, h, A, g, G, finite)

    def inequalities(self, y: Tensor) -> Tensor:
        """g (B, k), without the bounds."""
        if not self.k:
            return y[:, :0]
        g = self.problem.inequalities(self.shaped(y))
        assert g is not None  # as k tells
        return g[:, : self.k]

    def hessian(self, y: Tensor, multipliers: Multipliers) -> Tensor:
        """D²_yy L (B, m, m), and 0 where it is not finite."""
        nu = multipliers.nu if multipliers.nu.shape[1] else None
        H = lagrangian_hessian(self.problem, self.shaped(y), nu, multipliers.lam).detach()
        H = H * self.unit.unsqueeze(1) * self.unit.unsqueeze(2)
        return H.nan_to_num(nan=0, posinf=0, neginf=0)

    def slope(self, point: Point, multipliers: Multipliers) -> Tensor:
        """∇_y L (B, m), 0 for a fixed unknown."""
        slope = point.gradient - apply(point.A.mT, multipliers.nu)
        slope = slope + apply(point.G.mT, multipliers.lam)
        return (slope - multipliers.lower + multipliers.upper).masked_fill(self.fixed, 0.0)

    def sizes_of_slope(self, point: Point, multipliers: Multipliers, H: Tensor) -> Tensor:
        """Of the terms of ∇_y L, (B,)."""
        sizes = point.gradient.abs() + apply(point.A.abs().mT, multipliers.nu.abs())
        sizes = sizes + apply(point.G.abs().mT, multipliers.lam)
        sizes = sizes + apply(H.abs(), self.sizes_of_unknowns(point.y))
        sizes = norm(sizes + multipliers.lower + multipliers.upper)
        # Where f has no slope all multipliers are 0, and those of a barrier are small beside nothing but 1.
        flat_f = (point.gradient == 0).all(dim=1)
        sizes = torch.where(flat_f, sizes.clamp_min(1), sizes)
        return sizes.clamp_min(torch.finfo(sizes.dtype).tiny ** 0.5)

    def sizes_of_rows(self, rows: Tensor, y: Tensor) -> Tensor:
        """What constraints with these rows (B, n, m) are divided by, (B, n)."""
        sizes = apply(rows.abs(), self.sizes_of_unknowns(y))
        return sizes.clamp_min(torch.finfo(sizes.dtype).tiny ** 0.5)

    def sizes_of_unknowns(self, y: Tensor) -> Tensor:
        """|y|, and at least a part of the unit: a y = 0 has no size of its own, (B, m)."""
        size = y.abs().clamp_min(_PART_OF_UNIT)
        if not self.bounded:
            return size
        tiny = torch.finfo(y.dtype).tiny
        for side, room in ((self.open_lower, y - self.lower), (self.open_upper, self.upper - y)):
            size = torch.where(side, torch.minimum(size, room.clamp_min(tiny)), size)
        return size

    def error(self, point: Point, multipliers: Multipliers, H: Tensor) -> Tensor:
        """The largest relative residual, (B,); infinite where the functions are not finite."""
        scale = self.sizes_of_slope(point, multipliers, H)
        parts = [norm(self.slope(point, multipliers)) / scale]
        scale = scale.unsqueeze(1)
        for rows, values, lam in (
            (point.A, point.h.abs(), None),
            (point.G, point.g, multipliers.lam),
        ):
            if rows.shape[1]:
                of_rows = values / self.sizes_of_rows(rows, point.y)
                parts.append(of_rows.amax(dim=1))
                if lam is not None:
                    lam = lam * norm(rows) / scale
                    parts.append(torch.minimum(-of_rows, lam).amax(dim=1))
        if self.bounded:
            sizes = self.sizes_of_unknowns(point.y)
            for room, z in (
                (point.y - self.lower, multipliers.lower),
                (self.upper - point.y, multipliers.upper),
            ):
                off = (room / sizes).masked_fill(self.fixed, 0.0)
                parts += [-off.amin(dim=1), torch.minimum(off, z / scale).amax(dim=1)]
        error = torch.stack(parts).amax(dim=0)
        return torch.where(point.finite & ~error.isnan(), error, torch.inf)

    def rows_of_multipliers(self, multipliers: Multipliers) -> Tensor:
        """λ of all of `Problem.inequalities`, (B, q)."""
        if not self.bounded:
            return multipliers.lam
        bounds = (multipliers.lower / self.unit, multipliers.upper / self.unit)
        return torch.cat([multipliers.lam, *bounds], dim=1)


def violation(program: Program, point: Point) -> Tensor:
    """By how much the worst of the constraints is violated, relative, (B,)."""
    worst = torch.zeros_like(point.value)
    for rows, values in ((point.A, point.h.abs()), (point.G, point.g)):
        if rows.shape[1]:
            worst = torch.maximum(
                worst, (values / program.sizes_of_rows(rows, point.y)).amax(dim=1)
            )
    return worst


def falls_without_bound(program: Program, y: Tensor, start: Tensor) -> Tensor:
    """Whether f does on the way from the start (B, m) to y and on, or straight down from y, (B,)."""
    shaped = program.shaped(y)
    down = -program.unit.square() * flat(program.problem.gradient(shaped))
    ways = [shaped - program.shaped(start), down.reshape(shaped.shape)]
    return torch.stack([falls_along(program.problem, shaped, way) for way in ways]).any(dim=0)


class System:
    """[K + δD² −Aᵀ; A 0], factorised.

    Attributes:
        added: δ (B,), 0 or of the order of rounding where K has positive curvature on the null space of A.
    """

    def __init__(self, K: Tensor, A: Tensor) -> None:
        eps = torch.finfo(K.dtype).eps
        m = K.shape[-1]
        diagonal = K.diagonal(dim1=1, dim2=2).abs()
        largest = diagonal.amax(dim=1, keepdim=True)
        self._d = torch.where(largest > 0, torch.maximum(diagonal, eps**1.5 * largest), 1.0).sqrt()
        K = K / (self._d.unsqueeze(1) * self._d.unsqueeze(2))
        A = A / self._d.unsqueeze(1)
        length = norm(A)
        self._n = torch.where(length > 0, length, 1.0)
        self._A = A / self._n.unsqueeze(2)
        self._rho = torch.ones_like(K[:, 0, 0])
        least = 4 * m * eps
        self.added = torch.full_like(self._rho, least)
        outer = self._A.mT @ self._A
        eye = torch.eye(m, dtype=K.dtype, device=K.device)

        def shifted() -> Tensor:
            return K + self._rho.reshape(-1, 1, 1) * outer + self.added.reshape(-1, 1, 1) * eye

        L, info = torch.linalg.cholesky_ex(shifted())
        bad = (info > 0).nonzero()[:, 0]
        if len(bad) and A.shape[1]:
            self._rho[bad] = 1e3
            L, info = torch.linalg.cholesky_ex(shifted())
            bad = (info > 0).nonzero()[:, 0]
        if len(bad):
            lowest = torch.linalg.eigvalsh(shifted()[bad])[:, 0]
            self.added[bad] += torch.where(lowest < 0, -2 * lowest, 0.0) + least * 1e3
            L, _ = torch.linalg.cholesky_ex(shifted())
        self._K, self._L = K, L
        self._S: Tensor | None = None
        if A.shape[1]:
            # Not by one triangular solve, which in a batch takes MKL a hundred times as long.
            S = self._A @ torch.cholesky_solve(self._A.mT, L)
            S = (S + S.mT) / 2
            empty = torch.where(S.diagonal(dim1=1, dim2=2) > 0, 0.0, 1.0)
            S = S + torch.diag_embed(empty)
            self._S, info = torch.linalg.cholesky_ex(S)
            pivots = self._S.diagonal(dim1=1, dim2=2)
            apart = pivots.amin(dim=1) > eps**0.35 * pivots.amax(dim=1)
            self._dependent = (~apart | (info > 0)).nonzero()[:, 0]
            if len(self._dependent):
                # Of dependent rows the multipliers are the least ones, and what contradicts is left.
                self._pinv = torch.linalg.pinv(
                    S[self._dependent].nan_to_num(nan=0, posinf=0, neginf=0),
                    rtol=eps**0.7,
                    hermitian=True,
                )

    def solve(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """dy (B, m) and dν (B, p) for right sides of these shapes."""
        first, second = first / self._d, second / self._n
        dy, dnu = self._solve(first, second)
        if self._S is not None:
            left = apply(self._K, dy) + self.added.unsqueeze(1) * dy - apply(self._A.mT, dnu)
            more = self._solve(first - left, second - apply(self._A, dy))
            dy, dnu = dy + more[0], dnu + more[1]
        return dy / self._d, dnu / self._n

    def _solve(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        if self._S is None:
            return _cholesky_solve(self._L, first), second
        first = first + self._rho.unsqueeze(1) * apply(self._A.mT, second)
        plain = _cholesky_solve(self._L, first)
        right = second - apply(self._A, plain)
        dnu = _cholesky_solve(self._S, right)
        if len(self._dependent):
            dnu[self._dependent] = apply(self._pinv, right[self._dependent])
        return plain + _cholesky_solve(self._L, apply(self._A.mT, dnu)), dnu


def _cholesky_solve(L: Tensor, vector: Tensor) -> Tensor:
    found = torch.cholesky_solve(vector.unsqueeze(-1), L).squeeze(-1)
    return found.nan_to_num(nan=0, posinf=0, neginf=0)


def held_at(program: Program, point: Point, multipliers: Multipliers, H: Tensor) -> Held:
    """Those whose multiplier is more than a part of their slack, each in its unit."""
    scale = program.sizes_of_slope(point, multipliers, H).unsqueeze(1)
    room = -point.g / program.sizes_of_rows(point.G, point.y)
    g = multipliers.lam * norm(point.G) / scale > _ACTIVE * room
    if not program.bounded:
        none = torch.zeros_like(point.y, dtype=torch.bool)
        return Held(g, none, none)
    sizes = program.sizes_of_unknowns(point.y)
    room = (point.y - program.lower) / sizes
    lower = (multipliers.lower / scale > _ACTIVE * room) & ~program.open_lower
    lower = program.fixed | lower
    room = (program.upper - point.y) / sizes
    upper = ~program.fixed & (multipliers.upper / scale > _ACTIVE * room)
    return Held(g, lower, upper & ~lower & ~program.open_upper)


def held_by_ratio(program: Program, point: Point, multipliers: Multipliers) -> Held:
    """Those that are nearer to their boundary than their multiplier is to zero, each beside the largest.

    It takes no sizes: near the central path all products of the two are alike.
    """
    of_g = norm(point.G).clamp_min(torch.finfo(point.y.dtype).tiny ** 0.5)
    rooms = [-point.g / of_g, point.y - program.lower, program.upper - point.y]
    rooms = [r.clamp_min(0).masked_fill(~(r < torch.inf), 0.0) for r in rooms]
    pulls = [multipliers.lam * of_g, multipliers.lower, multipliers.upper]
    widest = torch.cat(rooms, dim=1).amax(dim=1, keepdim=True)
    strongest = torch.cat(pulls, dim=1).amax(dim=1, keepdim=True)
    g, lower, upper = (
        pull * widest > room * strongest for room, pull in zip(rooms, pulls, strict=True)
    )
    lower = program.fixed | (lower & ~program.open_lower)
    return Held(g, lower, upper & ~lower & ~program.open_upper)


def held_near(program: Program, point: Point, near: float) -> Held:
    """Those that are ``near`` their boundary, where no multipliers are known."""
    sizes = program.sizes_of_unknowns(point.y)
    lower = (point.y - program.lower <= near * sizes) & ~program.open_lower
    lower = program.fixed | lower
    upper = ~lower & (program.upper - point.y <= near * sizes) & ~program.open_upper
    return Held(point.g >= -near * program.sizes_of_rows(point.G, point.y), lower, upper)


def multipliers_of(program: Program, point: Point, held: Held) -> Multipliers:
    """Those of the held constraints by least squares: without them a linear f has no curvature."""
    free = ~(held.lower | held.upper)
    rows = torch.cat([point.A, -point.G * held.g.unsqueeze(2)], dim=1) * free.unsqueeze(1)
    found = least_squares_multipliers(rows, torch.where(free, point.gradient, 0.0))
    nu, lam = found.split([point.h.shape[1], point.g.shape[1]], dim=1)
    none = torch.zeros_like(point.y)
    return Multipliers(nu, torch.where(held.g, lam.clamp_min(0), 0.0), none, none)


def into_bounds(program: Program, start: Tensor) -> Tensor:
    """The start (B, m), and strictly within its bounds."""
    lower, upper = program.lower, program.upper
    off = torch.minimum(_PUSH * start.abs().clamp_min(1), (upper - lower) / 4)
    # A bound far from zero is not told from one that is nearer than its rounding.
    roundings = 8 * torch.finfo(start.dtype).eps
    low, high = (
        torch.maximum(off, roundings * bound.abs().masked_fill(bound.isinf(), 0.0))
        for bound in (lower, upper)
    )
    y = torch.maximum(torch.minimum(start, upper - high), lower + low)
    y = torch.where(y >= upper, lower + (upper - lower) / 2, y)
    y = torch.where(program.fixed, lower, y)
    y = torch.where(program.contradictory.unsqueeze(1), start, y)
    return y.nan_to_num(nan=0.0)


@dataclass(frozen=True)
class Polished:
    """The best of the points that a polish has seen, with its error (B,), and how many steps it took."""

    y: Tensor
    multipliers: Multipliers
    error: Tensor
    steps: int


def polish(
    program: Program, point: Point, multipliers: Multipliers, held: Held, error: Tensor
) -> Polished:
    """A solution to rounding, from a point near it.

    Args:
        error: (B,), of the point: what a polished one must be below.
    """
    eps = torch.finfo(point.y.dtype).eps
    edge = eps**0.6
    y = program.within(point.y)
    best = Polished(point.y, multipliers, error, 0)
    going = point.finite.clone()
    for step in range(1, _ROUNDS + 1):
        y = torch.where(held.lower, program.lower, torch.where(held.upper, program.upper, y))
        if step == 1:
            here = program.at(y)
            # Bounds at which a function is not finite are the edge of its domain, and hold nowhere.
            found = going & ~here.finite
            edged = found | (program.open_lower | program.open_upper).any(dim=1)
            if bool(found.any()):
                none = program.fixed | ~found.unsqueeze(1)
                held = Held(held.g, held.lower & none, held.upper & none)
                y = torch.where(found.unsqueeze(1), point.y, y)
                here = program.at(y)
        multipliers = replace(multipliers, lam=torch.where(held.g, multipliers.lam, 0.0))
        H = program.hessian(y, multipliers)
        at_bound = held.lower | held.upper
        dy, nu, lam = _newton_step(here, multipliers, H, at_bound, held.g)
        dy = _short_of_edge(program, y, dy)
        reach = torch.where(edged, _TO_EDGE * _share_of_room(program, y, dy), 1.0).clamp_max(1)
        y = torch.where(going.unsqueeze(1) & ~at_bound, y + reach.unsqueeze(1) * dy, y)
        beyond_lower, beyond_upper = y < program.lower, y > program.upper
        y = program.within(y)
        there = program.at(y)
        multipliers = Multipliers(nu, lam, torch.zeros_like(y), torch.zeros_like(y))
        slope = program.slope(there, multipliers)
        multipliers = replace(
            multipliers,
            lower=torch.where(held.lower, slope, 0.0),
            upper=torch.where(held.upper, -slope, 0.0),
        )
        bare = there.gradient - apply(there.A.mT, nu) + apply(there.G.mT, lam)
        multipliers = replace(
            multipliers,
            lower=torch.where(program.fixed, bare.clamp_min(0), multipliers.lower),
            upper=torch.where(program.fixed, (-bare).clamp_min(0), multipliers.upper),
        )
        signed = replace(
            multipliers,
            lam=multipliers.lam.clamp_min(0),
            lower=multipliers.lower.clamp_min(0),
            upper=multipliers.upper.clamp_min(0),
        )
        now = program.error(there, signed, H)
        # Entries near an edge may be small, and are to be right in themselves.
        better = going & ((now < best.error) | (edged & (now <= eps**0.8)))
        best = chosen(better, Polished(y, signed, now, step), best)

        scale = program.sizes_of_slope(there, signed, H).unsqueeze(1)
        violated = there.g / program.sizes_of_rows(there.G, y) > 64 * eps
        sizes = [multipliers.lam * norm(there.G) / scale]
        sizes += [
            z.masked_fill(program.fixed, 0.0) / scale
            for z in (multipliers.lower, multipliers.upper)
        ]
        least = torch.cat(sizes, dim=1).amin(dim=1, keepdim=True)
        # All at once at first; then the worst alone, lest the same sets come again and again.
        at_once = torch.full_like(least, -edge)
        worst = at_once if step <= _ROUNDS_AT_ONCE else (least * (1 - edge)).clamp_max(-edge)
        wrong_g, wrong_lower, wrong_upper = (size < worst for size in sizes)
        # Of several that cannot be zero together, those that nearly touch, one without a hold leaves.
        left = here.g + apply(here.G, dy)
        size = program.sizes_of_rows(here.G, torch.maximum(here.y.abs(), y.abs()))
        loose = held.g & (left < -(eps**0.75) * size)
        if bool(loose.any()):
            of_loose = sizes[0].masked_fill(~loose, torch.inf)
            wrong_g = wrong_g | (loose & (of_loose == of_loose.amin(dim=1, keepdim=True)))
        after = Held(
            (held.g & ~wrong_g) | (violated & ~held.g),
            (held.lower & ~wrong_lower) | beyond_lower,
            (held.upper & ~wrong_upper) | beyond_upper,
        )
        moved = torch.where(
            edged, (dy.abs() > edge * y.abs()).any(dim=1), norm(dy) > 4 * eps * norm(y)
        )
        going = going & there.finite & (held.differs(after) | (moved & (better | edged)))
        # Whatever enters at a bound is there already.
        here, held, multipliers = there, after, signed
        if not bool(going.any()):
            break
    return replace(best, steps=step)


def _short_of_edge(program: Program, y: Tensor, dy: Tensor) -> Tensor:
    """dy (B, m), and towards the edge of the domain, beside which functions bend like a logarithm, the step
    that is as long for the logarithm of the distance: Newton's for y log y, from any distance."""
    for open, room, sign in (
        (program.open_lower, y - program.lower, -1.0),
        (program.open_upper, program.upper - y, 1.0),
    ):
        share = sign * dy / room
        towards = open & (share > 0)
        # Never onto it.
        step = sign * room * -torch.expm1(-share.clamp_max(_LONGEST_LOG))
        dy = torch.where(towards, step, dy)
    return dy


def _share_of_room(program: Program, y: Tensor, dy: Tensor) -> Tensor:
    """How many times dy (B, m) the nearest bound ahead is away, (B,), but for those that it ends short of."""
    room = torch.where(dy < 0, y - program.lower, program.upper - y)
    short = torch.where(dy < 0, program.open_lower, program.open_upper)
    return torch.where((dy != 0) & ~short, room / dy.abs(), torch.inf).amin(dim=1)


def _newton_step(
    point: Point, multipliers: Multipliers, H: Tensor, at_bound: Tensor, held: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """dy with 0 at bounds, ν and λ of the equations h = 0 and of the held ones of g = 0.

    Of dependent equations those multipliers that are nearest to the given ones, which are positive.
    """
    rows = torch.cat([point.A, point.G * held.unsqueeze(2)], dim=1)
    values = torch.cat([point.h, torch.where(held, point.g, 0.0)], dim=1)
    free = ~at_bound
    rows = rows * free.unsqueeze(1)
    K = torch.where(free.unsqueeze(1) & free.unsqueeze(2), H, 0.0)
    lift = torch.where(free, 0.0, norm(K.flatten(1)).clamp_min(1e-30).unsqueeze(1))
    system = System(K + torch.diag_embed(lift), rows)
    before = torch.cat([multipliers.nu, torch.where(held, -multipliers.lam, 0.0)], dim=1)
    slope = torch.where(free, point.gradient - apply(rows.mT, before), 0.0)
    dy, change = system.solve(-slope, -values)
    found, p = before + change, point.h.shape[1]
    return torch.where(free, dy, 0.0), found[:, :p], torch.where(held, -found[:, p:], 0.0)


def chosen(items: Tensor, one: Polished, other: Polished) -> Polished:
    """The one in some items (B,), the other in the rest."""
    column = items.unsqueeze(1)
    pairs = zip(vars(one.multipliers).values(), vars(other.multipliers).values(), strict=True)
    return Polished(
        torch.where(column, one.y, other.y),
        Multipliers(*(torch.where(column, a, b) for a, b in pairs)),
        torch.where(items, one.error, other.error),
        one.steps,
    )


def size_of(y: Tensor) -> Tensor:
    """‖y‖ (B,), at least that of a y of units."""
    return norm(y).clamp_min(y.shape[1] ** 0.5)


def units_of(program: Program, start: Tensor) -> Tensor:
    """What each unknown is measured in, (B, m), see the text above."""
    y = program.within(start.nan_to_num(nan=0.0))
    point = program.at(y)
    none = torch.zeros_like(y)
    zeros = Multipliers(torch.zeros_like(point.h), torch.zeros_like(point.g), none, none)
    H = program.hessian(y, zeros)
    unit = _proportions(H, torch.cat([point.A, point.G], dim=1))
    row = unit.unsqueeze(1)
    gradient, A, G = point.gradient * unit, point.A * row, point.G * row
    size = _common_size(program, start, y, unit, point, gradient, A, G, H * row * row.mT)
    return torch.exp2((unit * size.unsqueeze(1)).log2().round().clamp(-300, 300))


def _proportions(H: Tensor, rows: Tensor) -> Tensor:
    """By which the unknowns are to be measured that the entries of H and of rows are alike, (B, m); all 1
    where they are within two orders of magnitude."""
    d, e = torch.ones_like(H[:, 0]), torch.ones_like(rows[:, :, 0])
    H, rows = H.abs(), rows.abs()
    for _ in range(_EQUILIBRATIONS):
        here, there = H * d.unsqueeze(1) * d.unsqueeze(2), rows * d.unsqueeze(1) * e.unsqueeze(2)
        largest = torch.cat([here, there], dim=1).amax(dim=1)
        d = d / torch.where(largest > 0, largest, 1.0).sqrt()
        if rows.shape[1]:
            largest = there.amax(dim=2)
            e = e / torch.where(largest > 0, largest, 1.0).sqrt()
    d = d / d.log().mean(dim=1, keepdim=True).exp()
    apart = d.amax(dim=1) > _APART * d.amin(dim=1)
    return torch.where((apart & d.isfinite().all(dim=1)).unsqueeze(1), d, 1.0)


def _common_size(
    program: Program,
    start: Tensor,
    y: Tensor,
    unit: Tensor,
    point: Point,
    gradient: Tensor,
    A: Tensor,
    G: Tensor,
    H: Tensor,
) -> Tensor:
    """The size of y (B,) in proportions ``unit``: of the start, of how far a step along −∇f goes to the least
    value, of how far off a violated constraint is; else of the distances from the constraints."""
    m = y.shape[1]
    slope = norm(gradient)
    curvature = (gradient * apply(H, gradient)).sum(dim=1).abs()
    sizes = [norm(y / unit) / m**0.5, slope**3 / curvature / m**0.5]
    if A.shape[1]:
        sizes.append((point.h.abs() / norm(A)).nan_to_num(nan=0, posinf=0).amax(dim=1))
    away = (point.g.abs() / norm(G)).nan_to_num(nan=0, posinf=0)
    if away.shape[1]:
        sizes.append(torch.where(point.g > 0, away, 0.0).amax(dim=1))
    sizes.append(((y - start).abs() / unit).nan_to_num(nan=0).amax(dim=1))
    size = torch.stack([x.nan_to_num(nan=0, posinf=0) for x in sizes]).amax(dim=0)
    rooms = torch.cat([(y - program.lower) / unit, (program.upper - y) / unit, away], dim=1)
    room = torch.where(rooms < torch.inf, rooms, 0.0).amax(dim=1)
    size = torch.where(size > 0, size, torch.where(room > 0, room, 1.0))
    # Between bounds on both sides no y is larger than they are.
    largest = torch.maximum(program.lower.abs(), program.upper.abs()) / unit
    largest = largest.nan_to_num(nan=torch.inf).amax(dim=1)
    size = torch.where(largest > 0, torch.minimum(size, largest), size)
    return torch.where(size.isfinite() & (size > 0), size, 1.0)


def lowest_curvature(program: Program, y: Tensor, H: Tensor, held: Held) -> tuple[Tensor, Tensor]:
    """The least curvature along the constraints that hold (B,), positive where they leave no direction, and
    a unit direction into all that are negative (B, m), the same on every processor."""
    point = program.at(y)
    free = ~(held.lower | held.upper | program.fixed)
    rows = torch.cat([point.A, point.G * held.g.unsqueeze(2)], dim=1) * free.unsqueeze(1)
    normal = row_basis(rows)
    P = torch.diag_embed(free.to(y.dtype)) - normal @ normal.mT
    # Beside the edge of a domain curvatures have no squares.
    size = H.abs().amax(dim=(1, 2)).clamp_min(1e-30)
    H = H / size.reshape(-1, 1, 1)
    # What the constraints leave no room for has a curvature above all others.
    above = 2 * norm(H.flatten(1)).clamp_min(1e-30).reshape(-1, 1, 1)
    eye = torch.eye(y.shape[1], dtype=y.dtype, device=y.device)
    values, vectors = torch.linalg.eigh(P @ H @ P + above * (eye - P))
    pattern = torch.arange(1, y.shape[1] + 1, dtype=y.dtype, device=y.device).cos().expand_as(y)
    down = apply(vectors, torch.where(values < 0, apply(vectors.mT, pattern), 0.0))
    return values[:, 0] * size, down / norm(down).clamp_min(torch.finfo(y.dtype).tiny).unsqueeze(1)


def is_minimum(program: Program, y: Tensor, H: Tensor, held: Held) -> Tensor:
    """Whether the curvature is not negative along the constraints that hold, beyond rounding, (B,)."""
    lowest, _ = lowest_curvature(program, y, H, held)
    return lowest >= -(torch.finfo(y.dtype).eps ** 0.5) * norm(H.flatten(1))
