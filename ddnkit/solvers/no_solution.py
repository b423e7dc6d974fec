"""How a solver tells that there is nothing to find.

Infeasible. Where h(y) ≠ 0 but y is stationary for ½‖h‖², Aᵀh = 0, no step brings the constraints
nearer to zero. To first order, moving by a length s changes ½‖h‖² by at most ‖Aᵀh‖ s, so that y counts
as stationary if
    ‖Aᵀh‖ ≤ τ ‖A‖ ‖h‖      or, for a solve that has come to rest,      ‖Aᵀh‖ s ≤ τ ‖h‖²,
s the size of y. The second sees constraints whose derivative vanishes there (y² + 1 = 0 at y = 0).
Both are safe against taking a point near the solution of badly scaled constraints for a dead end, as
long as the condition of A is below 1/τ. Contradictory constraints and a local dead end look alike.

Unbounded. The iterates are far beyond any size the problem has shown, or the objective has fallen far
beyond what its value and slope at the start explain; and it falls on: on the way from half of that
distance, in powers of ten, no less than a tenth of what it fell before. A logarithm does; an objective
that levels off towards a bound does not. That one has no solution either, but is not told apart from
slow convergence.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..problem import Problem, flat
from .constraint_products import ConstraintProducts
from .residual import constraint_norm, norm

#: How many times its starting size (or 1) a point may grow to, or f fall; squares stay finite in float32.
_FAR = 1e15
_DECADES = 15
_LEAST_SHARE = 0.1


def stuck(h: Tensor, pulled: Tensor, norm_of_A: Tensor) -> Tensor:
    """Whether pulled = Aᵀh (B, m) is zero beside ‖A‖‖h‖, (B,), for h (B, p) that is not zero."""
    return norm(pulled) <= _tau(h) * norm_of_A * norm(h)


def stuck_at_rest(h: Tensor, pulled: Tensor, size: Tensor) -> Tensor:
    """Whether a move by ``size`` (B,) changes ½‖h‖² by a negligible part of it, to first order."""
    return norm(pulled) * size <= _tau(h) * h.square().sum(dim=-1)


def _tau(h: Tensor) -> float:
    return float(torch.finfo(h.dtype).eps ** 0.4)


class Depth:
    """What a batch started from, to tell when an iterate is beyond all bounds.

    Args:
        y: (B, *y), the start. value: (B,), f there. gradient: (B, m), ∇f there.
        change: (B,), the size of ∇²f y, how much the gradient changes over a distance of size ‖y‖.
    """

    def __init__(
        self, problem: Problem, y: Tensor, value: Tensor, gradient: Tensor, change: Tensor
    ) -> None:
        self.problem = problem
        self.start, self.value = y, value
        size = 1 + norm(flat(y))
        self.bound = _FAR * size
        fall = _FAR * (value.abs() + (norm(gradient) + change) * size)
        self.fall = torch.where(fall > 0, fall, torch.inf)

    def beyond(self, y: Tensor, value: Tensor) -> Tensor:
        """Whether y (B, *y) is too far or f(y) too deep, (B,)."""
        return (norm(flat(y)) > self.bound) | (self.value - value > self.fall)

    def unbounded(self, y: Tensor, value: Tensor) -> Tensor:
        """Whether it is, and f falls on, (B,)."""
        beyond = self.beyond(y, value)
        if not bool(beyond.any()):
            return beyond
        halfway = self.start + (y - self.start) / _FAR**0.5
        with torch.no_grad():
            middle = self.problem.objective(halfway)
        middle = torch.where(middle.isfinite(), middle, self.value)
        return beyond & (value < self.value) & _falls_on(self.value, middle, value)


def falls_along(problem: Problem, y: Tensor, direction: Tensor) -> Tensor:
    """Whether f falls on along y + t·direction, (B, *y), up to the largest sizes, and h stays 0.

    Looked at in steps of a factor of ten, which a function with a minimum along the ray cannot pass.
    """
    size = torch.where(norm(flat(y)) > 0, norm(flat(y)), 1.0)
    unit = flat(direction) / norm(flat(direction)).unsqueeze(-1)
    norm_of_A = constraint_norm(ConstraintProducts(problem, y))
    with torch.no_grad():
        first = middle = value = before = problem.objective(y)
        falling = before.isfinite() & unit.isfinite().all(dim=-1)
        for decade in range(1, _DECADES + 1):
            point = flat(y) + (10.0**decade * size).unsqueeze(-1) * unit
            value = problem.objective(point.reshape(y.shape))
            h = problem.all_constraints(point.reshape(y.shape))
            falling = falling & ((value < before) | (value == -torch.inf))
            if h is not None:
                roundings = torch.finfo(y.dtype).eps ** 0.5 * norm_of_A * norm(point)
                falling = falling & (norm(h) <= roundings)
            if decade == _DECADES // 2:
                middle = value
            before = value
    return falling & _falls_on(first, middle, value)


def _falls_on(first: Tensor, middle: Tensor, last: Tensor) -> Tensor:
    return (last == -torch.inf) | (middle - last >= _LEAST_SHARE * (first - middle))
