"""Factorisations of a symmetric positive semidefinite matrix that fits in memory.

Those that solve Aα = Y overwrite A; the square root, which an AGOP needs, does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ddnkit import InputError

from .samples import check_finite

#: A factorisation takes a sixteenth of the columns at a time, but not so few that their overhead dominates,
#: nor more than fit in the cache.
_STEPS, _FEWEST, _WIDEST = 16, 32, 256

#: The most that a negative eigenvalue may be, relative to the largest, to count as rounding.
NEGATIVE = 1e-4


@dataclass(frozen=True)
class CholeskyFactor:
    """A = LLᵀ in one matrix: L on and below its diagonal, the entries of A above it.

    Products with A, and with them the residual of a solution, thus need no second computation of A.

    Attributes:
        matrix: ``(n, n)``.
        diagonal: that of A ``(n,)``.
    """

    matrix: Tensor
    diagonal: Tensor

    def solve(self, targets: Tensor) -> Tensor:
        """A⁻¹Y ``(n, C)``."""
        half = torch.linalg.solve_triangular(self.matrix, targets, upper=False)
        return torch.linalg.solve_triangular(self.matrix.mT, half, upper=True)

    def apply(self, V: Tensor) -> Tensor:
        """AV ``(n, C)``."""
        product = self.diagonal[:, None] * V
        for block in _steps(len(self.matrix)):
            rest = slice(block.stop, None)
            near, far = self.matrix[block, block].triu(1), self.matrix[block, rest]
            product[block] += near @ V[block] + near.mT @ V[block] + far @ V[rest]
            product[rest] += far.mT @ V[block]
        return product


def cholesky(A: Tensor) -> CholeskyFactor | None:
    """Factorise A ``(n, n)`` in its own memory; None where A is singular to working precision.

    The columns are taken in blocks, each with L of the columns before it. LAPACK's own factorisation of the
    whole would overwrite the triangle above the diagonal.

    The pivot ℓ_i² is what is left of A_ii once the columns before are taken out: for a kernel matrix the
    part of sample i that the others do not determine. Rounding leaves of it as much as nε max A; a
    factorisation that runs to its end with such a pivot has digits of rounding for a solution.
    """
    # LAPACK stores matrices by columns; A, being symmetric, is the same by rows.
    F, diagonal = A.mT, A.diagonal().clone()
    for block in _steps(len(F)):
        before, below = slice(0, block.start), slice(block.stop, None)
        left = F[block, before].mT
        square = torch.addmm(F[block, block], left.mT, left, alpha=-1)
        L, info = torch.linalg.cholesky_ex(square)
        if int(info) != 0:
            return None
        F[below, block].addmm_(F[below, before], left, alpha=-1)
        F[below, block] = torch.linalg.solve_triangular(
            L.mT, F[below, block], upper=True, left=False
        )
        F[block, block] = L + F[block, block].triu(1)
    rounding = len(F) * torch.finfo(F.dtype).eps * diagonal.max()
    if not bool((F.diagonal().square() > rounding).all()):
        return None
    return CholeskyFactor(F, diagonal)


def cholesky_matrices(n: int) -> float:
    """Matrices n×n that `cholesky` holds: A, and two copies of the columns of a step."""
    return 1 + 2 * _width(n) / n


def _width(n: int) -> int:
    return min(max(n // _STEPS, _FEWEST), _WIDEST, n)


def _steps(n: int) -> Iterator[slice]:
    width = _width(n)
    return (slice(start, min(start + width, n)) for start in range(0, n, width))


def minimum_norm_solution(A: Tensor, targets: Tensor) -> tuple[Tensor, int]:
    """A⁺Y ``(n, C)`` and the numerical rank of A; A ``(n, n)`` is overwritten.

    Of all α with the smallest ‖Aα − Y‖ this is the one with the smallest norm: of a kernel matrix, samples
    that coincide share their coefficient evenly, and their prediction is the mean of their targets.
    Eigenvalues up to nε times the largest one count as 0, since rounding alone may leave as much.
    """
    eigenvalues = A.new_empty(len(A))
    eigenvalues, V = torch.linalg.eigh(A.mT, out=(eigenvalues, A.mT))
    kept = eigenvalues > len(A) * torch.finfo(A.dtype).eps * eigenvalues[-1]
    inverse = torch.where(kept, 1 / eigenvalues, 0.0)
    return V @ (inverse[:, None] * (V.T @ targets)), int(kept.sum())


class MatrixRoot(NamedTuple):
    """The square root of M, and how far M was from positive semidefinite.

    Attributes:
        root: ``(d, d)``, symmetric positive semidefinite.
        clipped: −λ_min/λ_max where λ_min is negative (it is replaced by 0), else 0.
    """

    root: Tensor
    clipped: float


def matrix_sqrt(M: Tensor) -> MatrixRoot:
    """M^{1/2} = V diag(√λ) Vᵀ of a symmetric positive semidefinite M = V diag(λ) Vᵀ.

    Computed in float64. Negative eigenvalues, which come from rounding, are replaced by 0.

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
