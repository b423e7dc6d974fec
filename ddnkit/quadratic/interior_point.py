"""Mehrotra's interior point, for convex quadratic programs that pivoting does not solve.

All items at once, in matrices, to a relative error from which it can be told which rows hold.

Source: Mehrotra (1992); Nocedal and Wright, *Numerical Optimization*, section 16.6.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .program import QuadraticProgram, cholesky_solve, times

#: The relative error at the end, and the steps that are allowed up to there.
_NEAR, _MOST_STEPS = 1e-9, 50


@dataclass
class Near:
    """A point near the solution of each item that has one.

    Attributes:
        y: (B, n). slack, multiplier: of the upper sides of the rows, then of the lower ones, (B, r) or
            (B, 2r); of rows of length one, 1 and 0 where there is no such side.
        found: whether the relative error was reached, (B,). steps: (B,).
    """

    y: Tensor
    slack: Tensor
    multiplier: Tensor
    found: Tensor
    steps: Tensor


def find_near(program: QuadraticProgram, tolerance: float = _NEAR) -> Near:
    """Iterate every item until it is done; see `Near`."""
    return _Run(program, tolerance).run()


class _Run:
    """Predictor and corrector share the factors of one matrix.

    With slacks s = d − G y of the rows G that are no equations, and multipliers λ, each step solves
        (Q + Gᵀ diag(λ/s) G) dy − Aᵀ dν = …,     A dy = …
    by a Cholesky factor of the first matrix and one of its Schur complement. An item that is done takes no
    more steps.
    """

    def __init__(self, program: QuadraticProgram, tolerance: float):
        self.Q, self.q, self.tolerance = program.Q, program.q, tolerance
        p, batch = program.equations, len(program.q)
        length = torch.linalg.vector_norm(program.C, dim=2)
        length = torch.where(length > 0, length, 1.0)
        rows = program.C / length.unsqueeze(2)
        high = program.high / length
        self.A, self.b = rows[:, :p], high[:, :p]
        self.G, upper = rows[:, p:], high[:, p:]
        self.two_sided = program.low is not None
        sides = upper
        if program.low is not None:
            sides = torch.cat([upper, -(program.low / length)[:, p:]], dim=1)
        there = sides.abs() < torch.inf
        self.there = there.to(sides).expand(batch, -1)
        self.sides = torch.where(there, sides, 0.0)
        self.count = self.there.sum(dim=1).clamp_min(1)

    def slack(self, y: Tensor) -> Tensor:
        """d − G y, also of lower sides; 1 where there is none."""
        value = times(self.G, y)
        value = torch.cat([value, -value], dim=1) if self.two_sided else value
        return torch.where(self.there > 0, self.sides - value, 1.0)

    def lift(self, lam: Tensor) -> Tensor:
        """Gᵀλ of all of them, (B, n)."""
        k = self.G.shape[1]
        return times(self.G.mT, lam[:, :k] - lam[:, k:] if self.two_sided else lam)

    def push(self, dy: Tensor) -> Tensor:
        """G dy of all of them."""
        value = times(self.G, dy)
        return (torch.cat([value, -value], dim=1) if self.two_sided else value) * self.there

    def factorise(self, weight: Tensor) -> None:
        """The factors for weights λ/s."""
        k, n = self.G.shape[1], self.Q.shape[1]
        weight = weight[:, :k] + weight[:, k:] if self.two_sided else weight
        H = self.Q + self.G.mT @ (weight.unsqueeze(2) * self.G)
        # Of the size of Q's own rounding: weights grow without bound.
        eps = 8 * n * torch.finfo(H.dtype).eps
        H = H + torch.diag_embed((eps * self._size_of(self.Q)).expand(len(H), n))
        self.L, _ = torch.linalg.cholesky_ex(H)
        if self.A.shape[1]:
            self.X = torch.cholesky_solve(self.A.mT.expand(len(H), n, -1), self.L)
            S = self.A @ self.X
            ridge = (eps * self._size_of(S)).expand(S.shape[:2])
            self.S, _ = torch.linalg.cholesky_ex(S + torch.diag_embed(ridge))

    @staticmethod
    def _size_of(matrix: Tensor) -> Tensor:
        size = matrix.diagonal(dim1=1, dim2=2).abs().amax(dim=1, keepdim=True)
        return torch.where(size > 0, size, 1.0)

    def solve(self, r: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """dy and dν with H dy − Aᵀdν = r, A dy = c."""
        u = cholesky_solve(r, self.L)
        if not self.A.shape[1]:
            return u, c
        nu = cholesky_solve(c - times(self.A, u), self.S)
        return u + times(self.X, nu), nu

    def _direction(
        self, target: Tensor, rd: Tensor, rp: Tensor, re: Tensor, s: Tensor, lam: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """dy, dν, ds, dλ with s dλ + λ ds = target and ds = rp − G dy."""
        right = (target - lam * rp) / s
        dy, dnu = self.solve(rd - self.lift(self.there * right), re)
        ds = self.there * (rp - self.push(dy))
        return dy, dnu, ds, self.there * (target - lam * ds) / s

    def run(self) -> Near:
        """From a point in the middle."""
        Q, q, there = self.Q, self.q, self.there
        self.factorise(there)
        y, nu = self.solve(self.lift(there * self.slack(torch.zeros_like(q))) - q, self.b)
        s = self.slack(y)
        k = s.shape[1]
        if k:
            least = torch.where(there > 0, s, torch.inf).amin(dim=1, keepdim=True)
            size = s.abs().amax(dim=1, keepdim=True).clamp_min(1e-3)
            s = torch.where(least > 0.1 * size, s, s - least.clamp_max(0) + size)
            s = torch.where(there > 0, s, 1.0)
        of_slope = Q.abs().amax(dim=(1, 2)) + q.abs().amax(dim=1)
        lam = there * of_slope.clamp_min(1e-3).unsqueeze(1)
        steps = torch.zeros(len(q), dtype=torch.long, device=q.device)
        done = torch.zeros_like(steps, dtype=torch.bool)
        of_q = q.norm(dim=1) + Q.flatten(1).norm(dim=1)
        of_sides = self.sides.norm(dim=1) + self.b.norm(dim=1)
        for _ in range(_MOST_STEPS):
            Qy = times(Q, y)
            rd = -(Qy + q - times(self.A.mT, nu) + self.lift(lam))
            rp = self.slack(y) - s
            re = self.b - times(self.A, y)
            gap = (s * lam).sum(dim=1)
            mu = gap / self.count
            scale = of_q + Qy.norm(dim=1)
            scale_y = 1e-12 * of_q + y.norm(dim=1) + of_sides
            value = (0.5 * (y * Qy).sum(dim=1)).abs() + (q * y).sum(dim=1).abs() + scale * scale_y
            ok = (rd.norm(dim=1) <= self.tolerance * scale) & (gap <= self.tolerance * value)
            ok = ok & ((rp * there).norm(dim=1) + re.norm(dim=1) <= self.tolerance * scale_y)
            done = done | ok
            active = ~done & y.isfinite().all(dim=1)
            if not bool(active.any()):
                break
            self.factorise(there * lam / s)

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
            steps = steps + sound
            if not bool(sound.any()):
                break
        return Near(y, s, lam, done, steps)


def _to_boundary(x: Tensor, dx: Tensor) -> Tensor:
    """How far along dx each item (B,) may go with x > 0, at most 1."""
    if not x.shape[1]:
        return torch.ones_like(x.sum(dim=1))
    ratio = torch.where(dx < 0, -x / dx, torch.inf)
    return ratio.amin(dim=1).clamp(max=1.0)
