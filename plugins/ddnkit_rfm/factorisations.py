"""Solving A α = Y for a symmetric positive semidefinite A that is held whole, and overwritten."""

from __future__ import annotations

import torch
from torch import Tensor


def cholesky_solution(A: Tensor, targets: Tensor) -> Tensor | None:
    """A⁻¹Y ``(n, C)``, or None where A is singular to working precision; A ``(n, n)`` is overwritten.

    The pivot ℓ_i² of A = LLᵀ is what is left of A_ii once the columns before are taken out: for a kernel
    matrix the part of sample i that the others do not determine. Rounding leaves of it as much as nε max A;
    a factorisation that runs to its end with such a pivot has digits of rounding for a solution.
    """
    rounding = len(A) * torch.finfo(A.dtype).eps * A.diagonal().max()
    info = torch.empty((), dtype=torch.int32, device=A.device)
    # A's transpose is A in the column order of LAPACK, which then factorises in place.
    L, _ = torch.linalg.cholesky_ex(A.mT, out=(A.mT, info))
    if int(info) != 0 or not bool((L.diagonal().square() > rounding).all()):
        return None
    half = torch.linalg.solve_triangular(L, targets, upper=False)
    return torch.linalg.solve_triangular(L.mT, half, upper=True)


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
