"""Programs with inequality constraints and bounds that are not projections, with known answers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .active_sets import Program, active_set, on_active_set
from .known_problem import ClosedFormProblem, KnownProblem
from .projections import onto_simplex

#: Of Newton's method from a point to one side of a concave function's root: as many halve nothing more.
_STEPS = 30


class NonnegativeLeastSquares(ClosedFormProblem):
    """min ½‖Ay − b‖², y ≥ 0: least squares with the columns of the entries that are positive."""

    input_dims = (2, 1)
    bounds = (0.0, None)

    def objective(self, A: Tensor, b: Tensor, y: Tensor) -> Tensor:
        """½‖Ay − b‖²."""
        return ((A @ y - b) ** 2).sum() / 2

    def initial_point(self, A: Tensor, b: Tensor) -> Tensor:
        """1."""
        return A.new_ones(A.shape[1])

    def answer(self, A: Tensor, b: Tensor) -> Tensor:
        """By enumeration of the supports."""
        return self._at(self._active(A, b), A, b)

    def jacobians(self, A: Tensor, b: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """By differentiating the least squares at the support."""
        active = self._active(A, b)
        found: tuple[Tensor, ...] = torch.func.jacrev(
            lambda A, b: self._at(active, A, b), argnums=(0, 1)
        )(A, b)
        return found

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """A (5, 3), and b for which y has one entry at 0, with a multiplier in [0.5, 1.5]."""
        A = torch.randn(5, 3, dtype=torch.float64) + torch.eye(5, 3, dtype=torch.float64)
        first, last, slope = 0.5 + torch.rand(3, dtype=torch.float64)
        y, multipliers = torch.zeros(2, 3, dtype=torch.float64)
        y[0], y[2], multipliers[1] = first, last, slope
        # Aᵀ(Ay − b) = λ, and a part of b that no y reaches.
        back = A @ torch.linalg.inv(A.T @ A)
        rest = torch.randn(5, dtype=torch.float64)
        return A, A @ y - back @ multipliers + (rest - back @ (A.T @ rest))

    @staticmethod
    def _rows(A: Tensor, b: Tensor) -> Program:
        n = A.shape[1]
        eye, zero = torch.eye(n, dtype=A.dtype), A.new_zeros(n)
        return A.T @ A, -(A.T @ b), A.new_zeros(0, n), A.new_zeros(0), -eye, zero

    def _active(self, A: Tensor, b: Tensor) -> Tensor:
        with torch.no_grad():
            return active_set(*self._rows(A.detach(), b.detach()))

    def _at(self, active: Tensor, A: Tensor, b: Tensor) -> Tensor:
        return on_active_set(*self._rows(A, b), active)


class MixedQP(ClosedFormProblem):
    """min ½yᵀQy + qᵀy with Σ y = b and C y ≤ d; the symmetric part of Q counts."""

    input_dims = (2, 1, 0, 2, 1)

    def objective(self, Q: Tensor, q: Tensor, b: Tensor, C: Tensor, d: Tensor, y: Tensor) -> Tensor:
        """½yᵀQy + qᵀy."""
        return y @ Q @ y / 2 + q @ y

    def equality_constraints(
        self, Q: Tensor, q: Tensor, b: Tensor, C: Tensor, d: Tensor, y: Tensor
    ) -> Tensor:
        """Σ y − b."""
        return y.sum() - b

    def inequality_constraints(
        self, Q: Tensor, q: Tensor, b: Tensor, C: Tensor, d: Tensor, y: Tensor
    ) -> Tensor:
        """C y − d."""
        return C @ y - d

    def initial_point(self, Q: Tensor, q: Tensor, b: Tensor, C: Tensor, d: Tensor) -> Tensor:
        """The origin."""
        return torch.zeros_like(q)

    def answer(self, *xs: Any, **named: Any) -> Tensor:
        """By enumeration of the active sets."""
        rows = self._rows(*xs)
        return on_active_set(*rows, active_set(*rows))

    def jacobians(self, *xs: Any, **named: Any) -> tuple[Tensor, ...]:
        """By differentiating the linear system of the active set."""
        active = active_set(*self._rows(*xs))
        found: tuple[Tensor, ...] = torch.func.jacrev(
            lambda *xs: on_active_set(*self._rows(*xs), active), argnums=tuple(range(len(xs)))
        )(*xs)
        return found

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """In R⁴ with three inequalities: two active with multipliers in [0.5, 1.5], one of that slack."""
        root, C = torch.randn(4, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
        y, (nu, *rest) = torch.randn(4, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
        first, second, slack = (0.5 + x for x in rest)
        Q = root @ root.T / 2 + torch.eye(4, dtype=torch.float64)
        multipliers = torch.stack([first, second, 0 * slack])
        d = C @ y + torch.stack([0 * slack, 0 * slack, slack])
        return Q, nu - Q @ y - C.T @ multipliers, y.sum(), C, d

    @staticmethod
    def _rows(Q: Tensor, q: Tensor, b: Tensor, C: Tensor, d: Tensor) -> Program:
        return Q, q, torch.ones_like(q).unsqueeze(0), b.unsqueeze(0), C, d


class VertexOfLinearProgram(KnownProblem):
    """max Σ y with C y ≤ d: a vertex, at which as many constraints hold as there are unknowns.

    f has no curvature at all. Left to the node's solver.
    """

    regular_hessian = False
    well_conditioned = False
    input_dims = (2, 1)

    def objective(self, C: Tensor, d: Tensor, y: Tensor) -> Tensor:
        """−Σ y."""
        return -y.sum()

    def inequality_constraints(self, C: Tensor, d: Tensor, y: Tensor) -> Tensor:
        """C y − d."""
        return C @ y - d

    def initial_point(self, C: Tensor, d: Tensor) -> Tensor:
        """The origin."""
        return C.new_zeros(C.shape[1])

    def answer(self, C: Tensor, d: Tensor) -> Tensor:
        """By enumeration of the vertices."""
        active = self._active(C, d)
        return torch.linalg.solve(C[active], d[active])

    def jacobians(self, C: Tensor, d: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """With B = C_a⁻¹ for the active rows:  ∂yᵢ/∂C_a,jk = −Bᵢⱼ yₖ,  ∂y/∂d_a = B."""
        active = self._active(C, d)
        B = torch.zeros_like(C.T)
        B[:, active] = torch.linalg.inv(C[active])
        return -torch.einsum("ij,k->ijk", B, self.answer(C, d)), B

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """In the plane, with two constraints active of four, the others with slacks in [0.5, 1.5]."""
        y, noise = torch.randn(2, dtype=torch.float64), torch.rand(4, 2, dtype=torch.float64)
        C = torch.tensor([[1.0, 0.2], [0.2, 1.0], [-1.0, 0.0], [0.5, -1.0]]) + 0.2 * noise
        slack = 0.5 + torch.rand(2, dtype=torch.float64)
        return C, C @ y + torch.cat([torch.zeros_like(slack), slack])

    @staticmethod
    def _active(C: Tensor, d: Tensor) -> Tensor:
        n = C.shape[1]
        return active_set(C.new_zeros(n, n), -C.new_ones(n), C.new_zeros(0, n), d[:0], C, d)


class WaterFilling(ClosedFormProblem):
    """max Σ log(nᵢ + yᵢ) with y ≥ 0 and Σ y = P, the power of channels of noise n: y = (μ − n)₊.

    Source: Boyd and Vandenberghe, *Convex Optimization*, example 5.2.
    """

    input_dims = (1, 0)
    bounds = (0.0, None)

    def objective(self, n: Tensor, P: Tensor, y: Tensor) -> Tensor:
        """−Σ log(nᵢ + yᵢ)."""
        return -(n + y).log().sum()

    def equality_constraints(self, n: Tensor, P: Tensor, y: Tensor) -> Tensor:
        """Σ y − P."""
        return y.sum() - P

    def initial_point(self, n: Tensor, P: Tensor) -> Tensor:
        """P/m."""
        return (P / len(n)).expand(n.shape).clone()

    def answer(self, n: Tensor, P: Tensor) -> Tensor:
        """The projection of −n on the simplex: both are (μ − n)₊ with the sum P."""
        return onto_simplex(-n, P)

    def jacobians(self, n: Tensor, P: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """−(diag(S) − SSᵀ/k) and S/k, S where y > 0, k = ΣS."""
        support = (onto_simplex(-n, P) > 0).to(n)
        k = support.sum()
        return torch.outer(support, support) / k - torch.diag(support), support / k

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """Five channels, of which the level μ in [2, 3] covers three."""
        level = 2 + torch.rand((), dtype=torch.float64)
        depth = 0.3 + torch.rand(5, dtype=torch.float64)
        over = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0], dtype=torch.float64)
        n = level - over * depth
        return n, (level - n).clamp(min=0).sum()


class CappedSoftmax(ClosedFormProblem):
    """min Σ yᵢ log yᵢ − xᵀy with Σ y = 1 and y ≤ u: softmax that gives no entry more than u.

    y = u where it is capped, and the others share what is left in proportion to eˣ.
    """

    input_dims = (1, 0)

    def objective(self, x: Tensor, u: Tensor, y: Tensor) -> Tensor:
        """Σ yᵢ log yᵢ − xᵀy."""
        return (y * y.log()).sum() - x @ y

    def equality_constraints(self, x: Tensor, u: Tensor, y: Tensor) -> Tensor:
        """Σ y − 1."""
        return y.sum() - 1

    def bounds(self, x: Tensor, u: Tensor) -> tuple[float, Tensor]:
        """0, the domain of the entropy, and u."""
        return 0.0, u

    def initial_point(self, x: Tensor, u: Tensor) -> Tensor:
        """1/m."""
        return torch.full_like(x, 1 / len(x))

    def answer(self, x: Tensor, u: Tensor) -> Tensor:
        """The cap is put on the largest entries, as many as need it."""
        capped = self._capped(x, u)
        left = 1 - u * capped.sum()
        return torch.where(capped, u, left * x.masked_fill(capped, -torch.inf).softmax(dim=0))

    def jacobians(self, x: Tensor, u: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """Of the c capped entries 0 and 1; of the others, with p = y/Σy: diag(y) − ypᵀ and −cp."""
        capped = self._capped(x, u)
        free = torch.where(capped, 0.0, self.answer(x, u))
        p = free / free.sum()
        return torch.diag(free) - torch.outer(free, p), capped.to(x) - capped.sum() * p

    @staticmethod
    def _capped(x: Tensor, u: Tensor) -> Tensor:
        order = x.detach().sort(descending=True)
        count = torch.arange(len(x), dtype=x.dtype)
        # With the first c capped, the next one would have so much.
        rest = order.values.flip(0).logcumsumexp(dim=0).flip(0)
        needed = (1 - count * u) * (order.values - rest).exp() > u
        return x >= torch.where(needed, order.values, torch.inf).amin()

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """x in R⁴, of whose softmax (0.6, 0.3, 0.1, 0.1), nearly, one entry is above u in [0.35, 0.4]."""
        p = torch.tensor([0.6, 0.3, 0.1, 0.1]) + 0.05 * torch.rand(4, dtype=torch.float64)
        u = 0.4 + 0.05 * torch.rand((), dtype=torch.float64)
        order = torch.tensor([2, 0, 3, 1])
        return (p.log() + torch.randn((), dtype=torch.float64))[order], u


class TrustRegion(ClosedFormProblem):
    """min ½yᵀQy + qᵀy with ‖y‖ ≤ r, Q indefinite: (Q + λI)y = −q with λ > −λ_min(Q) and ‖y‖ = r.

    Not convex: the step of a trust-region method.

    Source: Nocedal and Wright, *Numerical Optimization*, theorem 4.1.
    """

    input_dims = (2, 1, 0)

    def objective(self, Q: Tensor, q: Tensor, r: Tensor, y: Tensor) -> Tensor:
        """½yᵀQy + qᵀy."""
        return y @ Q @ y / 2 + q @ y

    def inequality_constraints(self, Q: Tensor, q: Tensor, r: Tensor, y: Tensor) -> Tensor:
        """½(‖y‖² − r²)."""
        return (y @ y - r**2) / 2

    def initial_point(self, Q: Tensor, q: Tensor, r: Tensor) -> Tensor:
        """Down the slope, halfway to the boundary."""
        return -r * q / (2 * q.norm())

    def answer(self, Q: Tensor, q: Tensor, r: Tensor) -> Tensor:
        """λ by Newton's method on 1/‖y(λ)‖ = 1/r, from where ‖y‖ > r."""
        values, vectors = torch.linalg.eigh((Q + Q.T) / 2)
        p = vectors.T @ q
        # ‖y‖ ≥ |p₁|/(λ₁ + λ), which is r there.
        shift = p[0].abs() / r - values[0]
        for _ in range(_STEPS):
            y = p / (values + shift)
            length = y.norm()
            step = (length / r - 1) * length**2 / (y**2 / (values + shift)).sum()
            shift = shift + step
        return -vectors @ (p / (values + shift))

    def jacobians(self, Q: Tensor, q: Tensor, r: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """From (Q + λI) dy + y dλ = −dq − ½(dQ + dQᵀ)y and yᵀdy = r dr."""
        y, n = self.answer(Q, q, r), len(q)
        eye = torch.eye(n, dtype=q.dtype)
        symmetric = (Q + Q.T) / 2
        shift = -(y @ (symmetric @ y + q)) / (y @ y)
        K = torch.zeros(n + 1, n + 1, dtype=q.dtype)
        K[:n, :n], K[:n, n], K[n, :n] = symmetric + shift * eye, y, y
        inverse = torch.linalg.inv(K)[:n]
        wrt_q = -inverse[:, :n]
        wrt_Q = torch.einsum("ij,k->ijk", wrt_q, y)
        return (wrt_Q + wrt_Q.mT) / 2, wrt_q, r * inverse[:, n]

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """In R³, eigenvalues about −1, 1 and 2, λ in [2, 3]."""
        values = torch.tensor([-1.0, 1.0, 2.0]) + 0.3 * torch.rand(3, dtype=torch.float64)
        vectors, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
        Q, y = vectors @ torch.diag(values) @ vectors.T, torch.randn(3, dtype=torch.float64)
        shift = 2 + torch.rand((), dtype=torch.float64)
        return Q, -(Q @ y + shift * y), y.norm()


class GeometricProgram(ClosedFormProblem):
    """min c₁y₁ + c₂y₂ with y₁y₂ ≥ s and y ≥ 0: y = (√(s c₂/c₁), √(s c₁/c₂)).

    f is linear, and the function of the constraint neither convex nor concave.
    """

    input_dims = (1, 0)
    bounds = (0.0, None)

    def objective(self, c: Tensor, s: Tensor, y: Tensor) -> Tensor:
        """cᵀy."""
        return c @ y

    def inequality_constraints(self, c: Tensor, s: Tensor, y: Tensor) -> Tensor:
        """s − y₁y₂."""
        return s - y[0] * y[1]

    def initial_point(self, c: Tensor, s: Tensor) -> Tensor:
        """2√s for both, within."""
        return 2 * s.sqrt().expand(2).clone()

    def answer(self, c: Tensor, s: Tensor) -> Tensor:
        """√(s c₂/c₁), √(s c₁/c₂)."""
        return (s * c.flip(0) / c).sqrt()

    def jacobians(self, c: Tensor, s: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """½yᵢ(±1/cⱼ) and ½yᵢ/s."""
        sign = 1 - 2 * torch.eye(2, dtype=c.dtype)
        own = self.answer(c, s)
        return own.unsqueeze(1) * sign / (2 * c), own / (2 * s)

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """c and s in [0.5, 1.5]."""
        c = 0.5 + torch.rand(2, dtype=torch.float64)
        return c, 0.5 + torch.rand((), dtype=torch.float64)


class SeparableDoubleWell(ClosedFormProblem):
    """min Σ(¼yᵢ⁴ − ½yᵢ²) with lower ≤ y ≤ upper: a local minimum, at 1 where that is within, else at a bound.

    On the negative side there is another, at most as low; where a solver starts says which one is meant.
    """

    input_dims = (1, 1)

    def objective(self, lower: Tensor, upper: Tensor, y: Tensor) -> Tensor:
        """Σ(¼yᵢ⁴ − ½yᵢ²)."""
        return (y**4 / 4 - y**2 / 2).sum()

    def bounds(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """lower, upper."""
        return lower, upper

    def initial_point(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Nearly at the answer: that one is meant."""
        return 0.9 * self.answer(lower, upper) + 0.1 * upper.clamp(max=1)

    def answer(self, lower: Tensor, upper: Tensor) -> Tensor:
        """1, clamped."""
        return torch.minimum(torch.maximum(torch.ones_like(lower), lower), upper)

    def jacobians(self, lower: Tensor, upper: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """diag of the entries at each bound."""
        return torch.diag((lower > 1).to(lower)), torch.diag((upper < 1).to(lower))

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """Three entries: at the lower bound, at 1 (where −1 is within as well), at the upper bound."""
        a, b, c = torch.rand(3, dtype=torch.float64)
        lower = torch.stack([1.3 + a / 2, -1.5 - b, -0.2 - c / 4])
        return lower, torch.stack([2.5 + a, 1.5 + b, 0.6 + c / 4])
