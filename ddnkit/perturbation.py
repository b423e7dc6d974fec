"""Small relative changes of a problem's data, which tell how much a quantity depends on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

#: Relative step: small enough to stay inside the domain of a barrier, large enough that the difference of
#: two gradients keeps half of the digits.
STEP = {dtype: torch.finfo(dtype).eps ** 0.5 for dtype in (torch.float64, torch.float32)}


def perturb(x: Any, step: float, stream: int, probe: int) -> Any:
    """x with each entry changed by ¼ to 1 step, relatively; what is no floating tensor as it is."""
    if not (isinstance(x, Tensor) and x.is_floating_point()):
        return x
    x = x.detach()
    pattern = relative_changes(x, x.shape[1:], step, stream, probe)
    if len(x) == 1:  # in the memory of the pattern
        return pattern.unsqueeze(0).mul_(x).add_(x)
    return torch.addcmul(x, x, pattern)


def relative_changes(
    like: Tensor, shape: Sequence[int], step: float, stream: int, probe: int
) -> Tensor:
    """Relative changes, of size ¼ to 1 step and either sign, that differ from entry to entry."""
    # Multiples of an irrational number fill [0, 1) evenly. Each tensor, and each dimension of it, has
    # its own: were y and x to move in proportion, y might stay a solution and the scale be zero.
    irrational = (101 * probe + 5 * stream + 2.6180339887498949) ** 0.5
    sign = 1 if irrational % 1.0 < 0.5 else -1
    size_of_step = sign * step * (0.5 + irrational * 7 % 0.5)
    factor = torch.full((), size_of_step, dtype=like.dtype, device=like.device)
    for k, size in enumerate(shape):
        index = torch.arange(1, size + 1, device=like.device, dtype=torch.float64)
        fraction = (index * (irrational + 0.1 * k)) % 1.0
        pattern = torch.where(fraction < 0.5, fraction + 0.5, -fraction)  # of size ½ to 1
        factor = factor.unsqueeze(-1) * pattern.to(like.dtype)
    return factor
