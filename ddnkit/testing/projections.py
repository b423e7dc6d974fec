"""Projections on sets that are stated by inequalities: min ½‖y − x‖² over a set, whose answers are known.

Samples are away from kinks: which constraints hold as equations is clear.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .known_problem import ClosedFormProblem

Parts = dict[str, Tensor]


class Projection(ClosedFormProblem):
    """min ½‖y − x‖², x being the first input."""

    def objective(self, *xs: Any, **named: Any) -> Tensor:
        """½‖y − x‖²."""
        value: Tensor = ((named["y"] - xs[0]) ** 2).sum() / 2
        return value

    def initial_point(self, *xs: Any, **named: Any) -> Any:
        """x, mostly outside of the set."""
        return xs[0].clone()


class ProjectionOnBox(Projection):
    """Of lower ≤ y ≤ upper: each entry is clamped, and moves with x or with the bound that it is at."""

    input_dims = (1, 1, 1)

    def bounds(self, x: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """lower, upper."""
        return lower, upper

    def answer(self, x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        """x, clamped."""
        return torch.minimum(torch.maximum(x, lower), upper)

    def jacobians(self, x: Tensor, lower: Tensor, upper: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """diag of where y is inside, below and above."""
        low, high = x < lower, x > upper
        return tuple(torch.diag(where.to(x)) for where in (~(low | high), low, high))

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """x in R⁵: two entries inside of bounds about ±1, one beyond one of them, two beyond the other."""
        lower, upper, depth = 0.5 + torch.rand(3, 5, dtype=torch.float64)
        x = torch.stack([depth[0] - 1, upper[1] + depth[1], -lower[2] - depth[2]])
        return torch.cat([x, -lower[3:4] - depth[3:4], depth[4:] / 4]), -lower, upper


class ProjectionOnMaxNormBall(Projection):
    """Of −r ≤ y ≤ r, the ball of the norm max |yᵢ|: one number bounds all entries."""

    input_dims = (1, 0)

    def bounds(self, x: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        """−r, r."""
        return -r, r

    def answer(self, x: Tensor, r: Tensor) -> Tensor:
        """x, clamped."""
        return torch.minimum(torch.maximum(x, -r), r)

    def jacobians(self, x: Tensor, r: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """diag(inside), sign(x) outside."""
        outside = x.abs() > r
        return torch.diag((~outside).to(x)), torch.where(outside, x.sign(), 0.0)

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """x in R⁴ with two entries inside and two outside, r in [1, 2]."""
        r = 1 + torch.rand((), dtype=torch.float64)
        size = torch.tensor([0.2, 1.3, 0.5, 1.8]) + 0.2 * torch.rand(4, dtype=torch.float64)
        return r * size * torch.tensor([1.0, -1.0, -1.0, 1.0]), r


class ProjectionOnHalfSpace(Projection):
    """Of aᵀy ≤ b: y = x − a (aᵀx − b)/‖a‖² where that is positive."""

    input_dims = (1, 1, 0)

    def inequality_constraints(self, x: Tensor, a: Tensor, b: Tensor, y: Tensor) -> Tensor:
        """aᵀy − b."""
        return a @ y - b

    def answer(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """The projection."""
        return x - a * (a @ x - b).clamp(min=0) / (a @ a)

    def jacobians(self, x: Tensor, a: Tensor, b: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """With n = ‖a‖² and s = aᵀx − b > 0:  I − aaᵀ/n,  −(a xᵀ + s I)/n + 2s aaᵀ/n²,  a/n."""
        eye, n, s = torch.eye(len(x), dtype=x.dtype), a @ a, a @ x - b
        both = torch.outer(a, a)
        wrt_a = -(torch.outer(a, x) + s * eye) / n + 2 * s * both / n**2
        return eye - both / n, wrt_a, a / n

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """a normal in R³, x beyond the plane by about its distance from the origin."""
        a, x = torch.randn(2, 3, dtype=torch.float64)
        a = a + a.sign() / 2
        distance = 0.5 + torch.rand((), dtype=torch.float64)
        return x, a, a @ x - distance * a.norm()


class RepeatedHalfSpace(ProjectionOnHalfSpace):
    """The same with its constraint written twice, in two units: dependent, active, and harmless."""

    independent_constraints = False

    def inequality_constraints(self, x: Tensor, a: Tensor, b: Tensor, y: Tensor) -> Tensor:
        """aᵀy − b, and 2 (aᵀy − b)."""
        left = a @ y - b
        return torch.stack([left, 2 * left])


class ProjectionOnCorner(Projection):
    """Of y₁ ≤ h₁, y₂ ≤ h₂ and y₁ + y₂ ≤ h₁ + h₂, which follows: three planes meet in one line.

    They stay dependent whatever the inputs, and the solution (h₁, h₂, x₃) has a derivative. Multipliers are
    not unique: λ₁, λ₂ and λ₃ of the sum may be any with λᵢ + λ₃ = xᵢ − hᵢ, so that one of them may be zero.
    """

    independent_constraints = False
    input_dims = (1, 1)

    def inequality_constraints(self, x: Tensor, h: Tensor, y: Tensor) -> Tensor:
        """(y₁, y₂) − h, and its sum."""
        left = y[:2] - h
        return torch.cat([left, left.sum().unsqueeze(0)])

    def answer(self, x: Tensor, h: Tensor) -> Tensor:
        """x, clamped."""
        return torch.cat([torch.minimum(x[:2], h), x[2:]])

    def jacobians(self, x: Tensor, h: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """1 for y₃ and x₃, and for yᵢ and hᵢ."""
        eye = torch.eye(3, dtype=x.dtype)
        return torch.diag(eye[2]), eye[:, :2]

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """h normal in R², x beyond it in both entries, in one of them five times as far."""
        h, last = torch.randn(2, dtype=torch.float64), torch.randn(1, dtype=torch.float64)
        beyond = (0.5 + torch.rand(2, dtype=torch.float64)) * torch.tensor([1.0, 5.0])
        return torch.cat([h + beyond, last]), h


class ProjectionOnBall(Projection):
    """Of ‖y‖ ≤ r: y = r x/‖x‖ outside."""

    input_dims = (1, 0)

    def inequality_constraints(self, x: Tensor, r: Tensor, y: Tensor) -> Tensor:
        """½(‖y‖² − r²)."""
        return (y @ y - r**2) / 2

    def answer(self, x: Tensor, r: Tensor) -> Tensor:
        """r x/‖x‖, at which samples are, or x."""
        return x * (r / x.norm()).clamp(max=1)

    def jacobians(self, x: Tensor, r: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """r (I − uuᵀ)/‖x‖ and u = x/‖x‖."""
        u = x / x.norm()
        return r * (torch.eye(len(x), dtype=x.dtype) - torch.outer(u, u)) / x.norm(), u

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """x in R³ with ‖x‖ in [1.5, 2.5] times r."""
        x, (r, ratio) = torch.randn(3, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
        r = 0.5 + r
        return (1.5 + ratio) * r * x / x.norm(), r


class ProjectionOutOfBall(ProjectionOnBall):
    """Of ‖y‖ ≥ r, for x inside: the feasible set is not convex, and −r x/‖x‖ is stationary as well."""

    def inequality_constraints(self, x: Tensor, r: Tensor, y: Tensor) -> Tensor:
        """½(r² − ‖y‖²)."""
        return (r**2 - y @ y) / 2

    def answer(self, x: Tensor, r: Tensor) -> Tensor:
        """r x/‖x‖, at which samples are, or x."""
        return x * (r / x.norm()).clamp(min=1)

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """x in R³ with ‖x‖ between a quarter and three quarters of r."""
        x, r = super().sample_inputs()
        return x / (4 * (x.norm() / r - 1)), r


class ProjectionOnSumBall(Projection):
    """Of Σ|zᵢ| ≤ r, in the smooth form z = p − q with p, q ≥ 0 and Σ(p + q) ≤ r: y = {"p", "q"}.

    zᵢ = sign(xᵢ)(|xᵢ| − θ) where |xᵢ| > θ, else 0, and Σ|zᵢ| = r gives θ. Samples are outside; inside p and q
    would not be unique. f does not change along p + q: its Hessian is singular.
    """

    regular_hessian = False
    input_dims = (1, 0)
    bounds = (0.0, None)

    def objective(self, x: Tensor, r: Tensor, y: Parts) -> Tensor:
        """½‖p − q − x‖²."""
        return ((y["p"] - y["q"] - x) ** 2).sum() / 2

    def inequality_constraints(self, x: Tensor, r: Tensor, y: Parts) -> Tensor:
        """Σ(p + q) − r."""
        return (y["p"] + y["q"]).sum() - r

    def initial_point(self, x: Tensor, r: Tensor) -> Any:
        """Within, all entries alike."""
        same = (r / (4 * len(x))).expand(x.shape).clone()
        return {"p": same, "q": same.clone()}

    def answer(self, x: Tensor, r: Tensor) -> Any:
        """By the projection of |x| on the simplex."""
        z = x.sign() * onto_simplex(x.abs(), r)
        return {"p": z.clamp(min=0), "q": (-z).clamp(min=0)}

    def jacobians(self, x: Tensor, r: Tensor, y: Parts) -> tuple[Tensor, ...]:
        """Of z: diag(σ)(diag(S) − SSᵀ/k) diag(σ) and diag(σ)S/k, σ = sign(x), S where z ≠ 0, k = ΣS."""
        sign, support = x.sign(), (onto_simplex(x.abs(), r) > 0).to(x)
        signed = sign * support
        wrt_x = torch.diag(support) - torch.outer(signed, signed) / support.sum()
        up, down = (sign > 0).to(x), (sign < 0).to(x)
        of_r = signed / support.sum()
        return (
            torch.cat([up.unsqueeze(1) * wrt_x, -down.unsqueeze(1) * wrt_x]),
            torch.cat([up * of_r, -down * of_r]),
        )

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """x in R³, r in [1, 2] and θ = 1: two entries of z differ from 0."""
        r = 1 + torch.rand((), dtype=torch.float64)
        share, inside = 0.3 + 0.4 * torch.rand(2, dtype=torch.float64)
        return torch.stack([1 + share * r, -1 - (1 - share) * r, inside]), r


class ProjectionOnSimplex(Projection):
    """Of y ≥ 0 with Σ y = r: y = (x − θ)₊."""

    input_dims = (1, 0)
    bounds = (0.0, None)

    def equality_constraints(self, x: Tensor, r: Tensor, y: Tensor) -> Tensor:
        """Σ y − r."""
        return y.sum() - r

    def answer(self, x: Tensor, r: Tensor) -> Tensor:
        """By sorting."""
        return onto_simplex(x, r)

    def jacobians(self, x: Tensor, r: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """diag(S) − SSᵀ/k and S/k, S where y > 0, k = ΣS."""
        support = (onto_simplex(x, r) > 0).to(x)
        k = support.sum()
        return torch.diag(support) - torch.outer(support, support) / k, support / k

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """x in R⁴ of which two entries stay above 0, r in [1, 2]."""
        r, theta = 1 + torch.rand(2, dtype=torch.float64)
        share, *below = 0.3 + 0.4 * torch.rand(3, dtype=torch.float64)
        return torch.stack([share * r, -below[0], (1 - share) * r, -below[1]]) - theta, r


class ProjectionOnCappedSimplex(Projection):
    """Of 0 ≤ y ≤ u with Σ y = k: y = clamp(x − τ, 0, u). A soft choice of k entries."""

    input_dims = (1, 0, 1)

    def equality_constraints(self, x: Tensor, k: Tensor, u: Tensor, y: Tensor) -> Tensor:
        """Σ y − k."""
        return y.sum() - k

    def bounds(self, x: Tensor, k: Tensor, u: Tensor) -> tuple[float, Tensor]:
        """0, u."""
        return 0.0, u

    def answer(self, x: Tensor, k: Tensor, u: Tensor) -> Tensor:
        """τ between two of the numbers xᵢ and xᵢ − uᵢ, where Σ y is linear in it."""
        free, full = self._parts(x, k, u)
        tau = ((free * x).sum() + (full * u).sum() - k) / free.sum()
        return free * (x - tau) + full * u

    def jacobians(self, x: Tensor, k: Tensor, u: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """With F where 0 < y < u, U where y = u, n = ΣF:  diag(F) − FFᵀ/n,  F/n,  diag(U) − FUᵀ/n."""
        free, full = self._parts(x, k, u)
        n = free.sum()
        wrt_x = torch.diag(free) - torch.outer(free, free) / n
        return wrt_x, free / n, torch.diag(full) - torch.outer(free, full) / n

    @staticmethod
    def _parts(x: Tensor, k: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Which entries are free, and which at u, as numbers."""
        breaks = torch.cat([x, x - u]).detach().sort().values
        middle = (breaks[1:] + breaks[:-1]) / 2
        zero = torch.zeros_like(u)
        ends = torch.minimum(torch.maximum(x - breaks.unsqueeze(1), zero), u).sum(dim=1)
        tau = middle[(ends[:-1] >= k).sum() - 1]
        return ((x > tau) & (x - tau < u)).to(x), (x - tau >= u).to(x)

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """x in R⁵: one entry at 0, two at u, two free; u in [1, 2]."""
        u = 1 + torch.rand(5, dtype=torch.float64)
        part = 0.3 + 0.4 * torch.rand(5, dtype=torch.float64)
        y = torch.stack([u[0], part[1] * u[1], u[2], part[3] * u[3], torch.zeros_like(u[4])])
        beyond = torch.stack([part[0], part[1] * 0, part[2], part[3] * 0, -part[4]])
        return y + beyond + torch.randn((), dtype=torch.float64), y.sum(), u


class ProjectionOnSecondOrderCone(Projection):
    """Of ‖u‖ ≤ t for y = (u, t): half of (v, ‖v‖)(1 + s/‖v‖) for x = (v, s) with |s| < ‖v‖.

    Stated by ½(‖u‖² − t²) ≤ 0 and t ≥ 0, whose gradients differ from 0 but at the tip.
    """

    input_dims = (1,)

    def inequality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        """½(‖u‖² − t²)."""
        return (y[:-1] @ y[:-1] - y[-1] ** 2) / 2

    def bounds(self, x: Tensor) -> tuple[Tensor, None]:
        """t ≥ 0."""
        lower = torch.full_like(x, -torch.inf)
        return torch.cat([lower[:-1], torch.zeros_like(x[-1:])]), None

    def initial_point(self, x: Tensor) -> Tensor:
        """(0, ‖v‖)."""
        return torch.cat([torch.zeros_like(x[:-1]), x[:-1].norm().unsqueeze(0)])

    def answer(self, x: Tensor) -> Tensor:
        """The projection where |s| < ‖v‖, at which samples are."""
        length = x[:-1].norm()
        return (1 + x[-1] / length) / 2 * torch.cat([x[:-1], length.unsqueeze(0)])

    def jacobians(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """By differentiating the answer."""
        return (torch.func.jacrev(self.answer)(x),)

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """v in R³ and |s| at most half of ‖v‖."""
        v, s = torch.randn(3, dtype=torch.float64), torch.rand(1, dtype=torch.float64) - 0.5
        return (torch.cat([v, s * v.norm()]),)


class IsotonicRegression(Projection):
    """min ½Σ wᵢ(yᵢ − xᵢ)² with y₁ ≤ y₂ ≤ … : weighted means of blocks.

    yᵢ is the largest over j ≤ i of the least over k ≥ i of the mean of x_j … x_k (Robertson, Wright and
    Dykstra, *Order Restricted Statistical Inference*, theorem 1.4.4).
    """

    input_dims = (1, 1)

    def objective(self, x: Tensor, w: Tensor, y: Tensor) -> Tensor:
        """½Σ wᵢ(yᵢ − xᵢ)²."""
        return (w * (y - x) ** 2).sum() / 2

    def inequality_constraints(self, x: Tensor, w: Tensor, y: Tensor) -> Tensor:
        """yᵢ − yᵢ₊₁."""
        return y[:-1] - y[1:]

    def answer(self, x: Tensor, w: Tensor) -> Tensor:
        """By means."""
        upper = torch.ones(len(x), len(x), dtype=torch.bool).triu()
        of_wx, of_w = (torch.cat([v.new_zeros(1), v.cumsum(0)]) for v in (w * x, w))
        weights = torch.where(upper, of_w[1:] - of_w[:-1].unsqueeze(1), 1.0)
        means = (of_wx[1:] - of_wx[:-1].unsqueeze(1)) / weights
        # (j, i, k), then (j, i)
        least = torch.where(upper, means.unsqueeze(1), torch.inf).amin(dim=2)
        return torch.where(upper, least, -torch.inf).amax(dim=0)

    def jacobians(self, x: Tensor, w: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """wⱼ/W and (xⱼ − yᵢ)/W in a block of weight W."""
        own = self.answer(x, w)
        block = (own.unsqueeze(1) == own).to(x)
        total = block @ w
        wrt_x = block * w / total.unsqueeze(1)
        return wrt_x, block * (x - own.unsqueeze(1)) / total.unsqueeze(1)

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """x in R⁵ in three blocks, of one, two and two; w in [1, 2]."""
        x = torch.tensor([0.0, 2.0, 1.0, 4.0, 3.2], dtype=torch.float64)
        noise, w = torch.rand(2, 5, dtype=torch.float64)
        return x + 0.3 * noise, 1 + w


class AtTheEdge(Projection):
    """min ½‖y − x‖² with y ≤ r, at x₁ = r: that constraint is weakly active, and y₁ = min(x₁, r) has a kink.

    `degenerate` tells which of the two derivatives is meant: with "least_norm" y₁ moves with r, as if the
    constraint stays active, with "one_sided" with x₁. Along dx₁ = dr, where the kink is not left, they agree.

    Args:
        degenerate: "least_norm" or "one_sided".
    """

    differentiable_solve = False
    input_dims = (1, 0)

    def __init__(self, degenerate: str) -> None:
        self.degenerate = degenerate

    @property
    def label(self) -> str:
        """With the choice."""
        return f"AtTheEdge({self.degenerate})"

    def bounds(self, x: Tensor, r: Tensor) -> tuple[None, Tensor]:
        """None, r."""
        return None, r

    def answer(self, x: Tensor, r: Tensor) -> Tensor:
        """min(x, r)."""
        return torch.minimum(x, r)

    def jacobians(self, x: Tensor, r: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """diag of the entries that move with x, and those that move with r."""
        held = x > r
        held[0] = self.degenerate == "least_norm"
        return torch.diag((~held).to(x)), held.to(x)

    def feasible_directions(self, xs: Any, directions: Any) -> tuple[Tensor, ...]:
        """Those with dx₁ = dr: both are replaced by their mean."""
        of_x, of_r = directions
        mean = (of_x[0] + of_r) / 2
        return torch.cat([mean.unsqueeze(0), of_x[1:]]), mean

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """x in R³ with x₁ = r, one entry below and one above."""
        r, *apart = 0.5 + torch.rand(3, dtype=torch.float64)
        return torch.stack([r, r - apart[0], r + apart[1]]), r


def onto_simplex(x: Tensor, r: Tensor) -> Tensor:
    """The nearest y ≥ 0 with Σ y = r, for x (n,).

    Source: Held, Wolfe and Crowder (1974), by sorting.
    """
    ordered = x.sort(descending=True).values
    thetas = (ordered.cumsum(0) - r) / torch.arange(1, len(x) + 1, dtype=x.dtype)
    count = (ordered > thetas).sum()
    return (x - thetas[count - 1]).clamp(min=0)
