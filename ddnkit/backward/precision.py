"""What float32 and rounding do to a Hessian: the same problem in float64, and what a figure is uncertain by.

A solution is known to the rounding of its dtype, and so is the data of its problem; each operation rounds
once more. What the entries of a Hessian are uncertain by is how far they move when all of that is moved by
a few roundings: an entropy's curvature 1/y moves by as many roundings of itself, however small beside
others; what is left of terms that cancelled moves by roundings of these terms. Moving y and the data alone
would not show the latter: 1 − x²/‖x‖² does not move with x near an axis, and is rounded all the same.
(Parker, *Monte Carlo arithmetic*, 1997.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..linalg.kkt import HESSIAN_ROUNDINGS, NOISE_FACTOR
from ..problem import Problem

#: value(problem, y, ν)
Evaluate = Callable[[Problem, Tensor, Tensor | None], Tensor]

#: Roundings that y and the operands are moved by.
_MOVED_BY = 8
#: An operation's result is moved by so many of its own.
_ROUNDED_BY = 2
_PROBES = 2
#: How far products in float32 and in float64 may be apart for the rounding of one operator.
SAME_OPERATOR = 1e-2


def float64_problem(problem: Problem) -> Problem | None:
    """A float32 problem in float64; None where the device has no float64."""
    if any(x.device.type == "mps" for x in problem.operands):
        return None
    return problem.in_float64()


def uncertainty(
    evaluate: Evaluate, value: Tensor, problem: Problem, y: Tensor, nu: Tensor | None, eps: float
) -> Tensor:
    """How far each entry of ``value`` may be off where y and operands are known to the rounding ``eps``."""
    found = torch.zeros_like(value)
    for probe in range(_PROBES):  # one of them may by chance be rounded as the value was
        with _Rounded(probe):
            moved = evaluate(*_moved_problem(problem, y, eps, probe), nu)
        found = torch.maximum(found, (moved - value).abs())
    return found


class _Rounded(TorchDispatchMode):
    """Moves the result of every operation by roundings of itself, of its own dtype."""

    def __init__(self, probe: int):
        super().__init__()
        self._count = 1000 * probe

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._efficientzerotensor.default:
            # A tensor without memory, which the process dies of where a mode and a vmap meet.
            return torch.zeros(*args, **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        new = not any(value.alias_info for value in func._schema.returns)
        if new and isinstance(out, Tensor) and out.dtype in (torch.float32, torch.float64):
            self._count += 1
            index = torch.arange(out.numel(), device=out.device, dtype=torch.float64)
            pattern = (self._count + 1.6180339887498949 * index * index).sin()
            size = _ROUNDED_BY * torch.finfo(out.dtype).eps
            out = out + out * (pattern * size).to(out.dtype).reshape(out.shape)
        return out


def _moved_problem(problem: Problem, y: Tensor, eps: float, probe: int) -> tuple[Problem, Tensor]:
    """The problem and y, each entry moved by some roundings ``eps`` of itself, either way."""
    operands = [
        perturb_by_rounding(x, eps, 100 * probe + k) if x.is_floating_point() else x
        for k, x in enumerate(problem.operands, start=1)
    ]
    return problem.with_operands(operands), perturb_by_rounding(y, eps, 100 * probe)


def perturb_by_rounding(x: Tensor, eps: float, stream: int) -> Tensor:
    """x (B, ...) with each entry moved by 4 to 8 roundings ``eps`` of itself, either way."""
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
