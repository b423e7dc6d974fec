"""Class means of features, from which most neural-collapse metrics are computed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

#: Samples that are processed at a time: few enough for a processor's cache.
CHUNK = 1024


@dataclass(frozen=True)
class ClassStatistics:
    """Means of N features by class, in float64.

    Attributes:
        means: class means h̄_c ``(C, d)``, rows; the global mean for a class without a sample,
            as the paper's section 3.5 has it, so that its centred mean is zero.
        counts: samples n_c of each class ``(C,)``, int64.
        global_mean: h_G ``(d,)``, the mean of all samples (equation 4).
        scale: root mean square of the features' norms ``()``, the size that rounding is relative to.
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
        squares += torch.linalg.vector_norm(chunk).square()
    counts = torch.bincount(labels, minlength=classes)
    global_mean = sums.sum(dim=0) / len(labels)
    means = torch.where(
        (counts > 0)[:, None], sums / counts.clamp_min(1)[:, None].to(sums.dtype), global_mean
    )
    return ClassStatistics(means, counts, global_mean, (squares / len(labels)).sqrt())


def chunks(features: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Features in float64 with their labels, `CHUNK` at a time.

    All chunks share one buffer, so that a chunk is valid until the next is asked for: new memory for
    each would cost several times the work that is done on it.
    """
    pairs = zip(features.split(CHUNK), labels.split(CHUNK), strict=True)
    if features.dtype == torch.float64 or _records_graph(features):
        yield from ((chunk.to(torch.float64), own) for chunk, own in pairs)
        return
    buffer = _buffer(features, torch.float64)
    yield from ((buffer[: len(chunk)].copy_(chunk), own) for chunk, own in pairs)


def deviations(features: Tensor, labels: Tensor, means: Tensor) -> Iterator[Tensor]:
    """h_i − h̄_{c(i)}, `CHUNK` samples at a time, in one buffer as `chunks` has it.

    Args:
        features: h_i ``(N, d)``.
        labels: classes c(i) ``(N,)``, int64.
        means: h̄ ``(C, d)``, float64. The difference is computed in float64 and then rounded to the
            features' own precision.
    """
    pairs = zip(features.split(CHUNK), labels.split(CHUNK), strict=True)
    if _records_graph(features):
        yield from ((chunk - means[own]).to(features.dtype) for chunk, own in pairs)
        return
    difference = _buffer(features, torch.float64)
    rounded = None if features.dtype == torch.float64 else _buffer(features, features.dtype)
    for chunk, own in pairs:
        exact = difference[: len(chunk)]
        torch.index_select(means, 0, own, out=exact)
        torch.sub(chunk, exact, out=exact)
        yield exact if rounded is None else rounded[: len(chunk)].copy_(exact)


def _records_graph(features: Tensor) -> bool:
    """Whether autograd records a graph, whose tensors must not be overwritten."""
    return features.requires_grad and torch.is_grad_enabled()


def _buffer(features: Tensor, dtype: torch.dtype) -> Tensor:
    return features.new_empty(min(CHUNK, len(features)), features.shape[1], dtype=dtype)
