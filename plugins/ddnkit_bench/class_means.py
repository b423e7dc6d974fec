"""``ddnkit bench class_means``: updates running class means with a batch's centred ones, and its gradient.

The nearest-ETF head does this before it solves (*Guiding Neural Collapse*, section 3.5). The peers are
the ways in which training scripts do it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from ddnkit_etf import ClassMeans
from torch import Tensor

from ddnkit.bench import Case, Comparison, Competitor, Floor

from . import Prepare


class ClassMeansBench(Comparison):
    """Running class means of a batch and their gradient: one index_add, against one-hot and a loop.

    A case's size: N, d, C.
    """

    size_names = ("N", "d", "C")
    sizes = ((256, 512, 10), (256, 2048, 100), (256, 2048, 1000), (10_000, 1024, 1000))
    cuda_sizes = ((256, 2048, 1000), (10_000, 1024, 1000), (50_000, 2048, 1000))
    tolerance = 1e-5

    def inputs(self, case: Case, dtype: torch.dtype) -> Mapping[str, Any]:
        """Features, labels drawn at random (classes may be absent), a gradient to pull back."""
        N, d, C = case.size
        return {
            "features": torch.randn(N, d, dtype=dtype),
            "labels": torch.randint(0, C, (N,)),
            "V": torch.randn(d, C, dtype=dtype),
        }

    def floor(self, case: Case) -> Floor:
        """Reads features and writes their gradient; reads and writes means twice."""
        N, d, C = case.size
        return Floor(2.0 * N * d, 4.0 * (2 * N * d + 4 * d * C), "one addition a feature each way")

    def competitors(self, case: Case, device: str) -> Sequence[Competitor]:
        """ddnkit first. It is the first batch, whose means become the running ones."""
        return [
            Competitor("ddnkit ClassMeans", _ours(case)),
            Competitor("one-hot matrix product", _with_gradient(case, _one_hot)),
            Competitor("loop over the classes", _with_gradient(case, _loop)),
        ]


Means = Callable[[Tensor, Tensor, int], Tensor]


def _ours(case: Case) -> Prepare:
    def first_batch(features: Tensor, labels: Tensor, C: int) -> Tensor:
        tracker = ClassMeans(features.shape[1], C).to(features)
        normalised: Tensor = tracker(features, labels)
        return normalised

    return _with_gradient(case, first_batch, normalised=True)


def _with_gradient(case: Case, means: Means, *, normalised: bool = False) -> Prepare:
    def prepare(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        features = inputs["features"].clone().requires_grad_()
        labels, V = inputs["labels"], inputs["V"]

        def forward(_: object) -> Tensor:
            H = means(features, labels, case.size[2])
            return H if normalised else H / H.norm()

        def backward(H: Tensor) -> dict[str, Tensor]:
            (gradient,) = torch.autograd.grad(H, features, V)
            return {"H": H.detach(), "gradient": gradient}

        return {"forward": forward, "backward": backward}

    return prepare


def _one_hot(features: Tensor, labels: Tensor, C: int) -> Tensor:
    indicator = torch.nn.functional.one_hot(labels, C).to(features.dtype)
    counts = indicator.sum(dim=0)
    H = features.T @ indicator / counts.clamp(min=1)
    return torch.where(counts > 0, H - features.mean(dim=0).unsqueeze(-1), 0)


def _loop(features: Tensor, labels: Tensor, C: int) -> Tensor:
    """The way of the published code."""
    mean = features.mean(dim=0)
    columns = []
    for c in range(C):
        own = features[labels == c]
        columns.append(own.mean(dim=0) - mean if len(own) else torch.zeros_like(mean))
    return torch.stack(columns, dim=1)
