"""Sparse inputs: taken as dense ones, with gradients in their own pattern."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def as_dense(x: Tensor) -> Tensor:
    """x with all its zeros; its gradient has the layout and the pattern of x."""
    if x.layout is torch.strided:
        return x
    if x.layout is torch.sparse_csr and x.ndim > 2:
        # torch has no derivative of `to_dense` for a batch of CSR matrices.
        dense: Tensor = _FromCSR.apply(x)
        return dense
    return x.to_dense()


class _FromCSR(torch.autograd.Function):
    """A batch of CSR matrices (*batch, p, m) as a dense one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x.crow_indices(), x.col_indices())
        return x.to_dense()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, v: Tensor) -> Tensor:
        starts, columns = ctx.saved_tensors
        places = torch.arange(columns.shape[-1], device=v.device, dtype=starts.dtype)
        rows = torch.searchsorted(starts, places.expand_as(columns).contiguous(), right=True)
        entries = (rows - 1) * v.shape[-1] + columns
        values = v.flatten(-2).gather(-1, entries)
        return torch.sparse_csr_tensor(starts, columns, values, v.shape, check_invariants=False)
