"""A line search for a batch: every item its own step length, all evaluated together.

For φ(t) = M(y + t d), φ'(0) < 0, a step t is taken if
    φ(t) ≤ φ(0) + c₁ t φ'(0) + noise      and      |φ'(t)| ≤ c₂ |φ'(0)|      (strong Wolfe),
noise being eps^{3/4}|φ|, more than what rounding adds to φ unless its terms cancel by four digits. Near
a minimum, where φ changes by less than that, the first condition always holds and the slopes alone
decide, so that gradients far below √eps can be reached.
The bracket [a, b] has φ' < 0 at a, which satisfies the first condition; b violates it or has φ' > 0.
Until there is a b, steps grow up to tenfold; then they are interpolated between the two, by the secant
of the slopes, or a cubic. A trial point outside the domain (φ or ∇M not finite) becomes b; a step more
than half the way to it is taken as soon as it satisfies the first condition, for close to the edge of
a domain the next step would be short.

Source: Nocedal and Wright, *Numerical Optimization*, algorithms 3.5 and 3.6; the noise as in Hager and
Zhang, *A new conjugate gradient method with guaranteed descent and an efficient line search*.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .augmented_lagrangian import Evaluation

_ARMIJO = 1e-4
_CURVATURE = 0.9
_TRIALS = 40
_BISECT_FROM = 10
_GROWTH = 10.0
_TO_THE_EDGE = 0.5
_NOISE_POWER = 0.75


@dataclass(frozen=True)
class _End:
    """One end of the brackets: step length, φ and φ' there, (B,) each."""

    t: Tensor
    value: Tensor
    slope: Tensor

    def where(self, items: Tensor, other: _End) -> _End:
        return _End(
            torch.where(items, self.t, other.t),
            torch.where(items, self.value, other.value),
            torch.where(items, self.slope, other.slope),
        )


def search(
    evaluate: Callable[[Tensor], Evaluation],
    y: Tensor,
    here: Evaluation,
    direction: Tensor,
    longest: Tensor,
    active: Tensor,
) -> tuple[Tensor, Evaluation]:
    """Step lengths for ``active`` items (B,) along directions (B, m) of descent from y (B, m).

    Args:
        here: the evaluation at y.
        longest: (B,), no step is longer.

    Returns:
        t (B,), 0 where no step decreases φ, and the evaluation at y + t d.
    """
    noise = torch.finfo(y.dtype).eps ** _NOISE_POWER * here.magnitude
    start = _End(torch.zeros_like(here.value), here.value, _dot(here.gradient, direction))
    a, b = start, _End(torch.full_like(start.t, torch.inf), start.value, start.slope)
    t = longest.clamp_max(1.0)
    best_t, best, searching = start.t, here, active
    for trial in range(_TRIALS):
        moved = y + torch.where(searching, t, 0.0).unsqueeze(-1) * direction
        there = evaluate(moved)
        slope = torch.where(there.finite, _dot(there.gradient, direction), torch.nan)
        end = _End(t, there.value, slope)
        low = there.finite & (end.value <= start.value + _ARMIJO * t * start.slope + noise)
        at_edge = b.t.isfinite() & ~b.slope.isfinite() & (t >= _TO_THE_EDGE * b.t)
        flat = end.slope.abs() <= -_CURVATURE * start.slope
        done = low & (flat | at_edge | (t >= longest))
        # The longest step with enough decrease so far is what is left if no step has both.
        better = searching & low & (done | (end.value < best.value) | (best_t == 0))
        best_t, best = torch.where(better, t, best_t), there.where(better, best)
        # A step too short to be one in this dtype ends the search, too.
        searching = searching & ~done & (moved != y).any(dim=-1)
        if not bool(searching.any()):
            break
        forward = low & (end.slope < 0)
        t = torch.where(searching, _next(a, b, end, forward, trial).minimum(longest), t)
        a, b = end.where(forward, a), b.where(forward, end)
    return best_t, best


def _next(a: _End, b: _End, end: _End, forward: Tensor, trial: int) -> Tensor:
    grown = _secant(a, end).clamp(2 * end.t, _GROWTH * end.t)
    grown = torch.where(grown.isnan(), _GROWTH * end.t, grown)
    low, high = end.where(forward, a), b.where(forward, end)
    width = high.t - low.t
    inner = torch.where(high.slope > 0, _secant(low, high), _cubic(low, high))
    inner = torch.where(inner.isfinite(), inner, low.t + 0.25 * width)
    inner = torch.minimum(torch.maximum(inner, low.t + 0.1 * width), low.t + 0.9 * width)
    if trial >= _BISECT_FROM:
        inner = low.t + 0.5 * width
    return torch.where(high.t.isinf(), grown, inner)


def _secant(a: _End, b: _End) -> Tensor:
    """Where the line through the two slopes is zero; not finite where they are equal."""
    return a.t - a.slope * (b.t - a.t) / (b.slope - a.slope)


def _cubic(a: _End, b: _End) -> Tensor:
    """The minimum of the cubic through both values and slopes; NaN where it has none."""
    d1 = a.slope + b.slope - 3 * (b.value - a.value) / (b.t - a.t)
    d2 = (d1.square() - a.slope * b.slope).sqrt()
    return b.t - (b.t - a.t) * (b.slope + d2 - d1) / (b.slope - a.slope + 2 * d2)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=-1)
