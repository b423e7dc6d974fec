"""Derivatives by differences that find their own step, to about ten digits of a smooth function.

Central differences at steps h, h/4, h/16, … are extrapolated to h = 0 (Richardson's table), which
removes the even powers of h one by one. The entry that agrees best with its two parents is taken:
coarse steps lose to truncation, or leave the function's domain; fine ones lose to its rounding.

Source: Ridders, *Accurate computation of F′(x) and F′(x)F″(x)*.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_RATIO = 4.0
#: 1e-2 to 2e-6, the coarsest first.
_STEPS = 1e-2 * _RATIO ** -torch.arange(7, dtype=torch.float64)
_ORDERS = 3


def derivatives_at_zero(function: Callable[[Tensor], Sequence[Tensor]]) -> list[Tensor]:
    """dg/dt at t = 0 for each g of ``function``, which takes numbers t (n,) and returns (n, *g) each.

    NaN where no step gave finite values.

    Example:
        >>> derivatives_at_zero(lambda t: [t.sin()])
        [tensor(1., dtype=torch.float64)]
    """
    return [_extrapolated(values) for values in function(torch.cat([_STEPS, -_STEPS]))]


def _extrapolated(values: Tensor) -> Tensor:
    ahead, behind = values.chunk(2)
    column = list((ahead - behind) / (2 * _STEPS.reshape(-1, *[1] * (values.ndim - 1))))
    best, least = torch.full_like(column[0], torch.nan), float("inf")
    for order in range(1, _ORDERS + 1):
        gain = _RATIO ** (2 * order) - 1
        parents = list(itertools.pairwise(column))
        column = [fine + (fine - coarse) / gain for coarse, fine in parents]
        for entry, pair in zip(column, parents, strict=True):
            doubt = max(float((entry - parent).norm()) for parent in pair)
            if doubt < least:  # false for NaN
                best, least = entry, doubt
    return best
