"""The labelled data a classification pipeline trains on: in memory, or any other `Data`."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from ddnkit import InputError

Split = Literal["train", "test"]
#: One mean and deviation of all values, of each channel, or of each pixel; or neither.
Statistics = Literal["global", "channel", "pixel", "none"]
#: Samples whose statistics are taken at a time, in float64.
_CHUNK = 8192


@dataclass(frozen=True)
class Plan:
    """One whole batch of an epoch; all processes have the same plan, and each makes its `Share` of it.

    Attributes:
        index: the training samples ``(B,)``, int64, on the labels' device; ``None`` for all of them.
        seed: of everything random in this batch, so that a resumed run makes the same one.
    """

    index: Tensor | None
    seed: int


@dataclass(frozen=True)
class Share:
    """What one of several processes takes of a batch: its part of ``world`` even ones."""

    rank: int = 0
    world: int = 1

    def of(self, whole: Tensor) -> Tensor:
        """The part of ``whole``, split along its first dimension."""
        return whole if self.world == 1 else whole.tensor_split(self.world)[self.rank]


class Augmentation(Protocol):
    """Changes each sample at random, independently of the others; drawn and applied for a batch at once."""

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Random numbers ``(count, k)``, a row a sample, on the generator's device."""

    def apply(self, samples: Tensor, drawn: Tensor) -> Tensor:
        """The samples changed by their rows of ``drawn``; in their own scale, uint8 or float."""


class Data(abc.ABC):
    """Training and, where there is one, test samples.

    Attributes:
        classes: number of classes C.
        labels: classes of the training samples ``(N,)``, int64 in 0…C−1.
        prepare: maps samples as they are stored to what the network sees; part of what is exported.
    """

    classes: int
    labels: Tensor
    prepare: nn.Module

    @property
    def samples(self) -> int:
        """Number of training samples N."""
        return len(self.labels)

    @property
    @abc.abstractmethod
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample as the network sees it."""

    @property
    @abc.abstractmethod
    def test_samples(self) -> int:
        """Number of test samples; 0 where there is no test set."""

    @abc.abstractmethod
    def to(self, device: torch.device | str) -> Data:
        """The same data, giving its batches on ``device``."""

    @abc.abstractmethod
    def training(
        self, plans: Iterable[Plan], share: Share = Share()
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of each plan's batch: prepared inputs and labels, on the device.

        Labels are classes ``(B,)``, int64, or the shares ``(B, C)`` that each sample has of the
        classes, floating, adding up to one.
        """

    @abc.abstractmethod
    def evaluation(
        self, split: Split, batch: int, share: Share = Share(), index: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of a split in its order, ``batch`` at a time, nothing random.

        ``index`` restricts it to these samples.
        """

    @abc.abstractmethod
    def subset(self, index: Tensor) -> Data:
        """The same data with these training samples alone ``(n,)``, in this order; all test samples.

        ``prepare`` stays as it is: fitted to all training samples.
        """


@dataclass(frozen=True)
class Dataset(Data):
    """Data held as one tensor a split, on the device that trains.

    Attributes:
        inputs: training samples ``(N, *stored_shape)``; images best as uint8.
        labels: their classes ``(N,)``, int64 in 0…classes−1.
        classes: number of classes C.
        test_inputs: test samples ``(M, *stored_shape)``, or ``None``.
        test_labels: their classes ``(M,)``, or ``None``.
        prepare: stored samples → what the network sees.
        augmentation: of training batches, before ``prepare``.
    """

    inputs: Tensor
    labels: Tensor
    classes: int
    test_inputs: Tensor | None = None
    test_labels: Tensor | None = None
    prepare: nn.Module = field(default_factory=nn.Identity)
    augmentation: Augmentation | None = None

    def __post_init__(self) -> None:
        _check("training", self.inputs, self.labels, self.classes)
        if (self.test_inputs is None) != (self.test_labels is None):
            raise InputError("a test set needs both its samples and its labels")
        if self.test_inputs is not None and self.test_labels is not None:
            _check("test", self.test_inputs, self.test_labels, self.classes)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample as the network sees it."""
        return tuple(self.prepare(self.inputs[:1]).shape[1:])

    @property
    def test_samples(self) -> int:
        """Number of test samples; 0 where there is no test set."""
        return 0 if self.test_labels is None else len(self.test_labels)

    def to(self, device: torch.device | str) -> Dataset:
        """The same data on ``device``."""
        return replace(
            self,
            inputs=self.inputs.to(device),
            labels=self.labels.to(device),
            test_inputs=None if self.test_inputs is None else self.test_inputs.to(device),
            test_labels=None if self.test_labels is None else self.test_labels.to(device),
            prepare=self.prepare.to(device),
        )

    def training(
        self, plans: Iterable[Plan], share: Share = Share()
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Data.training`; nothing is read or copied from the host."""
        # Samples that are neither small (uint8) nor changed at random are prepared once.
        ready = self.inputs.is_floating_point() and self.augmentation is None
        inputs = self.prepare(self.inputs) if ready else self.inputs
        generator = torch.Generator(self.inputs.device)
        for plan in plans:
            if plan.index is None:
                samples, labels = share.of(inputs), share.of(self.labels)
                whole = self.samples
            else:
                index = share.of(plan.index)
                samples, labels = inputs.index_select(0, index), self.labels[index]
                whole = len(plan.index)
            if self.augmentation is not None:
                # Drawn for the whole batch: a sample changes in the same way in whichever process.
                drawn = self.augmentation.draw(whole, generator.manual_seed(plan.seed))
                samples = self.augmentation.apply(samples, share.of(drawn))
            yield (samples if ready else self.prepare(samples)), labels

    def evaluation(
        self, split: Split, batch: int, share: Share = Share(), index: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Data.evaluation`."""
        inputs, labels = self.inputs, self.labels
        if split == "test":
            if self.test_inputs is None or self.test_labels is None:
                raise InputError("there is no test set")
            inputs, labels = self.test_inputs, self.test_labels
        if index is not None:
            inputs, labels = inputs[index], labels[index]
        inputs, labels = share.of(inputs), share.of(labels)
        for chunk, chunk_labels in zip(inputs.split(batch), labels.split(batch), strict=True):
            yield self.prepare(chunk), chunk_labels

    def subset(self, index: Tensor) -> Dataset:
        """See `Data.subset`."""
        return replace(self, inputs=self.inputs[index], labels=self.labels[index])


def _check(which: str, inputs: Tensor, labels: Tensor, classes: int) -> None:
    for what, given in (("inputs", inputs), ("labels", labels)):
        if not isinstance(given, Tensor):
            raise InputError(
                f"the {which} {what} are {type(given).__module__}.{type(given).__name__}; expected a "
                "torch.Tensor"
            )
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


class Standardise(nn.Module):
    """``(x − mean) / std``, in float32, for samples stored as floats or as uint8.

    Args:
        mean: broadcasts against a sample.
        std: likewise; above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.to(torch.float32))
        self.register_buffer("std", std.to(torch.float32))

    def forward(self, samples: Tensor) -> Tensor:
        """Standardised samples ``(B, *shape)`` of ``(B, *shape)``."""
        return (samples.to(torch.float32) - self.mean) / self.std

    @classmethod
    def fit(cls, train: Tensor, how: Statistics) -> nn.Module:
        """Standardisation by the mean and standard deviation of the training samples ``(N, ...)``.

        Args:
            train: the training samples, as they are stored.
            how: one mean and deviation of all values (``"global"``), of each of the ``"channel"``s
                ``(N, channels, ...)``, or of each ``"pixel"``; a value that never varies is only
                shifted. ``"none"`` changes nothing but the type: floats as they are, uint8 to 0…1.
        """
        if how == "none":
            return cls(torch.zeros(()), torch.tensor(1.0 if train.is_floating_point() else 255.0))
        dims = {
            "global": tuple(range(train.ndim)),
            "channel": (0, *range(2, train.ndim)),
            "pixel": (0,),
        }[how]
        values = math.prod(train.shape[dim] for dim in dims)
        chunks = train.split(_CHUNK)
        mean = sum(c.to(torch.float64).sum(dims, keepdim=True) for c in chunks) / values
        squares = (((c.to(torch.float64) - mean) ** 2).sum(dims, keepdim=True) for c in chunks)
        std = torch.as_tensor(sum(squares) / values).sqrt()
        # The mean of equal numbers may be off by a rounding, and their deviation with it.
        rounding = torch.finfo(torch.float64).eps * values**0.5 * torch.as_tensor(mean).abs()
        std = torch.where(std > rounding, std, torch.ones_like(std))
        return cls(torch.as_tensor(mean)[0], std[0])


def synthetic(sample_shape: tuple[int, ...], classes: int) -> Dataset:
    """A few Gaussian samples around a random point per class, for ``--smoke``."""
    train, test, labels = _clusters(sample_shape, classes)
    return Dataset(train, labels, classes, test, labels.clone())


def synthetic_images(
    sample_shape: tuple[int, ...], classes: int, samples: int | None = None
) -> Dataset:
    """The same as uint8 images ``(channels, height, width)``, for ``--smoke``.

    ``samples`` images in each split; where they are fewer than the classes, of classes spread
    evenly over all.
    """
    train, test, labels = _clusters(sample_shape, classes, samples)
    train, test = ((x * 40 + 128).clamp(0, 255).to(torch.uint8) for x in (train, test))
    return Dataset(train, labels, classes, test, labels.clone())


def _clusters(
    sample_shape: tuple[int, ...], classes: int, samples: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    # Enough for a batch of ordinary size, and a few of every class however many there are.
    count = max(512, 4 * classes) if samples is None else samples
    order = torch.arange(count)
    labels = order % classes if count >= classes else order * classes // count
    which = order % min(count, classes)
    centres = torch.randn(min(count, classes), *sample_shape, generator=generator)
    noise = torch.randn(2, count, *sample_shape, generator=generator)
    train, test = centres[which] + noise
    return train, test, labels
