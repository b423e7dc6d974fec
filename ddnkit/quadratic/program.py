"""QuadraticProgram: a batch of programs as matrices, and what is measured of a solution.

    minimise ½ yᵀQy + qᵀy  subject to  low ≤ C y ≤ high,
rows of C that are equations having low = high, bounds of y being rows ±eⱼ. At a solution a set S of rows
holds with equality, and
    Q y + q + Cᵀw = 0,      C_S y = t,      w = 0 off S,      w ≥ 0 at high, w ≤ 0 at low,
t being the side that holds.

All of a batch has one leading dimension: of the batch, or 1 for what its items share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

#: Of matrices with so many entries in all, the rows that hold are taken out for a factorisation.
_LARGE = 40_000


@dataclass
class QuadraticProgram:
    """A batch of programs, b being B or 1.

    Attributes:
        Q: (b, n, n), symmetric. q: (B, n).
        C: (b, r, n). high: (B, r), infinite where there is none.
        low: (B, r), −∞ where there is none; None where no row but equations has a lower side.
        fixed: rows that always hold with equality (B or 1, r); None where there are none.
        equations, inequalities: how many rows of C these are; bounds of y are the last n, if there are any.
        sign: of those: −1 for −y ≤ −lower, 1 for y; 0 without bounds.
        eps: unit roundoff of the data, which may have been given in float32.
    """

    Q: Tensor
    q: Tensor
    C: Tensor
    high: Tensor
    low: Tensor | None
    fixed: Tensor | None
    equations: int
    inequalities: int
    sign: int
    eps: float

    @classmethod
    def from_data(cls, given: Mapping[str, Tensor], size: int) -> QuadraticProgram:
        """From the inputs of a `QPNode` by name, detached, each (B, …) or (1, …)."""
        eps = max(*map(_roundoff, given.values()), torch.finfo(torch.float64).eps)
        given = {name: x.double() for name, x in given.items()}
        Q, q = given["Q"], given["q"]
        n = q.shape[-1]
        q = q.expand(size, n)
        rows = [given[name] for name in ("A", "G") if name in given]
        sides = [given[name].expand(size, -1) for name in ("b", "h") if name in given]
        p = given["A"].shape[1] if "A" in given else 0
        k = given["G"].shape[1] if "G" in given else 0
        lower, upper = given.get("lower"), given.get("upper")
        sign, low, fixed = 0, None, None
        bound = upper
        if upper is not None:
            sign = 1
        elif lower is not None:
            sign, bound = -1, -lower
        if bound is not None:
            rows.append(sign * eye(n, q).unsqueeze(0))
            sides.append(bound.expand(size, n))
        high = sides[0] if len(sides) == 1 else torch.cat(sides or [q[:, :0]], dim=1)
        C = rows[0] if len(rows) == 1 else _joined(rows, Q)
        if p:
            fixed = torch.arange(C.shape[1], device=q.device).unsqueeze(0) < p
        if lower is not None and upper is not None:
            low = torch.cat(
                [high.new_full((size, p + k), -torch.inf), lower.expand(size, n)], dim=1
            )
            equal = low == high
            fixed = equal if fixed is None else equal | fixed
        return cls((Q + Q.mT) * 0.5, q, C, high, low, fixed, p, k, sign, eps)

    def of(self, items: Tensor) -> QuadraticProgram:
        """Those of some items, indices."""

        def part(x: Tensor) -> Tensor:
            return x if len(x) == 1 and len(self.q) > 1 else x[items]

        return QuadraticProgram(
            part(self.Q), self.q[items], part(self.C), self.high[items],
            None if self.low is None else self.low[items],
            None if self.fixed is None else part(self.fixed),
            self.equations, self.inequalities, self.sign, self.eps,
        )  # fmt: skip

    @property
    def least_pivot(self) -> float:
        """Of Q's diagonal, what a pivot of Q is above where Q is definite whatever its rounding."""
        return 16 * self.Q.shape[1] * self.eps

    def negative_curvature(self) -> Tensor:
        """Of Q along the equations, the least curvature relative to the largest, (B,); 0 where none is
        negative beyond the data's rounding.

        In units of y in which the curvature of each unknown is 1, or −1.
        """
        diagonal = self.Q.diagonal(dim1=1, dim2=2).abs()
        unit = torch.where(diagonal > 0, diagonal.rsqrt(), 1.0)
        H = unit.unsqueeze(2) * self.Q * unit.unsqueeze(1)
        if self.equations:
            A = self.C[:, : self.equations] * unit.unsqueeze(1)
            length = _norm(A).unsqueeze(2)
            _, sizes, rows = torch.linalg.svd(A / torch.where(length > 0, length, 1.0))
            real = torch.zeros_like(rows[:, :, 0])
            real[:, : sizes.shape[1]] = (sizes > 64 * self.eps * sizes.shape[1]).to(real)
            along = rows * (1 - real).unsqueeze(2)
            H = along @ H @ along.mT
        values = torch.linalg.eigvalsh(H)
        size = values.abs().amax(dim=1)
        relative = torch.where(size > 0, values[:, 0] / size, 0.0)
        rounding = 64 * H.shape[1] * self.eps
        return torch.where(relative < -rounding, relative, 0.0).expand(len(self.q))

    @property
    def pinned(self) -> Tensor:
        """Of which items a lower bound is an upper one (B,): neither has a derivative of its own there."""
        none = torch.zeros_like(self.q[:, 0], dtype=torch.bool)
        return none if self.low is None else (self.low == self.high).any(dim=1)

    @property
    def first_bound(self) -> int:
        """The row of C from which on bounds of y are."""
        return self.equations + self.inequalities

    def target(self, down: Tensor | None) -> Tensor:
        """The side of each row (B, r): low where ``down``."""
        if self.low is None or down is None:
            return self.high
        return torch.where(down, self.low, self.high)

    def multipliers(
        self, w: Tensor, rows: ActiveRows
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """ν, λ of the inequalities, and those of lower and upper bounds, in L = f − νᵀh + λᵀg, from the
        multipliers w (B, r) of the rows."""
        first = self.first_bound
        of_bounds, lower, upper = w[:, first:], None, None
        if self.sign < 0:
            lower = _lifted(of_bounds)
        elif self.sign > 0:
            upper = _lifted(of_bounds)
        if self.low is not None:
            assert rows.down is not None
            # Of a row whose sides are one the sign tells which one holds.
            same = self.low[:, first:] == self.high[:, first:]
            down = torch.where(same, of_bounds < 0, rows.down[:, first:])
            lower = _lifted(torch.where(down, -of_bounds, 0.0))
            upper = _lifted(torch.where(down, 0.0, of_bounds))
        return -w[:, : self.equations], _lifted(w[:, self.equations : first]), lower, upper

    def rows_of(
        self, nu: Tensor, lam: Tensor, lower: Tensor | None, upper: Tensor | None
    ) -> Tensor:
        """w (B, r) of these multipliers: the reverse of `multipliers`."""
        parts = [-nu, lam]
        if lower is not None and upper is not None:
            parts.append(upper - lower)
        else:
            parts += [x for x in (lower, upper) if x is not None]
        return torch.cat(parts, dim=1)

    def slope(self, y: Tensor, w: Tensor) -> Tensor:
        """Q y + q + Cᵀw, (B, n)."""
        return times(self.Q, y) + self.q + times(self.C.mT, w)


def _roundoff(x: Tensor) -> float:
    return float(torch.finfo(x.dtype).eps) if x.is_floating_point() else 0.0


def _lifted(multiplier: Tensor) -> Tensor:
    """Of a weakly active row rounding may be below zero, which makes no difference to its derivative."""
    return multiplier + (multiplier.clamp_min(0.0) - multiplier).detach()


def _joined(rows: list[Tensor], Q: Tensor) -> Tensor:
    if not rows:
        return Q[:, :0]
    size = max(map(len, rows))
    return torch.cat([x.expand(size, *x.shape[1:]) for x in rows], dim=1)


def times(matrices: Tensor, v: Tensor) -> Tensor:
    """Matrices (b, p, m) times vectors (B, m)."""
    # Not by `len`, which goes through Python and takes as long as a small product.
    if matrices.shape[0] == 1 and v.shape[0] > 1:
        return v @ matrices[0].mT
    return torch.bmm(matrices, v.unsqueeze(-1)).squeeze(-1)


@dataclass
class ActiveRows:
    """Which rows hold with equality (B, r), and which of them at their lower side (None: no row has one)."""

    held: Tensor
    down: Tensor | None

    def of(self, items: Tensor) -> ActiveRows:
        """Those of some items."""
        return ActiveRows(self.held[items], None if self.down is None else self.down[items])


class RowFactors:
    """Cholesky factors of M_SS for a matrix M (b, r, r) and rows S of each item.

    Attributes:
        K: (B, s, s); rows that stand for none of S are those of the identity. held: S, (B, r).
        index: which rows these are, (B, s), in order; None where they are all of them, s = r.
        info: what the factorisation says, (B,), not 0 where it failed.

    Args:
        lift: what is added to the diagonal, relative. identity: (r, r), where there is one already.
    """

    __slots__ = ("K", "held", "index", "info")

    def __init__(
        self, M: Tensor, held: Tensor, lift: float = 0.0, identity: Tensor | None = None
    ) -> None:
        size, r = held.shape
        self.held, self.index = held, None
        if r * r * size >= _LARGE:
            most = int(held.sum(dim=1).max())
            if most <= r - r // 8:
                self.index = _rows_in_order(held, most)
        if self.index is None:
            identity = eye(r, M) if identity is None else identity
            matrix = torch.where(held.unsqueeze(1) & held.unsqueeze(2), M, identity)
        else:
            real = held.gather(1, self.index)
            rows, columns = self.index.unsqueeze(2), self.index.unsqueeze(1)
            items = torch.arange(size, device=M.device).reshape(-1, 1, 1)
            matrix = M[0][rows, columns] if M.shape[0] < size else M[items, rows, columns]
            both = real.unsqueeze(1) & real.unsqueeze(2)
            matrix = torch.where(both, matrix, eye(matrix.shape[1], M))
        if lift:
            matrix = matrix + torch.diag_embed(lift * matrix.diagonal(dim1=1, dim2=2))
        self.K, self.info = torch.linalg.cholesky_ex(matrix)

    def solve(self, right: Tensor) -> Tensor:
        """M_SS⁻¹ of the entries of S, (B, r), zero off S."""
        right = torch.where(self.held, right, 0.0)
        if self.index is None:
            return cholesky_solve(right, self.K)
        found = cholesky_solve(right.gather(1, self.index), self.K)
        return torch.zeros_like(right).scatter(1, self.index, found)

    def is_clear(self, least: float) -> Tensor:
        """Whether each pivot is above ``least`` times its diagonal, (B,)."""
        diagonal = self.K.square().sum(dim=2)
        return (self.info == 0) & is_clear(self.K, diagonal, least)

    def unpacked(self) -> Tensor:
        """K for all rows, (B, r, r)."""
        if self.index is None:
            return self.K
        whole = eye(self.held.shape[1], self.K).expand(len(self.K), -1, -1).clone()
        items = torch.arange(len(whole), device=whole.device).reshape(-1, 1, 1)
        whole[items, self.index.unsqueeze(2), self.index.unsqueeze(1)] = self.K
        return whole

    def of(self, items: Tensor) -> RowFactors:
        """Those of some items."""
        part = RowFactors.__new__(RowFactors)
        part.K, part.held, part.info = self.K[items], self.held[items], self.info[items]
        part.index = None if self.index is None else self.index[items]
        return part

    def put(self, items: Tensor, other: RowFactors, of: Tensor) -> None:
        """Have those of ``other`` for its items ``of`` in the place of these items'."""
        self.K, self.index = self.unpacked(), None
        self.K[items], self.held[items] = other.unpacked()[of], other.held[of]


def is_clear(L: Tensor, diagonal: Tensor, least: float) -> Tensor:
    """Whether the pivots of Cholesky factors are above ``least`` times the matrices' diagonals, (B,)."""
    return (L.diagonal(dim1=1, dim2=2).square() > least * diagonal).all(dim=1)


def eye(size: int, like: Tensor) -> Tensor:
    """The identity, of the type of another matrix."""
    return torch.eye(size, dtype=like.dtype, device=like.device)


def _rows_in_order(held: Tensor, most: int) -> Tensor:
    """The first ``most`` rows of each item when those that hold come first, each sort in order."""
    place = torch.arange(held.shape[1], device=held.device)
    return torch.topk(torch.where(held, -place, -place - len(place)), most, dim=1).indices


class Factors:
    """[Q C_Sᵀ; C_S 0], by Cholesky factors of Q, or Q + ρC_SᵀC_S where that is not definite, and of M_SS.

    Attributes:
        L: of Q, (b, n, n). W: Q⁻¹Cᵀ, (b, n, r). rows: of M = C Q⁻¹Cᵀ.
    """

    __slots__ = ("L", "W", "rows")

    def __init__(self, L: Tensor, W: Tensor, rows: RowFactors):
        self.L, self.W, self.rows = L, W, rows

    def of(self, items: Tensor) -> Factors:
        """Those of some items."""
        batch = len(self.rows.held)
        L, W = (x if len(x) == 1 and batch > 1 else x[items] for x in (self.L, self.W))
        return Factors(L, W, self.rows.of(items))

    def solve(self, C: Tensor, first: Tensor, second: Tensor | None) -> tuple[Tensor, Tensor]:
        """z (B, n) and μ (B, r), zero off S, with  Q z + Cᵀμ = first,  C_S z = second (None for 0)."""
        return self.solve_from(C, cholesky_solve(first, self.L), second)

    def solve_from(self, C: Tensor, free: Tensor, second: Tensor | None) -> tuple[Tensor, Tensor]:
        """The same from Q⁻¹ first."""
        short = times(C, free) if second is None else times(C, free) - second
        mu = self.rows.solve(short)
        return free - times(self.W, mu), mu


def cholesky_solve(right: Tensor, L: Tensor) -> Tensor:
    """For one right side (B, n) of each item, factors (b, n, n)."""
    if L.shape[0] == 1 and right.shape[0] > 1:
        return torch.cholesky_solve(right.mT, L[0]).mT
    return torch.cholesky_solve(right.unsqueeze(-1), L).squeeze(-1)


@dataclass
class Figures:
    """What is measured at y, per item (B,), all relative.

    Attributes:
        stationarity: of Q y + q + Cᵀw beside its terms. uneven: the worst entry, each beside its own.
        feasibility: of the worst row, beside |C||y| + |t|.
        clear: how clear it is of each row (B, r) whether it holds: the slacks of those that do not and the
            multipliers of the others, relative to how much a relative change of the data changes them.
    """

    stationarity: Tensor
    uneven: Tensor
    feasibility: Tensor
    clear: Tensor

    def of(self, items: Tensor) -> Figures:
        """Those of some items."""
        return Figures(
            self.stationarity[items], self.uneven[items], self.feasibility[items], self.clear[items]
        )

    @property
    def margin(self) -> Tensor:
        """How clear the active set is, (B,)."""
        if not self.clear.shape[1]:
            return torch.full_like(self.stationarity, torch.inf)
        return self.clear.amin(dim=1)


def figures_at(program: QuadraticProgram, y: Tensor, w: Tensor, rows: ActiveRows) -> Figures:
    """Of y (B, n) and multipliers (B, r) of the rows that hold."""
    Q, C, held = program.Q, program.C, rows.held
    size = y.abs()
    of_slope = times(Q.abs(), size) + program.q.abs()
    pull = times(C.mT, w)
    slope = times(Q, y) + program.q + pull
    scale = of_slope + pull.abs()
    # 0/0 of an item, an entry, or a row, that holds exactly at 0 is no error.
    stationarity = _relative(_norm(slope), _norm(scale))
    uneven = _relative(slope.abs(), scale).amax(dim=1)
    if not C.shape[1]:
        return Figures(stationarity, uneven, torch.zeros_like(stationarity), C.new_zeros(len(y), 0))

    value, target = times(C, y), program.target(rows.down)
    parts = C.abs()
    known = target.masked_fill(target.abs() == torch.inf, 0.0).abs()
    of_row = times(parts, size) + known
    room = program.high - value
    if program.low is not None:
        room = torch.minimum(room, value - program.low)
    off = torch.where(held, (value - target).abs(), 0.0)
    # Of a row that holds too, as its sides may have changed places.
    off = torch.maximum(off, (-room).clamp_min(0.0))
    error = _relative(off, of_row)
    lengths = C.square().sum(dim=2)
    strength = _relative(w.abs() * lengths, times(parts, of_slope))
    clear = torch.where(held, strength, _relative(room, of_row))
    # 0 ≤ 0 says nothing of y.
    clear = clear.masked_fill((lengths == 0) & ~held, torch.inf)
    if program.fixed is not None:
        clear = clear.masked_fill(program.fixed, torch.inf)
    return Figures(stationarity, uneven, error.amax(dim=1), clear)


def _relative(x: Tensor, size: Tensor) -> Tensor:
    return torch.where(x == 0, 0.0, x / size)


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1)
