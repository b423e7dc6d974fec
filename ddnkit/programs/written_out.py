"""Operations on small matrices written out by their entries, for a compiler.

A library is called once for each matrix of a batch, or once for all at a cost of its own, of some 10
microseconds: of matrices with a handful of rows that is all that it costs. Written out, with each entry as a
tensor of all items, the operation is part of the loop that a compiler makes of what stands around it. Run
one by one these steps would be far slower than the library's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

#: Rows and columns up to which that pays.
MOST_ROWS = 6


def solve_triangular(
    A: Tensor, B: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Tensor:
    """As `torch.linalg.solve_triangular` for (..., n, n) and (..., n, k), from the left."""
    assert left and not unitriangular
    n, k = B.shape[-2:]
    columns: list[Tensor] = []
    for column in range(k):
        x: dict[int, Tensor] = {}
        for i in range(n - 1, -1, -1) if upper else range(n):
            rest = B[..., i, column]
            for j, known in x.items():
                rest = rest - A[..., i, j] * known
            x[i] = rest / A[..., i, i]
        columns.append(torch.stack([x[i] for i in range(n)], dim=-1))
    return torch.stack(columns, dim=-1) if k > 1 else columns[0].unsqueeze(-1)


def cholesky_solve(B: Tensor, L: Tensor, upper: bool = False) -> Tensor:
    """As `torch.cholesky_solve`, of a lower factor."""
    assert not upper
    return solve_triangular(L.mT, solve_triangular(L, B, upper=False), upper=True)


aten = torch.ops.aten

WRITTEN_OUT: dict[Any, Callable[..., Any]] = {
    aten.linalg_solve_triangular.default: solve_triangular,
    aten.cholesky_solve.default: cholesky_solve,
}
