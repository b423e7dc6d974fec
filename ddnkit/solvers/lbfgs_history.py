"""The last steps of a batch of quasi-Newton iterations, and the two-loop recursion on them.

With the pairs s = y⁺ − y, u = ∇⁺ − ∇ of the last k steps, the L-BFGS approximation of the inverse
Hessian is H = Vᵀ H' V + ρ s sᵀ, ρ = 1/(sᵀu), V = I − ρ u sᵀ, recursively down to H = γI with
γ = sᵀu/uᵀu of the newest pair. Hg takes 4km operations and 2km numbers of memory. Each item of the batch
has pairs of its own: one it skips or forgets has ρ = 0, which takes it out of the recursion.

Source: Nocedal and Wright, *Numerical Optimization*, algorithm 7.4.
"""

from __future__ import annotations

import torch
from torch import Tensor


class History:
    """A ring of ``pairs`` pairs for each item of a batch.

    Args:
        pairs: how many to keep.
        gradient: (B, m), the first gradient, for shape, dtype and device.
        first_step: (B,), γ while there is no pair.
    """

    def __init__(self, pairs: int, gradient: Tensor, first_step: Tensor) -> None:
        self.pairs = pairs
        batch = len(gradient)
        self.gamma = first_step
        self._s = gradient.new_zeros(pairs, *gradient.shape)
        self._u = torch.zeros_like(self._s)
        self._rho = gradient.new_zeros(pairs, batch)
        self._next = torch.zeros(batch, dtype=torch.long, device=gradient.device)
        self._item = torch.arange(batch, device=gradient.device)
        self._filled = 0

    def push(self, items: Tensor, s: Tensor, u: Tensor) -> None:
        """Remember the pair (s, u), (B, m) each, of ``items`` (B,) where its curvature is positive."""
        product = _dot(s, u)
        length = torch.linalg.vector_norm(u, dim=-1)
        eps = torch.finfo(s.dtype).eps
        kept = items & (product > eps * length * torch.linalg.vector_norm(s, dim=-1))
        at = (self._next, self._item)
        self._s[at] = torch.where(kept.unsqueeze(-1), s, self._s[at])
        self._u[at] = torch.where(kept.unsqueeze(-1), u, self._u[at])
        self._rho[at] = torch.where(kept, 1 / product, self._rho[at])
        self.gamma = torch.where(kept, product / length.square(), self.gamma)
        self._next = (self._next + kept) % self.pairs
        self._filled = min(self._filled + 1, self.pairs)

    def forget(self, items: Tensor) -> None:
        """Drop all pairs of ``items`` (B,); γ stays."""
        self._rho = torch.where(items, 0.0, self._rho)

    def apply(self, gradient: Tensor) -> Tensor:
        """H g of each item, (B, m)."""
        slots = [(self._next - 1 - age) % self.pairs for age in range(self._filled)]
        q, coefficients = gradient, []
        for slot in slots:
            at = (slot, self._item)
            coefficients.append(self._rho[at] * _dot(self._s[at], q))
            q = q - coefficients[-1].unsqueeze(-1) * self._u[at]
        q = self.gamma.unsqueeze(-1) * q
        for slot, coefficient in zip(reversed(slots), reversed(coefficients), strict=True):
            at = (slot, self._item)
            change = coefficient - self._rho[at] * _dot(self._u[at], q)
            q = q + change.unsqueeze(-1) * self._s[at]
        return q


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=-1)
