"""What is done to samples and labels before a predictor sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from ddnkit_etf import safe_scale
from torch import Tensor

from ddnkit import InputError, nearest_choice

from .checks import check_labels, check_samples

Coding = Literal["plus_minus", "one_hot"]


@dataclass(frozen=True)
class Standardisation:
    """x ↦ (x − mean)/std, feature by feature, by the statistics of training samples.

    A feature that never varied in training, beyond rounding, becomes 0 in every sample.

    Attributes:
        mean: ``(d,)``, float64.
        std: ``(d,)``, float64, of a population (divided by n); infinite for a feature that never varied.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def fit(cls, X: Tensor) -> Standardisation:
        """Of training samples ``(n, d)``.

        Raises:
            ddnkit.InputError: a number is not finite.
        """
        check_samples(X)
        std, mean = torch.std_mean(X.to(torch.float64), dim=0, correction=0)
        # The mean of equal numbers may be off by a rounding, and their deviation with it.
        rounding = 4 * torch.finfo(torch.float64).eps * mean.abs()
        return cls(mean, torch.where(std > rounding, std, torch.inf))

    def __call__(self, X: Tensor) -> Tensor:
        """Standardised samples ``(n, d)``, in the dtype of X.

        Raises:
            ddnkit.InputError: the samples are of another dimension.
        """
        if X.shape[-1] != len(self.mean):
            raise InputError(
                f"samples have {X.shape[-1]} features, those of training had {len(self.mean)}"
            )
        return ((X - self.mean) / self.std).to(X.dtype)


def unit_rows(X: Tensor) -> Tensor:
    """x/‖x‖ of each row of ``(n, d)``; a row of zeros stays one."""
    X = X * safe_scale(X)
    norms = torch.linalg.vector_norm(X, dim=1, keepdim=True)
    return X / torch.where(norms > 0, norms, 1.0)


def label_targets(
    labels: Tensor, coding: Coding = "plus_minus", *, classes: int | None = None
) -> Tensor:
    """Y_ic ``(n, C)``, float64: 1 where c is the label of sample i, elsewhere −1 (appendix D) or 0.

    Args:
        labels: ``(n,)``, int64.
        coding: "plus_minus" (−1) or "one_hot" (0).
        classes: C; by default one more than the largest label.

    Raises:
        ddnkit.InputError: labels are not classes 0…C−1, or there is no such coding.
    """
    if coding not in get_args(Coding):
        hint = nearest_choice(coding, get_args(Coding))
        raise InputError(f"labels have no coding '{coding}'.{hint}")
    check_labels(labels, len(labels))
    found = int(labels.max()) + 1
    if classes is not None and found > classes:
        raise InputError(f"the label {found - 1} is none of the classes 0…{classes - 1}")
    targets = torch.nn.functional.one_hot(labels, classes or found).to(torch.float64)
    return targets if coding == "one_hot" else 2 * targets - 1
