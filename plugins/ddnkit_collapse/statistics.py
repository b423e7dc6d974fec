"""Class means of features, the ground of most neural-collapse metrics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

#: Samples that are held in float64 at a time.
CHUNK = 4096


@dataclass(frozen=True)
class ClassStatistics:
    """Means of N features by class, in float64.

    Attributes:
        means: class means h̄_c ``(C, d)``, rows; the global mean for a class without a sample,
            as the paper's section 3.5 has it, so that its centred mean is zero.
        counts: samples n_c of each class ``(C,)``, int64.
        global_mean: h_G ``(d,)``, the mean of all samples (equation 4).
        scale: root mean square of the features' norms ``()``, against which rounding is judged.
    """

    means: Tensor
    counts: Tensor
    global_mean: Tensor
    scale: Tensor

    @property
    def present(self) -> Tensor:
        """Which classes have a sample ``(C,)``."""
        return self.counts > 0

    @property
    def centred(self) -> Tensor:
        """h̄_c − h_G ``(C, d)``, zero for a class without a sample."""
        return self.means - self.global_mean


def class_statistics(features: Tensor, labels: Tensor, classes: int) -> ClassStatistics:
    """h̄_c = (1/n_c) Σ_i h_{c,i} and h_G = (1/N) Σ h (GNC, equation 4), summed in float64.

    Args:
        features: h_i ``(N, d)``.
        labels: ``(N,)``, int64 in 0…classes−1.
        classes: number of classes C.
    """
    sums = torch.zeros(classes, features.shape[1], dtype=torch.float64, device=features.device)
    squares = torch.zeros((), dtype=torch.float64, device=features.device)
    for chunk, chunk_labels in chunks(features, labels):
        sums.index_add_(0, chunk_labels, chunk)
        squares += chunk.square().sum()
    counts = torch.bincount(labels, minlength=classes)
    global_mean = sums.sum(dim=0) / len(labels)
    means = torch.where(
        (counts > 0)[:, None], sums / counts.clamp_min(1)[:, None].to(sums.dtype), global_mean
    )
    return ClassStatistics(means, counts, global_mean, (squares / len(labels)).sqrt())


def chunks(features: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Features in float64 with their labels, `CHUNK` at a time."""
    for chunk, chunk_labels in zip(features.split(CHUNK), labels.split(CHUNK), strict=True):
        yield chunk.to(torch.float64), chunk_labels
