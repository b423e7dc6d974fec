"""xrfm (Recursive Feature Machines of *xRFM*, on the package index) in ``ddnkit bench deep_rfm``.

By its own functions and with its own choices where it has some, but one leaf of its tree, no ridge, every
sample in the AGOP, and no iteration chosen by validation. It solves in the precision that it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ddnkit.bench import Case, Competitor

Prepare: TypeAlias = Callable[[Mapping[str, Any]], Mapping[str, Any]]

#: Of the Laplace kernel of layers and machines, and the width of their ReLU features.
BANDWIDTH, WIDTH = 2.0, 1024
#: AGOPs of a machine; it has one regression more.
DEPTH = 2
#: Samples whose gradients xrfm takes at once.
_BATCH = 10_000


def xrfm(
    case: Case,
    prepare: Callable[[torch.dtype | None], Prepare],
    single: float,
) -> list[Competitor]:
    """xrfm in the precision of the inputs, and in float32, where it is allowed that difference."""
    n, _, C = case.size
    # The gradients' einsum holds its n×n×C coefficients more than twice.
    needs = 2.7 * 8 * C * n * min(n, _BATCH)
    return [
        Competitor("xrfm", prepare(None), ("xrfm",), needs),
        Competitor("xrfm, float32", prepare(torch.float32), ("xrfm",), needs / 2, tolerance=single),
    ]


def mapped(X: Tensor, M: Tensor, root: Tensor, W: Tensor) -> dict[str, Tensor]:
    """The end of a layer, and what is compared of it."""
    return {"AGOP": M, "features": torch.relu_(X @ root @ W.T)}


def xrfm_layer(dtype: torch.dtype | None) -> Prepare:
    """The steps of ``RFM.fit``, a phase each."""

    def prepare(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        from xrfm.rfm_src.kernels import LaplaceKernel
        from xrfm.rfm_src.utils import matrix_power

        X, Y, W = (inputs[name].to(dtype or inputs[name].dtype) for name in "XYW")
        kernel = LaplaceKernel(bandwidth=BANDWIDTH, exponent=1.0)

        def outer(alpha: Tensor) -> Tensor:
            M = torch.zeros(X.shape[1], X.shape[1]).to(X)
            for block in X.split(_BATCH):
                M += kernel.get_agop(X, block, alpha.T)
            return M / len(X)

        def end(M: Tensor) -> Mapping[str, Tensor]:
            largest = M.max()
            root = largest.sqrt() * matrix_power(M / largest, 0.5, verbose=False)
            return mapped(X, M, root, W)

        return {
            "kernel": lambda _: kernel.get_kernel_matrix(X, X),
            "solve": lambda K: torch.linalg.solve(K, Y),
            "AGOP": outer,
            "root and map": end,
        }

    return prepare


def xrfm_machine(dtype: torch.dtype | None) -> Prepare:
    """``RFM.fit`` and ``predict``, with the faster form of the kernel, that by M and not by M^½.

    What it validates on is one training sample, and decides nothing.
    """

    def prepare(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        from xrfm.rfm_src import RFM

        X, Y, Z = (inputs[name].to(dtype or inputs[name].dtype) for name in "XYZ")

        def fit(_: object) -> Any:
            model = RFM(
                "l2_high_dim",
                iters=DEPTH,
                bandwidth=BANDWIDTH,
                device=str(X.device),
                tuning_metric="mse",
                verbose=False,
            )
            model.fit(
                (X, Y),
                (X[:1], Y[:1]),
                reg=0.0,
                verbose=False,
                return_best_params=False,
                early_stop_rfm=False,
                total_points_to_sample=len(X),
            )
            return model

        return {"fit": fit, "predict": lambda model: {"scores": model.predict(Z)}}

    return prepare
