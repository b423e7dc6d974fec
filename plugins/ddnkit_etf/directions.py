"""Unit vectors of rows whose squares overflow, such as 1e30 in float32."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def safe_scale(rows: Tensor) -> Tensor:
    """A power of two for each row (…, d), as (…, 1), with which the sum of its squares is finite.

    It is 1 for rows of ordinary size, up to 2⁴⁸ in float32 and 2³⁸⁴ in float64, so that their results
    stay the same to the last bit. Larger entries are below 2^E, E = 128 or 1024: times 2^(−5E/8) the
    largest of a row is between 2^(−E/4) and 2^(3E/8), and neither the squares of d ≤ 2^(E/4) such
    entries overflow nor does that of the largest vanish. No gradient passes: a direction does not
    depend on it.
    """
    # The largest entry, without a tensor of this size.
    top = torch.linalg.vector_norm(rows.detach(), torch.inf, dim=-1, keepdim=True)
    exponent = round(math.log2(torch.finfo(rows.dtype).max))
    return torch.ones_like(top).masked_fill(
        top > 2.0 ** (3 * exponent // 8), 2.0 ** (-5 * exponent // 8)
    )


def unit_rows(rows: Tensor) -> Tensor:
    """x/‖x‖ of each row (…, d), also where ‖x‖² is too large for the dtype; below 1e-12 x/1e-12."""
    return nn.functional.normalize(rows * safe_scale(rows), dim=-1)
