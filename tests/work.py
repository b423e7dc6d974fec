"""Counts what torch is asked to do: the work of a call in numbers that no busy machine changes.

    with Work() as work:
        U = nearest_etf(H, P)
    work.flops, work.factorisations, work.calls, work.bytes, work.waits

Counted below autograd, where each operation arrives that is really carried out; a temporary tensor
inside a single operation does not show.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

FACTORISATIONS = {
    "_linalg_eigh", "_linalg_svd", "linalg_eig", "linalg_qr", "linalg_cholesky_ex", "linalg_lu_factor_ex",
    "_linalg_solve_ex", "linalg_inv_ex", "_linalg_det", "linalg_ldl_factor_ex", "linalg_lstsq", "geqrf",
    "linalg_solve_triangular",
}  # fmt: skip

#: What on a GPU makes the host wait for a value or a size.
WAITS = {
    "_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "equal", "_unique2",
    "unique_dim", "unique_consecutive", "repeat_interleave", "bincount", "histc",
    # Factorisations that look at the result of LAPACK before they return.
    "_linalg_eigh", "_linalg_svd", "linalg_eig", "linalg_lstsq",
}  # fmt: skip


class Work(TorchDispatchMode):
    """What was done while the context lasted.

    Attributes:
        flops: of products of matrices, two for a multiplication and an addition.
        factorisations: how often each was called.
        calls: of anything but views.
        bytes: of all new tensors together.
        waits: operations that would have waited for a GPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.factorisations: Counter[str] = Counter()
        self.calls = 0
        self.bytes = 0
        self.waits: Counter[str] = Counter()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        known = {x.untyped_storage().data_ptr() for x in given}
        if not func.is_view:
            self.calls += 1
            self.names[name] += 1
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in known:
                known.add(x.untyped_storage().data_ptr())
                self.bytes += x.untyped_storage().nbytes()
        # The registry knows the forms that make a new tensor; those in place do the same work.
        packet = getattr(torch.ops.aten, name.removesuffix("_"), None)
        if packet in flop_registry:
            self.flops += flop_registry[packet](*args, **kwargs, out_val=out)
        if name in FACTORISATIONS:
            self.factorisations[name] += 1
        masked = name in ("index", "index_put", "index_put_") and any(
            x.dtype == torch.bool for x in given[1:]
        )
        if name in WAITS or masked:
            self.waits[name] += 1
        return out
