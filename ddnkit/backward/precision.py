"""What float32 and rounding do to a Hessian: the same problem in float64, and what a figure is uncertain by.

A solution is known to the rounding of its dtype, and so is the data of its problem. How far a Hessian
moves when both are moved by a few such roundings is what its entries are uncertain by: an entropy's
curvature 1/y moves by as many roundings of itself, however small beside others; what is left of terms
that cancelled moves by roundings of these terms, which is all of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..linalg.kkt import HESSIAN_ROUNDINGS, NOISE_FACTOR
from ..problem import Problem

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


def moved(problem: Problem, y: Tensor, eps: float) -> tuple[Problem, Tensor]:
    """The problem and y, each entry moved by some roundings ``eps`` of itself, either way."""
    operands = [
        _moved(x, eps, k) if x.is_floating_point() else x for k, x in enumerate(problem.operands)
    ]
    return problem.with_operands(operands), _moved(y, eps, -1)


def _moved(x: Tensor, eps: float, stream: int) -> Tensor:
    if x.numel() == 0:
        return x
    # The same in every item of a batch. Multiples of an irrational number, of size ½ to 1.
    shape = x.shape[1:] if x.ndim > 1 else x.shape
    index = torch.arange(1, shape.numel() + 1, device=x.device, dtype=torch.float64)
    fraction = (index * (2.6180339887498949 + 5 * (stream + 1)) ** 0.5) % 1.0
    pattern = torch.where(fraction < 0.5, fraction + 0.5, -fraction)
    return torch.addcmul(x, x, (pattern * (_MOVED_BY * eps)).to(x.dtype).reshape(shape))


def rounding_may_decide(ratio: Tensor, eps: float) -> bool:
    """Whether the least curvature, this ratio below the largest (B,), may be its rounding alone."""
    return not bool((ratio * (HESSIAN_ROUNDINGS * NOISE_FACTOR * eps) <= 1).all())
