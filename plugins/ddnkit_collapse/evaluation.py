"""What a metric is given: the training set, and on request the test set, as the classifier sees it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class HeldOut:
    """The test set at the same moment.

    Attributes:
        labels: classes ``(M,)``, int64.
        predictions: the classes that the classifier decides for ``(M,)``, int64.
        features: embedded features ``(M, d)``, for metrics that have ``test_features`` set.
    """

    labels: Tensor
    predictions: Tensor
    features: Tensor | None = None


@dataclass(frozen=True)
class Evaluation:
    """Features and classifier at one moment of the training.

    Attributes:
        features: embedded features h_i ``(N, d)``, not centred.
        labels: their classes ``(N,)``, int64.
        weight: classifier W ``(C, d)``.
        global_mean: the mean h_G ``(d,)`` that the classifier subtracts from a feature; zeros
            where it does not centre.
        classes: number of classes C.
        margins: cosine margin of each sample ``(N,)``, `cosine_margins`.
        counts: training samples of each class ``(C,)``, of those not evaluated too.
        predictions: the classes that the classifier decides for ``(N,)``, int64.
        held_out: the test set, where there is one.
    """

    features: Tensor
    labels: Tensor
    weight: Tensor
    global_mean: Tensor
    classes: int
    margins: Tensor
    counts: Tensor | None = None
    predictions: Tensor | None = None
    held_out: HeldOut | None = None
