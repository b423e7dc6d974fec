"""Solving A α = Y for a symmetric positive semidefinite A that is held whole, and overwritten."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

#: A factorisation takes a sixteenth of the columns at a time, but not so few that its overhead tells, nor
#: more than stay in cache.
_STEPS, _FEWEST, _WIDEST = 16, 32, 256


@dataclass(frozen=True)
class CholeskyFactor:
    """A = LLᵀ: L in the lower triangle of a matrix and on its diagonal, above it A as it was.

    A product with A, and so the residual of a solution, needs no second computation of A.

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
    """The factor of A ``(n, n)``, in its place, or None where A is singular to working precision.

    Block by block of columns, with L of the columns before: LAPACK's own factorisation would clear the
    triangle above.

    The pivot ℓ_i² is what is left of A_ii once the columns before are taken out: for a kernel matrix the
    part of sample i that the others do not determine. Rounding leaves of it as much as nε max A; a
    factorisation that runs to its end with such a pivot has digits of rounding for a solution.
    """
    # As LAPACK has it, column by column: what A is, being symmetric, row by row.
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

    Of all α with the smallest ‖Aα − Y‖ the one with the smallest norm: samples that coincide share their
    coefficient evenly, and are given the mean of their targets. Eigenvalues up to nε of the largest one are
    rounding, and count as 0.
    """
    eigenvalues = A.new_empty(len(A))
    eigenvalues, V = torch.linalg.eigh(A.mT, out=(eigenvalues, A.mT))
    kept = eigenvalues > len(A) * torch.finfo(A.dtype).eps * eigenvalues[-1]
    inverse = torch.where(kept, 1 / eigenvalues, 0.0)
    return V @ (inverse[:, None] * (V.T @ targets)), int(kept.sum())
