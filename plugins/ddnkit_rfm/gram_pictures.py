"""Gram matrices of a layer's samples, small enough to draw: Figures 1, 5 and 6."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from ddnkit_collapse import class_statistics
from torch import Tensor

from .preparation import unit_rows

#: Samples in a picture at most.
_SAMPLES = 500


def write_gram(folder: Path, layer: int, X: Tensor, labels: Tensor) -> None:
    """Write X̄X̄ᵀ of at most 500 samples ordered by class, x̄ = (x − μ_G)/‖x − μ_G‖.

    μ_G is the mean of the class means, as in `dnc2`: at collapse entries are 1 within a class and
    −1/(K−1) between two, whatever the sizes of the classes. Each class has its share of the picture.

    Args:
        folder: of the job. Its file ``gram-<layer>.npz`` holds "gram" ``(s, s)``, float16, and
            "labels" ``(s,)``.
        layer: number of the layer.
        X: samples ``(n, d)``.
        labels: classes ``(n,)``, int64.
    """
    chosen = evenly_by_class(labels, _SAMPLES)
    statistics = class_statistics(X, labels, int(labels.max()) + 1)
    centre = statistics.means[statistics.present].mean(dim=0)
    x = unit_rows(X[chosen].to(torch.float64) - centre)
    gram = (x @ x.T).to(torch.float16)
    file = folder / f"gram-{layer}.npz"
    np.savez(file, gram=gram.cpu().numpy(), labels=labels[chosen].cpu().numpy())


def evenly_by_class(labels: Tensor, count: int) -> Tensor:
    """Indices of `count` samples, or of all if fewer, ordered by class, as many of each as is its share."""
    ordered = labels.argsort(stable=True)
    if len(ordered) <= count:
        return ordered
    places = torch.arange(count, device=labels.device) * len(ordered) // count
    return ordered[places]
