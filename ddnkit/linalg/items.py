"""Products by item of a batch, and matrices that are the same for all items: found, and used once.

The Jacobian of linear constraints depends neither on y nor, mostly, on the item. (B, p, m) numbers that
are p×m numbers said B times are kept as an expanded view of the first, which every routine here
recognises by its stride of zero: one factorisation for all, one product of matrices for B of a matrix
with a vector.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..transforms import under_transform

#: Rows up to which MKL's LU takes one thread, half of what was seen to be too many.
_SAFE_IN_A_BATCH = 75


def merge_equal(matrices: Tensor) -> Tensor:
    """(B, p, m), as a view of the first item where all are equal. Not looked for on a GPU, whose host
    would have to wait for the answer, nor where a graph is kept."""
    B = len(matrices)
    if B < 2 or matrices.device.type != "cpu" or matrices.requires_grad or is_shared(matrices):
        return matrices
    first = matrices[:1]
    # Most batches that differ do so from the first item to the last.
    if not (torch.equal(first, matrices[-1:]) and torch.equal(matrices[1:], matrices[:-1])):
        return matrices
    return first.expand_as(matrices)


def is_shared(matrices: Tensor) -> bool:
    """Whether the items are one and the same memory."""
    return len(matrices) > 1 and matrices.stride(0) == 0


def distinct(matrices: Tensor) -> Tensor:
    """(1, p, m) of shared matrices, else what was given: what there is to compute with."""
    return matrices[:1] if is_shared(matrices) else matrices


def apply(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Matrices (B, p, m) times vectors (..., B, m): (..., B, p)."""
    # Where a derivative may be asked for, each item's matrix is an operand of its own.
    if is_shared(matrices) and not (matrices.requires_grad or under_transform()):
        return vectors @ matrices[0].mT
    return (matrices @ vectors.unsqueeze(-1)).squeeze(-1)


def lu_factor(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """LU and pivots of each matrix, (..., m, m) and (..., m), as `torch.linalg.lu_factor_ex` gives them.

    On a CPU large ones are factorised one by one. In a batch of 151 rows or more MKL's own threads get
    in each other's way once `torch.set_num_threads` was called with two or more: pivots of 0, factors
    that are wrong, or no end (pytorch issues 141358 and 142815; torch 2.8 to 2.15).
    """
    m = matrices.shape[-1]
    one = matrices.shape[:-2].numel() == 1
    if matrices.device.type != "cpu" or m <= _SAFE_IN_A_BATCH or one:
        LU, pivots, _ = torch.linalg.lu_factor_ex(matrices)
        return LU, pivots
    parts = [torch.linalg.lu_factor_ex(A) for A in matrices.reshape(-1, m, m)]
    LU = torch.stack([part[0] for part in parts]).reshape(matrices.shape)
    pivots = torch.stack([part[1] for part in parts]).reshape(matrices.shape[:-1])
    return LU, pivots


def product(A: Tensor, B: Tensor) -> Tensor:
    """A B by item. A batch of one as one product: a batched one of large matrices is slower by a fifth."""
    one = A.dim() == B.dim() == 3 and len(A) == len(B) == 1 and A.dtype == B.dtype
    graph = torch.is_grad_enabled() and (A.requires_grad or B.requires_grad)
    if not one or graph or under_transform():
        return A @ B
    # Written into memory of the batch's shape: a view of it would be copied further up.
    result = A.new_empty(1, A.shape[1], B.shape[2])
    torch.mm(A.squeeze(0), B.squeeze(0), out=result.squeeze(0))
    return result
