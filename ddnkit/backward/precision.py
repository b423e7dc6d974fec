"""What float32 and rounding do to a Hessian: the same problem in float64, and what a figure is uncertain by.

A solution is known to the rounding of its dtype, and so is the data of its problem. What the entries of a
Hessian are uncertain by is therefore no less than how far they move when both are moved by a few such
roundings: an entropy's curvature 1/y moves by as many roundings of itself, however small beside others.
What is left of terms that cancelled need not move at all, as 1 − x²/‖x‖² does not near an axis, and is
rounded by roundings of these terms. That shows in another precision: the difference of float32 and float64
is the rounding of the former, and 2⁻²⁹ of it that of the latter.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..linalg.kkt import HESSIAN_ROUNDINGS, NOISE_FACTOR, wide_dtype
from ..problem import Problem

#: value(problem, y, ν)
Evaluate = Callable[[Problem, Tensor, Tensor | None], Tensor]

#: Roundings that y and the operands are moved by.
_MOVED_BY = 8
#: How far products in float32 and in float64 may be apart for the rounding of one operator.
SAME_OPERATOR = 1e-2


def widened(problem: Problem) -> Problem | None:
    """A float32 problem with its operands in float64; None where the device has no float64."""
    operands = problem.operands
    if any(x.device.type == "mps" for x in operands):
        return None
    return problem.with_operands([x.double() if x.dtype == torch.float32 else x for x in operands])


def uncertainty(
    evaluate: Evaluate, value: Tensor, problem: Problem, y: Tensor, nu: Tensor | None, eps: float
) -> Tensor:
    """How far each entry of ``value`` may be off where y and the operands are known to the rounding ``eps``."""
    found = (evaluate(*_moved_problem(problem, y, eps), nu) - value).abs()
    other = torch.float32 if value.dtype == torch.float64 else wide_dtype(value)
    if other == value.dtype:
        return found
    try:
        point = y.to(other)
        with_nu = None if nu is None else nu.to(other)
        apart = (evaluate(_in_dtype(problem, other), point, with_nu).to(value.dtype) - value).abs()
    except Exception:  # whatever a node throws that is not made for another dtype
        return found
    if other == torch.float32:
        apart = apart * (torch.finfo(value.dtype).eps / torch.finfo(other).eps)
    return torch.where(apart.isfinite(), torch.maximum(found, apart), found)


def _in_dtype(problem: Problem, dtype: torch.dtype) -> Problem:
    pair = (torch.float32, torch.float64)
    return problem.with_operands([x.to(dtype) if x.dtype in pair else x for x in problem.operands])


def _moved_problem(problem: Problem, y: Tensor, eps: float) -> tuple[Problem, Tensor]:
    """The problem and y, each entry moved by some roundings ``eps`` of itself, either way."""
    operands = [
        _moved(x, eps, k) if x.is_floating_point() else x
        for k, x in enumerate(problem.operands, start=1)
    ]
    return problem.with_operands(operands), _moved(y, eps, 0)


def _moved(x: Tensor, eps: float, stream: int) -> Tensor:
    if x.numel() == 0:
        return x
    # The same in every item of a batch. Multiples of an irrational number, of size ½ to 1.
    shape = x.shape[1:] if x.ndim > 1 else x.shape
    index = torch.arange(1, shape.numel() + 1, device=x.device, dtype=torch.float64)
    fraction = (index * (2.6180339887498949 + 5 * stream) ** 0.5) % 1.0
    pattern = torch.where(fraction < 0.5, fraction + 0.5, -fraction)
    return torch.addcmul(x, x, (pattern * (_MOVED_BY * eps)).to(x.dtype).reshape(shape))


def rounding_may_decide(ratio: Tensor, eps: float) -> bool:
    """Whether the least curvature, this ratio below the largest (B,), may be its rounding alone."""
    return not bool((ratio * (HESSIAN_ROUNDINGS * NOISE_FACTOR * eps) <= 1).all())
