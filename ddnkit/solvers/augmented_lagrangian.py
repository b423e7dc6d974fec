"""The augmented Lagrangian of a batch of problems, and the schedule of its multipliers.

    M(y; ν, ρ) = f(y) − νᵀh(y) + (ρ/2)‖h(y)‖²,      ∇M = ∇_y L(y, ν − ρh).

A minimum y of M gives better multipliers ν⁺ = ν − ρh(y), for which y is stationary by the identity on
the right. So ∇M and h are also the residuals of the problem itself, and an item is done as soon as
both are small, in the middle of a minimisation or at its end. The error of ν shrinks per update by a
factor proportional to 1/ρ; where ‖h‖ has not shrunk to a tenth, ρ is raised tenfold. All of it is
per item, and nothing but products with Dhᵀ is needed.

Source: Nocedal and Wright, *Numerical Optimization*, framework 17.3; Bertsekas, *Constrained
Optimization and Lagrange Multiplier Methods*, chapter 2.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..problem import Problem, derivative, flat
from .residual import norm

_SHRINK = 0.1
_RAISE = 10.0
#: How far ρ may be raised above its first value: eps^{-1/2}, beyond which h drowns f.
_HIGHEST = -0.5
_FIRST_PENALTY = 10.0


@dataclass(frozen=True)
class Evaluation:
    """M and its parts at one point of each item.

    Attributes:
        value: (B,), M. gradient: (B, m), ∇M.
        objective: (B,), f. constraints: (B, p), h; p = 0 without any.
        magnitude: (B,), the sizes of the terms of M added up: what its rounding is relative to.
    """

    value: Tensor
    gradient: Tensor
    objective: Tensor
    constraints: Tensor
    magnitude: Tensor

    def where(self, items: Tensor, other: Evaluation) -> Evaluation:
        """This for ``items`` (B,), the other for the rest."""
        chosen = []
        for field in fields(self):
            mine, others = getattr(self, field.name), getattr(other, field.name)
            mask = items if mine.dim() == 1 else items.unsqueeze(-1)
            chosen.append(torch.where(mask, mine, others))
        return Evaluation(*chosen)

    @property
    def finite(self) -> Tensor:
        """Whether M and its gradient are, (B,)."""
        return self.value.isfinite() & self.gradient.isfinite().all(dim=-1)


class AugmentedLagrangian:
    """M of a batch with its multipliers; plain f where there are no constraints.

    Args:
        shape: of y, (B, *y).
        like: (B, p), h at the start.

    Attributes:
        multipliers: (B, p), ν. penalty: (B,), ρ.
    """

    def __init__(self, problem: Problem, shape: torch.Size, like: Tensor) -> None:
        self.problem = problem
        self.shape = shape
        self.multipliers = torch.zeros_like(like)
        self.penalty = like.new_zeros(len(like))
        self.highest = self.penalty
        self._violation = torch.full_like(self.penalty, torch.inf)

    @property
    def constrained(self) -> bool:
        """Whether there are constraints at all."""
        return self.multipliers.shape[1] > 0

    def evaluate(self, y: Tensor) -> Evaluation:
        """M at y (B, m)."""
        with torch.enable_grad():
            variable = y.detach().reshape(self.shape).requires_grad_()
            objective = self.problem.objective(variable)
            value, magnitude = objective, objective.detach().abs()
            h = self.problem.all_constraints(variable) if self.constrained else None
            if h is not None:
                linear = (self.multipliers * h).sum(dim=-1)
                square = self.penalty / 2 * h.square().sum(dim=-1)
                value = value - linear + square
                magnitude = magnitude + linear.detach().abs() + square.detach()
            gradient = flat(derivative(value.sum(), variable))
        constraints = y[:, :0] if h is None else h.detach()
        return Evaluation(value.detach(), gradient, objective.detach(), constraints, magnitude)

    def estimates(self, h: Tensor) -> Tensor:
        """ν⁺ = ν − ρh, the multipliers whose Lagrangian has the gradient ∇M, (B, p)."""
        return self.multipliers - self.penalty.unsqueeze(-1) * h

    def first_penalty(self, curvature: Tensor, norm_of_A: Tensor) -> None:
        """ρ = 10 × curvature (B,) of f over the mean square of the singular values of A."""
        mean_square = norm_of_A.square() / max(self.multipliers.shape[1], 1)
        penalty = _FIRST_PENALTY * curvature / mean_square
        usable = penalty.isfinite() & (penalty > 0)
        self.penalty = torch.where(usable, penalty, _FIRST_PENALTY)
        self.highest = self.penalty * torch.finfo(penalty.dtype).eps ** _HIGHEST

    def update(self, items: Tensor, h: Tensor, feasible: Tensor) -> Tensor:
        """ν ← ν⁺ for ``items`` (B,), at whose h M is minimal; those of them whose ρ was raised."""
        violation = norm(h)
        slow = ~feasible & (violation > _SHRINK * self._violation)
        raised = items & slow & (self.penalty < self.highest)
        self.multipliers = torch.where(items.unsqueeze(-1), self.estimates(h), self.multipliers)
        self._violation = torch.where(items, violation, self._violation)
        self.raise_penalty(raised, _RAISE)
        return raised

    def stagnant(self, h: Tensor) -> Tensor:
        """Whether ‖h‖ is hardly less than at the last update, (B,)."""
        return norm(h) > 0.9 * self._violation

    def raise_penalty(self, items: Tensor, factor: float) -> None:
        """ρ times ``factor`` for ``items`` (B,)."""
        self.penalty = torch.where(items, self.penalty * factor, self.penalty)
