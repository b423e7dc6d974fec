"""Batches as index tensors, drawn anew for each epoch on the labels' own device."""

from __future__ import annotations

import abc
from collections.abc import Iterator

import torch
from torch import Tensor

from ddnkit import InputError


class Sampler(abc.ABC):
    """Splits the N training samples into the batches of an epoch.

    An epoch has ⌈N / batch_size⌉ batches that hold every sample once. Their sizes differ by at most
    one: a last batch of a few left-over samples would weigh as much as a full one, since a
    normalised step such as AGD's does not shrink with the batch.

    Args:
        samples: number of samples N.
        batch_size: samples a batch at most.
    """

    def __init__(self, samples: int, batch_size: int) -> None:
        if batch_size < 1 or samples < 1:
            raise InputError(f"a batch of {batch_size} out of {samples} samples is empty")
        self.steps_per_epoch = -(-samples // batch_size)
        short, longer = divmod(samples, self.steps_per_epoch)
        self._sizes = [short + 1] * longer + [short] * (self.steps_per_epoch - longer)

    @abc.abstractmethod
    def order(self) -> Tensor | None:
        """The samples ``(N,)`` in the order of the next epoch; ``None`` for the given order."""

    def epoch(self) -> Iterator[Tensor | None]:
        """The index tensors of the next epoch's batches; ``None`` stands for all samples."""
        order = self.order()
        yield from (None,) if order is None else order.split(self._sizes)


class FullBatch(Sampler):
    """One batch an epoch, the whole training set in the order given."""

    def __init__(self, samples: int) -> None:
        super().__init__(samples, samples)

    def order(self) -> None:
        """Nothing to reorder."""
        return None


class Shuffled(Sampler):
    """A new random order each epoch.

    Args:
        labels: classes ``(N,)``; only their number and device matter.
        batch_size: samples a batch at most.
        seed: seed of the order; the same seed gives the same batches on the same kind of device.
    """

    def __init__(self, labels: Tensor, batch_size: int, seed: int) -> None:
        super().__init__(len(labels), batch_size)
        self._device = labels.device
        self._generator = torch.Generator(self._device).manual_seed(seed)

    def order(self) -> Tensor:
        """A random permutation."""
        return torch.randperm(
            sum(self._sizes), generator=self._generator, device=self._device, dtype=torch.int64
        )


class Stratified(Sampler):
    """Every class has its share of every batch.

    With classes in a random order π, new for each epoch, sample k of class c (its n_c samples
    shuffled) is put at the moment (k + (π_c + ½)/C) / n_c of an epoch that lasts from 0 to 1.
    So every class is spread evenly over the whole epoch, and the classes take turns.

    * Equally many samples in each class: the classes come in a fixed rotation, so that a batch of
      B holds each ⌊B/C⌋ or ⌈B/C⌉ times, and where B < C every class comes within ⌈C/B⌉ + 1
      batches.
    * Otherwise a class comes B·n_c/N times, give or take less than 2 + C·n_c/N.

    Args:
        labels: classes ``(N,)``, int64.
        batch_size: samples a batch at most.
        seed: seed of the order; the same seed gives the same batches on the same kind of device.
    """

    def __init__(self, labels: Tensor, batch_size: int, seed: int) -> None:
        super().__init__(len(labels), batch_size)
        # Classes without a sample take no turn.
        self._labels = torch.unique(labels, return_inverse=True)[1]
        counts = torch.bincount(self._labels)
        self._classes = len(counts)
        grouped = self._labels.sort(stable=True).values
        starts = counts.cumsum(0) - counts
        self._grouped = grouped
        self._rank = torch.arange(len(labels), device=labels.device) - starts[grouped]
        self._share = counts[grouped].to(torch.float64)
        self._device = labels.device
        self._generator = torch.Generator(self._device).manual_seed(seed)

    def order(self) -> Tensor:
        """The samples by their moment in the epoch."""
        turn = self._permutation(self._classes)[self._grouped]
        moment = (self._rank + (turn + 0.5) / self._classes) / self._share
        shuffled = self._permutation(len(self._labels))
        by_class = shuffled[self._labels[shuffled].sort(stable=True).indices]
        return by_class[moment.sort(stable=True).indices]

    def _permutation(self, n: int) -> Tensor:
        return torch.randperm(n, generator=self._generator, device=self._device)
