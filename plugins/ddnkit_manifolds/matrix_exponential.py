"""exp of a matrix, to rounding also of one alone.

`torch.linalg.matrix_exp` takes too few terms of the series for a single matrix: of norm 0.05 it is off by
2.5e-10 in float64 (torch 2.14), and exp of a skew matrix is then not orthogonal. For two or more it takes
enough.
"""

from __future__ import annotations

import torch
from torch import Tensor


def matrix_exponential(A: Tensor) -> Tensor:
    """exp(A), (..., n, n)."""
    if A.numel() != A.shape[-1] ** 2:
        return torch.linalg.matrix_exp(A)
    return torch.linalg.matrix_exp(torch.stack([A, A]))[0]
