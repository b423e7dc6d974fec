"""The labelled data a classification pipeline trains on, and its standardisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ddnkit import InputError


@dataclass(frozen=True)
class Dataset:
    """Training and, where there is one, test set, each as one tensor.

    Attributes:
        inputs: training samples ``(N, *sample_shape)``.
        labels: their classes ``(N,)``, int64 in 0…classes−1.
        classes: number of classes C.
        test_inputs: test samples ``(M, *sample_shape)``, or ``None``.
        test_labels: their classes ``(M,)``, or ``None``.
    """

    inputs: Tensor
    labels: Tensor
    classes: int
    test_inputs: Tensor | None = None
    test_labels: Tensor | None = None

    def __post_init__(self) -> None:
        _check("training", self.inputs, self.labels, self.classes)
        if (self.test_inputs is None) != (self.test_labels is None):
            raise InputError("a test set needs both its samples and its labels")
        if self.test_inputs is not None and self.test_labels is not None:
            _check("test", self.test_inputs, self.test_labels, self.classes)

    @property
    def samples(self) -> int:
        """Number of training samples N."""
        return self.inputs.shape[0]

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.inputs.shape[1:])

    def to(self, device: torch.device | str) -> Dataset:
        """The same data on ``device``."""
        return Dataset(
            self.inputs.to(device),
            self.labels.to(device),
            self.classes,
            None if self.test_inputs is None else self.test_inputs.to(device),
            None if self.test_labels is None else self.test_labels.to(device),
        )


def _check(which: str, inputs: Tensor, labels: Tensor, classes: int) -> None:
    if labels.ndim != 1 or labels.dtype != torch.int64 or inputs.shape[:1] != labels.shape:
        raise InputError(
            f"the {which} set needs int64 labels, one a sample; it has inputs "
            f"{tuple(inputs.shape)} and {labels.dtype} labels {tuple(labels.shape)}"
        )
    if labels.numel() == 0:
        raise InputError(f"the {which} set is empty")
    lowest, highest = labels.aminmax()
    if lowest < 0 or highest >= classes:
        raise InputError(
            f"the {which} labels run from {int(lowest)} to {int(highest)}, outside of "
            f"0…{classes - 1} for {classes} classes"
        )


def standardise(
    train: Tensor, test: Tensor, how: Literal["global", "pixel", "none"]
) -> tuple[Tensor, Tensor]:
    """``(x − mean) / std`` with the mean and standard deviation of the training samples.

    Args:
        train: training samples ``(N, ...)``.
        test: test samples ``(M, ...)``, shifted and scaled as the training samples are.
        how: one mean and deviation of ``"global"`` all pixels or of each ``"pixel"``; a pixel that
            never varies is only shifted. ``"none"`` leaves both unchanged.
    """
    if how == "none":
        return train, test
    dims = tuple(range(train.ndim)) if how == "global" else (0,)
    mean = train.mean(dim=dims, keepdim=True)
    deviation = train.std(dim=dims, keepdim=True, correction=0)
    deviation = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    return (train - mean) / deviation, (test - mean) / deviation


def synthetic(sample_shape: tuple[int, ...], classes: int) -> Dataset:
    """A few Gaussian samples around a random point per class, for ``--smoke``."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, *sample_shape, generator=generator)
    # Enough for a batch of ordinary size, and a few of every class however many there are.
    labels = torch.arange(max(512, 4 * classes)) % classes
    noise = torch.randn(2, len(labels), *sample_shape, generator=generator)
    train, test = centres[labels] + noise
    return Dataset(train, labels, classes, test, labels.clone())
