"""G^{-1/2} by matrix products alone, for a device on which factorisations are slow or wait for the host.

An odd polynomial p(x) = x q(x²) that takes [l, 1] nearer to 1 maps G to G q(G)², whose eigenvalues are
p(√λ)². From Y = G, Z = I the coupled iteration

    R = Z Y,    P = q(R) = aI + bR + cR²,    Y ← Y P,    Z ← P Z

keeps Y = G Z and ends at R = I, so that Z = G^{-1/2} and Y = G^{1/2} (Higham, *Functions of Matrices*,
chapter 6; of the possible orders of the factors these are stable). With q = (15 − 10R + 3R²)/8 it is
the Newton–Schulz iteration of order three, which hardly moves a small eigenvalue: by 15/8 a step.

Among quintics, the one that minimises max |1 − p| over [l, u] equioscillates,

    1 − p = E, −E, E, −E   at   l < x₁ < x₂ < u,    p'(x₁) = p'(x₂) = 0,

and takes the interval to [1 − E, 1 + E]. Taking in each step the best one for the interval that the last
has left is optimal among all compositions of as many quintics (Amsel, Persson, Musco and Gower, *The
Polar Express*, 2025); a small eigenvalue grows more than fourfold a step, and as l → u the
step tends to that of Newton–Schulz. The steps depend on l alone: they are numbers, known before the
matrix is, and nothing has to be asked of the device.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

#: Where the steps end: max |1 − p| over what the interval has become. Mostly it is less by far, since
#: the last steps go from 1e-2 over 1e-5 to rounding.
ACCURACY = 1e-6

#: An interval this short leaves nothing to equioscillate over: Newton–Schulz, scaled, is the limit.
_SHORT = 1e-5

Quintic = tuple[float, float, float]


@functools.lru_cache(maxsize=64)
def odd_quintics(least: float) -> tuple[Quintic, ...]:
    """The steps (a, b, c) that take singular values in [least, 1] to within `ACCURACY` of 1."""
    lower, upper = least, 1.0
    steps = []
    while upper - lower > 2 * ACCURACY:
        a, b, c = best_quintic(lower, upper)
        steps.append((a, b, c))
        lower = a * lower + b * lower**3 + c * lower**5
        upper = 2 - lower
    return tuple(steps)


def best_quintic(lower: float, upper: float) -> Quintic:
    """(a, b, c) of the p(x) = ax + bx³ + cx⁵ that minimises max |1 − p| over [lower, upper]."""
    if upper - lower < _SHORT * upper:
        middle = (lower + upper) / 2
        return 15 / (8 * middle), -10 / (8 * middle**3), 3 / (8 * middle**5)
    # Exact in the limit of a short interval; Remez' exchange then moves the two inner points.
    first, second = (3 * lower + upper) / 4, (lower + 3 * upper) / 4
    error, before = 0.0, math.inf
    while abs(error - before) > 1e-15:
        points = ((lower, 1), (first, -1), (second, 1), (upper, -1))
        system = [[x, x**3, x**5, sign] for x, sign in points]
        before = error
        a, b, c, error = (float(value) for value in np.linalg.solve(system, np.ones(4)))
        root = math.sqrt(9 * b * b - 20 * a * c)
        first, second = (math.sqrt((-3 * b + sign * root) / (10 * c)) for sign in (-1, 1))
    return a, b, c


def inverse_square_root(G: Tensor, least: float, square: Tensor | None = None) -> Tensor:
    """Z = G^{-1/2} to within `ACCURACY`, (..., C, C), for symmetric G with eigenvalues in [least², 1].

    About 4 products of C×C matrices a step, `len(odd_quintics(least))` of them; rounding adds a few
    epsilons times 1/least². An eigenvalue below least² is taken less far, at 0 it stays 0. (Z should not
    be corrected by E = Z G Z − I: Z E/2 enlarges what of E does not commute with G by 1/least.)

    Args:
        square: G², where it is known already.
    """
    Y, Z = G, None
    steps = odd_quintics(least)
    for k, (a, b, c) in enumerate(steps):
        R = Y if Z is None else Z @ Y
        P = b * R
        P.add_(R @ R if square is None or k > 0 else square, alpha=c)
        P.diagonal(dim1=-2, dim2=-1).add_(a)
        Z = P if Z is None else P @ Z
        if k + 1 < len(steps):
            Y = Y @ P
    if Z is None:
        Z = torch.eye(G.shape[-1], dtype=G.dtype, device=G.device).expand_as(G)
    return (Z + Z.mT) / 2


def largest_eigenvalue_bounds(G: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
    """Lower and upper bound of λmax, (...), for positive semidefinite G (..., C, C) and G².

    tr G⁴/tr G³ ≤ λmax ≤ min((tr G⁴)^{1/4}, max row sum); the two differ by C^{1/4} at most, because
    tr G³ ≤ (tr G⁴)^{3/4} C^{1/4}. 0 and 0 for G = 0.
    """
    fourth = square.square().sum(dim=(-2, -1))
    third = (G * square).sum(dim=(-2, -1))
    rows = G.abs().sum(dim=-1).amax(dim=-1)
    upper = torch.minimum(fourth.sqrt().sqrt(), rows)
    return torch.where(third > 0, fourth / third, 0.0), upper
