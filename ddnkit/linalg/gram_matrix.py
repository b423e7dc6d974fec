"""AᵀA, each product of two columns computed once.

With the columns in k blocks only the pairs of blocks i ≥ j are multiplied, (k + 1)/2k of the work of
a general product; the rest is copied.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

#: Columns of a block. Narrower ones save more and run slower: measured best at 1000 columns.
BLOCK = 200

#: Columns up to which a matrix of the size of AᵀA costs next to nothing.
_FEW = 32


def gram(A: Tensor) -> Tensor:
    """AᵀA, (..., C, C) for A (..., d, C).

    A plain product where A is narrow, has a graph, or is on a device, whose one large product is
    faster than many small ones.
    """
    columns = A.shape[-1]
    if columns < 2 * BLOCK or A.device.type != "cpu" or A.requires_grad:
        return torch.bmm(A.mT, A) if A.dim() == 3 else A.mT @ A
    G = A.new_empty(*A.shape[:-2], columns, columns)
    pairs = zip(G.view(-1, columns, columns), A.reshape(-1, *A.shape[-2:]), strict=True)
    for product, matrix in pairs:
        for start, end in blocks(columns):
            below = product[start:, start:end]
            torch.mm(matrix[:, start:].mT, matrix[:, start:end], out=below)
            product[start:end, end:] = below[end - start :].mT
    return G


def blocks(columns: int) -> list[tuple[int, int]]:
    """The columns in pieces of about `BLOCK`: where each starts and ends."""
    count = max(round(columns / BLOCK), 1)
    edges = [columns * i // count for i in range(count + 1)]
    return list(itertools.pairwise(edges))


def departure_from_orthonormal(U: Tensor) -> Tensor:
    """‖UᵀU − I‖_F, (...) for U (..., d, C)."""
    columns = U.shape[-1]
    if columns < 2 * BLOCK or U.device.type != "cpu":
        G = U.mT @ U
        if columns <= _FEW:
            # A constant where it is traced, and a diagonal that is written on are three operations.
            G.sub_(torch.eye(columns, dtype=U.dtype, device=U.device))
        else:
            G.diagonal(dim1=-2, dim2=-1).sub_(1)
        return torch.linalg.vector_norm(G, dim=(-2, -1))
    total = U.new_zeros(U.shape[:-2])
    for start, end in blocks(columns):
        panel = U[..., start:].mT @ U[..., start:end]
        panel.diagonal(dim1=-2, dim2=-1).sub_(1)
        whole = torch.linalg.vector_norm(panel, dim=(-2, -1)).square()
        corner = torch.linalg.vector_norm(panel[..., : end - start, :], dim=(-2, -1)).square()
        # What lies below the diagonal block stands for its mirror image as well.
        total = total + 2 * whole - corner
    return total.sqrt()
