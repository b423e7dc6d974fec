"""``ddnkit bench collapse_metrics``: NC1 and its companions of all training features.

NC1 is (1/C) tr(Σ_W Σ_B†). Computed by this formula it needs two d×d covariance matrices
and the pseudo-inverse of one of them; by the C class means it needs neither (`ddnkit_collapse.nc1`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from ddnkit_collapse import class_statistics, nc1, neural_collapse
from torch import Tensor

from ddnkit.bench import Case, Comparison, Competitor, Floor

from . import Prepare

_CHUNK = 4096


class CollapseMetrics(Comparison):
    """NC1 of N features: through the class means, against the pseudo-inverse of Σ_B.

    A case's size: N, d, C. In float64, so that agreement says something. NC2 to NC4 have no slower
    way; the last competitor computes all metrics together.
    """

    size_names = ("N", "d", "C")
    sizes = ((50_000, 512, 10), (50_000, 2048, 100), (50_000, 2048, 1000))
    dtype = "float64"
    tolerance = 1e-8

    def inputs(self, case: Case, dtype: torch.dtype) -> Mapping[str, Any]:
        """Features around class means, with deviations half as large, as in training."""
        N, d, C = case.size
        labels = torch.arange(N) % C
        features = torch.randn(N, d, dtype=dtype).mul_(0.5)
        features += torch.randn(C, d, dtype=dtype)[labels]
        weight = torch.randn(C, d, dtype=dtype)
        return {
            "features": features,
            "labels": labels,
            "weight": weight,
            "global_mean": features.mean(dim=0),
        }

    def floor(self, case: Case) -> Floor:
        """A product N×d×(C−1), the Gram matrix of the means; the features read once."""
        N, d, C = case.size
        return Floor(2.0 * N * d * (C - 1) + 2.0 * C * C * d, 8.0 * N * d, "2NdC + 2C²d")

    def competitors(self, case: Case, device: str) -> Sequence[Competitor]:
        """ddnkit first."""
        return [
            Competitor("ddnkit nc1", _prepare(_by_means, case)),
            Competitor("pseudo-inverse of Σ_B, chunks of Σ_W", _prepare(_by_pinv, case)),
            Competitor(
                "the same, as a symmetric matrix", _prepare(partial(_by_pinv, symmetric=True), case)
            ),
            Competitor("ddnkit, all six metrics", _prepare(_all_metrics, case)),
        ]


def _prepare(metric: Callable[..., Tensor], case: Case) -> Prepare:
    """The one phase of a competitor that gives NC1 from the inputs and the number of classes."""
    return lambda inputs: {"value": lambda _: {"nc1": metric(**inputs, classes=case.size[2])}}


def _by_means(features: Tensor, labels: Tensor, classes: int, **unused: Tensor) -> Tensor:
    return nc1(features, labels, class_statistics(features, labels, classes))


def _all_metrics(
    features: Tensor, labels: Tensor, weight: Tensor, global_mean: Tensor, classes: int
) -> Tensor:
    figures = neural_collapse(features, labels, weight, global_mean, classes)
    return torch.tensor(figures["nc1"], dtype=torch.float64)


def _by_pinv(
    features: Tensor, labels: Tensor, classes: int, *, symmetric: bool = False, **unused: Tensor
) -> Tensor:
    (N, d), C = features.shape, classes
    sums = features.new_zeros(C, d).index_add_(0, labels, features)
    means = sums / torch.bincount(labels, minlength=C).unsqueeze(-1)
    centred = means - means.mean(dim=0)
    between = centred.T @ centred / C
    within = features.new_zeros(d, d)
    for chunk, own in zip(features.split(_CHUNK), labels.split(_CHUNK), strict=True):
        deviations = chunk - means[own]
        within.addmm_(deviations.T, deviations)
    inverse = torch.linalg.pinv(between, hermitian=symmetric)
    return (within / N * inverse).sum() / C
