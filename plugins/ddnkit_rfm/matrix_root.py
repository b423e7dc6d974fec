"""The square root of a symmetric positive semidefinite matrix, such as an AGOP."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ddnkit import InputError

from .checks import check_finite

#: The most of a matrix's largest eigenvalue that a negative one may be and pass for rounding.
NEGATIVE = 1e-4


class MatrixRoot(NamedTuple):
    """M^{1/2}, and how far M was from positive semidefinite.

    Attributes:
        root: ``(d, d)``, symmetric positive semidefinite.
        clipped: −λ_min/λ_max where λ_min is below 0, and taken for 0; else 0.
    """

    root: Tensor
    clipped: float


def matrix_sqrt(M: Tensor) -> MatrixRoot:
    """M^{1/2} = V diag(√λ) Vᵀ of a symmetric positive semidefinite M = V diag(λ) Vᵀ.

    Eigenvalues are taken in float64; those below 0, which are rounding, as 0.

    Args:
        M: ``(d, d)``.

    Raises:
        ddnkit.InputError: M is not square, symmetric and finite, or has an eigenvalue below −1e-4 of its
            largest.
    """
    if M.ndim != 2 or M.shape[0] != M.shape[1] or M.numel() == 0:
        raise InputError(f"a matrix of shape {tuple(M.shape)} has no square root; expected (d, d)")
    check_finite(M, "the matrix")
    wide = M.to(torch.float64)
    if not torch.allclose(wide, wide.T, rtol=0, atol=NEGATIVE * float(wide.abs().max())):
        raise InputError("the matrix is not symmetric: it has no symmetric square root")
    eigenvalues, V = torch.linalg.eigh(wide)
    largest, smallest = eigenvalues[-1], eigenvalues[0]
    if smallest < -NEGATIVE * largest.clamp(min=0):
        raise InputError(
            f"the matrix is not positive semidefinite: its eigenvalues are "
            f"{float(smallest):.3g} … {float(largest):.3g}"
        )
    clipped = float(torch.where(smallest < 0, -smallest / largest, 0.0))
    root = (V * eigenvalues.clamp(min=0).sqrt()) @ V.T
    return MatrixRoot(((root + root.T) / 2).to(M.dtype), clipped)
