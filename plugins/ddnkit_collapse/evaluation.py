"""What a metric is given: the training set as the classifier sees it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


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
    """

    features: Tensor
    labels: Tensor
    weight: Tensor
    global_mean: Tensor
    classes: int
    margins: Tensor
