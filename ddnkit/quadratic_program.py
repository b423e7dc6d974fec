"""QPNode: a quadratic program whose data are the inputs."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .errors import InputError, nearest_choice
from .linalg.items import apply
from .node import DeclarativeNode
from .problem import Problem
from .solution import Solution

#: Dimensions of each input of one problem.
_DIMS = {"Q": 2, "q": 1, "A": 2, "b": 1, "G": 2, "h": 1, "lower": 1, "upper": 1}
_PAIRS = (("A", "b"), ("G", "h"))
#: The relative error that the polish starts from, and the steps that are allowed up to there.
_NEAR, _MOST_STEPS = 1e-9, 50


class QPNode(DeclarativeNode):
    """min ½ yᵀQy + qᵀy over y (n,) subject to A y = b, G y ≤ h and lower ≤ y ≤ upper.

    Q is symmetric and positive semidefinite; its symmetric part is what is used. Every input may be one for
    the whole batch, or one for each item, and is differentiated.

    Args:
        constraints: the inputs besides Q (n, n) and q (n,), in the order in which they are given to the
            layer: A (p, n) and b (p,), G (k, n) and h (k,), lower (n,), upper (n,). Entries of lower and
            upper may be infinite.

    Example:
        >>> layer = ddnkit.DeclarativeLayer(ddnkit.QPNode("G", "h", "lower"))
        >>> y = layer(Q, q, G, h, lower)              # Q: (8, 5, 5), q: (8, 5), G: (3, 5)  ->  (8, 5)
        >>> y, multipliers = layer(Q, q, G, h, lower, return_multipliers=True)

    Source: Amos and Kolter, *OptNet* (ICML 2017), for quadratic programs as layers.
    """

    solver = "interior_point"

    def __init__(self, *constraints: str):
        self.names = ("Q", "q", *constraints)
        for name in constraints:
            if name not in _DIMS or name in ("Q", "q"):
                choices = [known for known in _DIMS if known not in ("Q", "q")]
                raise InputError(f"QPNode: no input {name!r}.{nearest_choice(str(name), choices)}")
        if len(set(self.names)) < len(self.names):
            raise InputError(f"QPNode: an input is named twice in {', '.join(constraints)}")
        for pair in _PAIRS:
            if len(set(pair) & set(constraints)) == 1:
                raise InputError(f"QPNode: {pair[0]} and {pair[1]} go together")
        self.input_dims = tuple(_DIMS[name] for name in self.names)

    def _data(self, xs: tuple[Any, ...]) -> dict[str, Tensor]:
        return dict(zip(self.names, xs, strict=True))

    def objective(self, *xs: Any, **named: Any) -> Tensor:
        """½ yᵀQy + qᵀy."""
        data, y = self._data(xs), named["y"]
        value: Tensor = 0.5 * y @ (data["Q"] @ y) + data["q"] @ y
        return value

    def equality_constraints(self, *xs: Any, **named: Any) -> Tensor | None:
        """A y − b."""
        data = self._data(xs)
        return data["A"] @ named["y"] - data["b"] if "A" in data else None

    def inequality_constraints(self, *xs: Any, **named: Any) -> Tensor | None:
        """G y − h."""
        data = self._data(xs)
        return data["G"] @ named["y"] - data["h"] if "G" in data else None

    def bounds(self, *xs: Any) -> tuple[Tensor | None, Tensor | None]:
        """lower, upper."""
        data = self._data(xs)
        return data.get("lower"), data.get("upper")

    def initial_point(self, *xs: Any, **named: Any) -> Tensor:
        """0, or the bound nearest to it."""
        data = self._data(xs)
        y = torch.zeros_like(data["q"])
        return y.clamp(min=data.get("lower"), max=data.get("upper")) if self._has_bounds else y

    def solve_problem(self, problem: Problem, start: Tensor | None = None) -> Solution:
        """All items at once by their matrices, then polished by the node's solver."""
        near = None
        if start is None and problem.batch_size and self.solver == QPNode.solver:
            data = self._batch(problem)
            y = _InteriorPoint(data, _NEAR, _MOST_STEPS).run()
            found = y.isfinite().all(dim=1, keepdim=True)
            near = torch.where(found, y, problem.start().to(y)).to(problem.inputs[0].dtype)
        return super().solve_problem(problem, near if start is None else start)

    def _batch(self, problem: Problem) -> _Data:
        given = {name: x.detach().double() for name, x in self._data(problem.inputs).items()}
        Q, q = given["Q"], given["q"]
        none = q.new_zeros(len(q), 0)
        A, b = _unit_rows(given.get("A", q.unsqueeze(1)[:, :0]), given.get("b", none))
        C, d = _unit_rows(given.get("G", q.unsqueeze(1)[:, :0]), given.get("h", none))
        free = torch.full_like(q, torch.inf)
        low, high = given.get("lower", -free), given.get("upper", free)
        return _Data((Q + Q.mT) / 2, q, A, b, C, d, low, high)

    @property
    def _has_bounds(self) -> bool:
        return bool({"lower", "upper"} & set(self.names))


class _Data(NamedTuple):
    """A batch of programs with rows of length one: A y = b, C y ≤ d, low ≤ y ≤ high (B, n), ±∞ for none."""

    Q: Tensor
    q: Tensor
    A: Tensor
    b: Tensor
    C: Tensor
    d: Tensor
    low: Tensor
    high: Tensor

    @property
    def sides(self) -> tuple[Tensor, Tensor]:
        """Which bounds there are."""
        return self.low.isfinite(), self.high.isfinite()


def _unit_rows(rows: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    length = rows.norm(dim=-1)
    length = torch.where(length > 0, length, 1.0)
    return rows / length.unsqueeze(-1), right / length


class _InteriorPoint:
    """Mehrotra's predictor-corrector for a batch of convex quadratic programs.

    With slacks s = d − C y, and those of the bounds, and multipliers λ, each step solves
        (Q + Cᵀ diag(λ/s) C + diag(bounds)) dy − Aᵀ dν = r,     A dy = …
    by a Cholesky factor of the first matrix, which predictor and corrector share, and one of its Schur
    complement. An item that is done takes no more steps.

    Source: Mehrotra (1992); Nocedal and Wright, *Numerical Optimization*, section 16.6.
    """

    def __init__(self, data: _Data, tolerance: float, most: int):
        self.data, self.tolerance, self.most = data, tolerance, most
        self.rows = data.C.shape[1]
        lower, upper = data.sides
        #: 1 for rows and bounds that are there: of C, then lower, then upper.
        self.there = torch.cat([torch.ones_like(data.d), lower.to(data.q), upper.to(data.q)], dim=1)
        self.count = self.there.sum(dim=1).clamp(min=1)
        self.low = torch.where(lower, data.low, 0.0)
        self.high = torch.where(upper, data.high, 0.0)

    def slack(self, y: Tensor) -> Tensor:
        """d − C y, y − low, high − y; 1 where there is no bound."""
        D = self.data
        found = torch.cat([D.d - apply(D.C, y), y - self.low, self.high - y], dim=1)
        return torch.where(self.there > 0, found, 1.0)

    def lift(self, lam: Tensor) -> Tensor:
        """Cᵀλ of all of them, (B, n)."""
        k, n = self.rows, self.data.q.shape[1]
        return apply(self.data.C.mT, lam[:, :k]) - lam[:, k : k + n] + lam[:, k + n :]

    def push(self, dy: Tensor) -> Tensor:
        """C dy of all of them."""
        return torch.cat([apply(self.data.C, dy), -dy, dy], dim=1) * self.there

    def factorise(self, weight: Tensor) -> None:
        """The factors for weights λ/s."""
        D, (k, n) = self.data, (self.rows, self.data.q.shape[1])
        H = D.Q + D.C.mT @ (weight[:, :k].unsqueeze(-1) * D.C)
        diagonal = weight[:, k : k + n] + weight[:, k + n :]
        # Of the size of Q's own rounding: weights grow without bound.
        size = D.Q.diagonal(dim1=1, dim2=2).abs().amax(dim=1, keepdim=True)
        ridge = 8 * n * torch.finfo(H.dtype).eps * torch.where(size > 0, size, 1.0)
        H = H + torch.diag_embed(diagonal + ridge)
        self.L, _ = torch.linalg.cholesky_ex(H)
        self.X = torch.cholesky_solve(D.A.mT, self.L)
        if D.A.shape[1]:
            S = D.A @ self.X
            size = S.diagonal(dim1=1, dim2=2).abs().amax(dim=1, keepdim=True)
            ridge = 8 * n * torch.finfo(H.dtype).eps * torch.where(size > 0, size, 1.0)
            self.S, _ = torch.linalg.cholesky_ex(S + torch.diag_embed(ridge.expand(S.shape[:2])))

    def solve(self, r: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """dy and dν with H dy − Aᵀdν = r, A dy = c."""
        u = torch.cholesky_solve(r.unsqueeze(-1), self.L).squeeze(-1)
        if not self.data.A.shape[1]:
            return u, c
        left = (c - apply(self.data.A, u)).unsqueeze(-1)
        nu = torch.cholesky_solve(left, self.S).squeeze(-1)
        return u + apply(self.X, nu), nu

    def _direction(
        self, target: Tensor, rd: Tensor, rp: Tensor, re: Tensor, s: Tensor, lam: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """dy, dν, ds, dλ with s dλ + λ ds = target and ds = rp − C dy."""
        right = (target - lam * rp) / s
        dy, dnu = self.solve(rd - self.lift(self.there * right), re)
        ds = self.there * (rp - self.push(dy))
        return dy, dnu, ds, self.there * (target - lam * ds) / s

    def run(self) -> Tensor:
        """y, near the solution of each item that has one."""
        D, there = self.data, self.there
        self.factorise(there)
        y, nu = self.solve(self.lift(there * self.slack(torch.zeros_like(D.q))) - D.q, D.b)
        s = self.slack(y)
        least = torch.where(there > 0, s, torch.inf).amin(dim=1, keepdim=True)
        size = s.abs().amax(dim=1, keepdim=True).clamp(min=1e-3)
        s = torch.where(least > 0.1 * size, s, s - least.clamp(max=0) + size)
        s = torch.where(there > 0, s, 1.0)
        of_slope = D.Q.abs().amax(dim=(1, 2)) + D.q.abs().amax(dim=1)
        lam = there * of_slope.clamp(min=1e-3).unsqueeze(1)
        done = torch.zeros_like(self.count, dtype=torch.bool)
        of_q = D.q.norm(dim=1) + D.Q.flatten(1).norm(dim=1)
        for _ in range(self.most):
            Qy = apply(D.Q, y)
            rd = -(Qy + D.q - apply(D.A.mT, nu) + self.lift(lam))
            rp = self.slack(y) - s
            re = D.b - apply(D.A, y)
            gap = (s * lam).sum(dim=1)
            mu = gap / self.count
            scale = of_q + Qy.norm(dim=1)
            scale_y = 1e-12 * of_q + y.norm(dim=1) + D.d.norm(dim=1) + D.b.norm(dim=1)
            scale_y = scale_y + self.low.norm(dim=1) + self.high.norm(dim=1)
            value = (0.5 * (y * Qy).sum(dim=1)).abs() + (D.q * y).sum(dim=1).abs() + scale * scale_y
            ok = (rd.norm(dim=1) <= self.tolerance * scale) & (gap <= self.tolerance * value)
            ok = ok & ((rp * there).norm(dim=1) + re.norm(dim=1) <= self.tolerance * scale_y)
            done = done | ok
            active = ~done & y.isfinite().all(dim=1)
            if not bool(active.any()):
                break
            weight = there * lam / s
            self.factorise(weight)

            at = (rd, rp, re, s, lam)
            _, _, ds, dlam = self._direction(-s * lam, *at)
            reach = torch.minimum(_to_boundary(s, ds), _to_boundary(lam, dlam)).unsqueeze(1)
            after = ((s + reach * ds) * (lam + reach * dlam) * there).sum(dim=1) / self.count
            sigma = (after / mu).clamp(0, 1) ** 3
            dy, dnu, ds, dlam = self._direction(
                (sigma * mu).unsqueeze(1) - s * lam - ds * dlam, *at
            )
            reach = torch.minimum(_to_boundary(s, ds), _to_boundary(lam, dlam))
            step = (torch.where(reach < 1, 0.995, 1.0) * reach * active).unsqueeze(1)
            moved = (y + step * dy, nu + step * dnu, s + step * ds, lam + step * dlam)
            sound = torch.stack([x.isfinite().all(dim=1) for x in moved]).all(dim=0) & active
            keep = sound.unsqueeze(1)
            y, nu, s, lam = (
                torch.where(keep, a, b) for a, b in zip(moved, (y, nu, s, lam), strict=True)
            )
            if not bool(sound.any()):
                break
        return y


def _to_boundary(x: Tensor, dx: Tensor) -> Tensor:
    """How far along dx each item (B,) may go with x > 0, at most 1."""
    ratio = torch.where(dx < 0, -x / dx, torch.inf)
    return ratio.amin(dim=1).clamp(max=1.0)
