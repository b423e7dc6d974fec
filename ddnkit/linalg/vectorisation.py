"""Elimination and commutation matrices for row-major vectorisation (rvec, rvech).

Source: Magnus and Neudecker, *The elimination matrix: some lemmas and applications* (1980);
*Guiding Neural Collapse*, eq. 25–28, there in column-major order. With rvec(A) = vec(Aᵀ) and rvech
taking the lower triangle row by row, the entry (i, j), i ≥ j, of an n×n matrix stands at
i(i+1)/2 + j of rvech and at i·n + j of rvec.
"""

from __future__ import annotations

import torch
from torch import Tensor


def elimination_matrix(n: int, *, like: Tensor) -> Tensor:
    """L_n with L_n rvec(A) = rvech(A), shape (n(n+1)/2, n²), in dtype and device of ``like``."""
    rows, columns = torch.tril_indices(n, n, device=like.device)
    matrix = like.new_zeros(rows.numel(), n * n)
    matrix[torch.arange(rows.numel(), device=like.device), rows * n + columns] = 1
    return matrix


def commutation_matrix(m: int, n: int, *, like: Tensor) -> Tensor:
    """K_mn with K_mn rvec(A) = rvec(Aᵀ) for A of shape (m, n), shape (mn, mn)."""
    order = torch.arange(m * n, device=like.device).reshape(m, n).T.reshape(-1)
    matrix = like.new_zeros(m * n, m * n)
    matrix[torch.arange(m * n, device=like.device), order] = 1
    return matrix
