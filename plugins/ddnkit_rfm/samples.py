"""Checks of samples, labels and targets, and what is done to them before a predictor sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
from ddnkit_etf import safe_scale
from torch import Tensor

from ddnkit import InputError, nearest_choice

from .settings import Coding


def check_samples(X: Tensor, name: str = "X") -> None:
    """Require samples ``(n, d)``, finite, in float32 or float64, with n ≥ 1 and d ≥ 1.

    Raises:
        ddnkit.InputError: they are something else.
    """
    if X.ndim != 2 or 0 in X.shape:
        raise InputError(
            f"{name} has shape {tuple(X.shape)}; expected (n, d), one sample a row, n ≥ 1 and d ≥ 1"
        )
    if X.dtype not in (torch.float32, torch.float64):
        raise InputError(f"{name} is {X.dtype}; expected torch.float32 or torch.float64")
    check_finite(X, name)


def check_finite(X: Tensor, name: str) -> None:
    """Require numbers that are neither NaN nor infinite.

    Raises:
        ddnkit.InputError: some are; the text names the first row that holds one.
    """
    finite = X.isfinite()
    if not finite.all():
        row = int((~finite).nonzero()[0, 0])
        raise InputError(f"{name} holds NaN or infinity, first in row {row}")


def check_pair(X: Tensor, Z: Tensor, names: tuple[str, str] = ("X", "Z")) -> None:
    """Require that two sets of samples agree in dimension, dtype and device.

    Raises:
        ddnkit.InputError: they differ.
    """
    for what, x, z in (
        ("dimension", X.shape[1], Z.shape[1]),
        ("dtype", X.dtype, Z.dtype),
        ("device", X.device, Z.device),
    ):
        if x != z:
            raise InputError(f"{names[0]} and {names[1]} differ in {what}: {x} and {z}")


def check_columns(A: Tensor, X: Tensor, name: str) -> None:
    """Require a finite ``(n, C)``, with a row for each of the n samples X.

    Raises:
        ddnkit.InputError: the shape is another, or a number is not finite.
    """
    if A.ndim != 2 or len(A) != len(X) or A.shape[1] == 0:
        raise InputError(
            f"{name} has shape {tuple(A.shape)}; expected ({len(X)}, C), a row for each sample"
        )
    if A.dtype != X.dtype or A.device != X.device:
        raise InputError(
            f"{name} is {A.dtype} on {A.device}, the samples are {X.dtype} on {X.device}"
        )
    check_finite(A, name)


def check_labels(labels: Tensor, samples: int) -> None:
    """Require classes ``(samples,)``, int64, none of them negative.

    Raises:
        ddnkit.InputError: they are something else.
    """
    if labels.shape != (samples,) or labels.dtype != torch.int64:
        raise InputError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}; "
            f"expected torch.int64 of shape ({samples},)"
        )
    if labels.min() < 0:
        raise InputError(f"labels start at {int(labels.min())}; classes are numbered from 0")


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
        """The statistics of training samples ``(n, d)``.

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
        raise InputError(f"the label {found - 1} is not one of the classes 0…{classes - 1}")
    targets = torch.nn.functional.one_hot(labels, classes or found).to(torch.float64)
    return targets if coding == "one_hot" else 2 * targets - 1
