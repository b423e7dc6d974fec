"""Problems with an entropy, whose solutions are positive and whose constraints are sums."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .known_problem import ClosedFormProblem, KnownProblem

_MOST_SWEEPS = 10_000


class Softmax(ClosedFormProblem):
    """min Σ yᵢ log yᵢ − xᵀy, 1ᵀy = 1: y = softmax(x), J = diag(y) − yyᵀ."""

    input_dims = (1,)

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        """Σ yᵢ log yᵢ − xᵀy."""
        return (y * y.log()).sum() - x @ y

    def equality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        """1ᵀy − 1."""
        return y.sum() - 1

    def initial_point(self, x: Tensor) -> Tensor:
        """1/m."""
        return torch.full_like(x, 1 / len(x))

    def answer(self, x: Tensor) -> Tensor:
        """softmax(x)."""
        return x.softmax(dim=0)

    def jacobians(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """diag(y) − yyᵀ."""
        return (torch.diag(y) - torch.outer(y, y),)

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """x normal in R⁴."""
        return (torch.randn(4, dtype=torch.float64),)


class EntropicTransport(KnownProblem):
    """min ⟨M, P⟩ + (1/γ) Σ P log P, row sums r, column sums c: log P = a1ᵀ + 1bᵀ − γM.

    The m + n sums have rank m + n − 1, and contradict each other unless Σr = Σc: with n = (1, −1) in
    R^{m+n}, P exists for (r, c) ⊥ n alone. What the gradient for r and c means is therefore a
    convention, and here it is the least-norm one: P is taken at the nearest (r, c) ⊥ n, so that the
    gradients for r and c together are at right angles to n. Along every (dr, dc) with Σdr = Σdc,
    whatever convention, v·dP is the same. `solve` does as the gradient says: it first takes r and c
    to their nearest, which for those that agree is rounding. γ is a number and not a tensor.
    """

    number = 7
    independent_constraints = False
    input_dims = (2, 1, 1, None)

    def objective(self, M: Tensor, r: Tensor, c: Tensor, gamma: float, y: Tensor) -> Tensor:
        """⟨M, P⟩ + (1/γ) Σ P log P."""
        return (M * y).sum() + (y * y.log()).sum() / gamma

    def equality_constraints(
        self, M: Tensor, r: Tensor, c: Tensor, gamma: float, y: Tensor
    ) -> Tensor:
        """P1 − r, Pᵀ1 − c: all of them, one too many on purpose."""
        return torch.cat([y.sum(dim=1) - r, y.sum(dim=0) - c])

    def initial_point(self, M: Tensor, r: Tensor, c: Tensor, gamma: float) -> Tensor:
        """rcᵀ/Σr, feasible."""
        return torch.outer(r, c) / r.sum()

    def solve(self, M: Tensor, r: Tensor, c: Tensor, gamma: float) -> Tensor:
        """Sinkhorn's iteration on a and b until they stand still."""
        r, c = _balance(r, c)
        a, b = torch.zeros_like(r), torch.zeros_like(c)
        rounding = 4 * torch.finfo(M.dtype).eps
        for _ in range(_MOST_SWEEPS):
            b = c.log() - torch.logsumexp(a.unsqueeze(1) - gamma * M, dim=0)
            before, a = a, r.log() - torch.logsumexp(b - gamma * M, dim=1)
            # Written so that NaN, from an r or c that is not positive, ends it too.
            if not (a - before).abs().max() > rounding * (1 + a.abs().max()):
                break
        return (a.unsqueeze(1) + b - gamma * M).exp()

    def jacobians(
        self, M: Tensor, r: Tensor, c: Tensor, gamma: float, y: Tensor
    ) -> tuple[Tensor, ...]:
        """dP = P∘(da 1ᵀ + 1dbᵀ − γ dM), da and db from the sums of dP.

        K (da; db) = (dr + γ(P∘dM)1; dc + γ(P∘dM)ᵀ1),   K = [[diag P1, P], [Pᵀ, diag Pᵀ1]],
        singular along n, to which the terms of dM are at right angles; K⁺ takes (dr, dc) there.
        """
        m, n = y.shape
        K = torch.cat(
            [
                torch.cat([torch.diag(y.sum(dim=1)), y], dim=1),
                torch.cat([y.T, torch.diag(y.sum(dim=0))], dim=1),
            ]
        )
        inverse = torch.linalg.pinv(K, hermitian=True, rtol=1e-12)
        # S[k, l, :] = P_kl (row k + row l of K⁺): what one unit of each sum does to P_kl.
        S = y.unsqueeze(-1) * (inverse[:m].unsqueeze(1) + inverse[m:].unsqueeze(0))
        through = S[..., :m].unsqueeze(-1) + S[..., m:].unsqueeze(-2)
        itself = torch.eye(m * n, dtype=y.dtype).reshape(m, n, m, n)
        return gamma * (through - itself) * y, S[..., :m], S[..., m:]

    def feasible_directions(
        self, xs: Sequence[Tensor], directions: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Those with Σdr = Σdc."""
        dM, dr, dc = directions
        return dM, *_balance(dr, dc)

    def sample_inputs(self) -> tuple[Tensor, Tensor, Tensor, float]:
        """M (3, 4) in [0, 1], r and c positive with sum 1, γ = 5."""
        M = torch.rand(3, 4, dtype=torch.float64)
        r, c = (0.5 + torch.rand(size, dtype=torch.float64) for size in M.shape)
        return M, r / r.sum(), c / c.sum(), 5.0


def _balance(r: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest with Σr = Σc."""
    excess = (r.sum() - c.sum()) / (len(r) + len(c))
    return r - excess, c + excess
