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

Whether the constraints of an item that a solver left infeasible can be met at all is found by
    minimise ½‖h(y)‖² over y      by the Levenberg-Marquardt steps   (AᵀA + μI) d = −Aᵀh,  A = Dh,
from where the solver ended; inequality constraints g ≤ 0 count as max(g, 0) among h. If it ends at h = 0,
the constraints were not what stopped the solver; at a point with Aᵀh = 0 but h ≠ 0 they contradict each
other, near that point at least. μ is a tenth of what it was after a step that decreases ‖h‖, and tenfold
after one that does not. Dense: O(m³) a step.

Source: Nocedal and Wright, *Numerical Optimization*, section 10.3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..lagrangian import inequality_jacobian
from ..linalg.items import lu_factor
from ..linalg.kkt import without_bad_items
from ..problem import Problem, flat
from .iterative import Deadline
from .residual import (
    ConstraintProducts,
    constraint_norm,
    constraint_values,
    linear_constraints,
    norm,
)

#: How many times its starting size (or 1) a point may grow to, or f fall; squares stay finite in float32.
_FAR = 1e15
_DECADES = 15
_LEAST_SHARE = 0.1
_STEPS = 200
_ROUNDINGS = 1e3
_FIRST_DAMPING = 1e-3
_LEAST_DAMPING = 1e-12
_NUDGE = 1e-4
_RESTS = 3


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
    """Whether f falls on along y + t·direction, (B, *y), up to the largest sizes, h stays 0 and g ≤ 0.

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
            h = constraint_values(problem, point.reshape(y.shape))
            roundings = torch.finfo(y.dtype).eps ** 0.5 * norm_of_A * norm(point)
            falling = falling & ((value < before) | (value == -torch.inf))
            falling = falling & ((norm(h) == 0) | (norm(h) <= roundings))
            falling = falling & _inequalities_hold(problem, point.reshape(y.shape))
            if decade == _DECADES // 2:
                middle = value
            before = value
    return falling & _falls_on(first, middle, value)


def _inequalities_hold(problem: Problem, y: Tensor) -> Tensor:
    """Whether g ≤ 0 at y (B, *y), but for a small part of how much g changes over the size of y, (B,)."""
    g = problem.inequalities(y)
    if g is None:
        return torch.ones(len(y), dtype=torch.bool, device=y.device)
    rows = torch.arange(g.shape[1], device=g.device)
    sizes = norm(inequality_jacobian(problem, y, rows)) * norm(flat(y)).unsqueeze(-1)
    return (g <= torch.finfo(y.dtype).eps ** 0.5 * sizes).all(dim=-1)


def _falls_on(first: Tensor, middle: Tensor, last: Tensor) -> Tensor:
    return (last == -torch.inf) | (middle - last >= _LEAST_SHARE * (first - middle))


def _violations(problem: Problem, y: Tensor) -> Tensor:
    """h, and g where it is positive, (B, p + q)."""
    h, g = constraint_values(problem, y), problem.inequalities(y)
    return h if g is None else torch.cat([h, g.clamp_min(0)], dim=-1)


def _violated(problem: Problem, y: Tensor) -> tuple[Tensor, Tensor]:
    """`_violations` with their derivatives, of g those alone that are violated in some item."""
    h, A = linear_constraints(problem, y)
    with torch.no_grad():
        g = problem.inequalities(y)
    if g is None:
        return h, A
    rows = (g > 0).any(dim=0).nonzero()[:, 0]
    g = g[:, rows]
    G = inequality_jacobian(problem, y, rows) * (g > 0).unsqueeze(-1)
    return torch.cat([h, g.clamp_min(0)], dim=-1), torch.cat([A, G], dim=1)


def least_violation(problem: Problem, y: Tensor, deadline: Deadline) -> tuple[Tensor, Tensor]:
    """The points of least violation near y (B, *y), and whether h ≠ 0 there for good, (B,)."""
    shape, y = y.shape, flat(y)
    # Off a point that is stationary for ½‖h‖² by symmetry only, such as the centre of a circle.
    size = torch.where(norm(y) > 0, norm(y), 1.0)
    pattern = torch.arange(1, y.shape[1] + 1, dtype=y.dtype, device=y.device).cos()
    y = y + _NUDGE * size.unsqueeze(-1) * pattern / norm(pattern)
    eps = torch.finfo(y.dtype).eps
    eye = torch.eye(y.shape[1], dtype=y.dtype, device=y.device)
    damping = torch.full_like(size, _FIRST_DAMPING)
    rests = torch.zeros_like(size)
    for _ in range(_STEPS):
        h, A = without_bad_items(*_violated(problem, y.reshape(shape)))
        violation, length = norm(h), norm(y)
        norm_of_A = torch.linalg.matrix_norm(A)
        pulled = (A.mT @ h.unsqueeze(-1)).squeeze(-1)
        feasible = violation <= _ROUNDINGS * eps * norm_of_A * length
        if bool((feasible | (rests >= _RESTS)).all()) or deadline.passed:
            break
        # The second term is the curvature of ½‖h‖² where A vanishes.
        stiffness = norm_of_A.square() + violation * norm_of_A / length.clamp_min(eps)
        shift = (damping * stiffness).clamp_min(eps**4).reshape(-1, 1, 1)
        factors = lu_factor(A.mT @ A + shift * eye)
        d = -torch.linalg.lu_solve(*factors, pulled.unsqueeze(-1)).squeeze(-1)
        with torch.no_grad():
            after = norm(_violations(problem, (y + d).reshape(shape)))
        better = after < violation
        y = torch.where(better.unsqueeze(-1), y + d, y)
        resting = torch.where(
            better, violation - after <= 4 * eps * violation, norm(d) <= eps * length
        )
        rests = torch.where(resting, rests + 1, 0)
        damping = torch.where(better, damping / 10, damping * 10).clamp(_LEAST_DAMPING, 1 / eps)
    hopeless = stuck(h, pulled, norm_of_A) | stuck_at_rest(h, pulled, length)
    return y.reshape(shape), hopeless & ~feasible
