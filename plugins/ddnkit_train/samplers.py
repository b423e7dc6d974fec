"""Batches as index tensors, drawn anew for each epoch on the labels' own device.

The order of an epoch depends on the seed and the epoch's number alone, so that a resumed run needs no
more than its step to go on with the same batches, and every process of a run draws the same ones.
"""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

from ddnkit import InputError

from .data import Plan


def derive_seed(*parts: int) -> int:
    """A seed of 63 bits from several numbers; near numbers give unrelated seeds."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


class Sampler(abc.ABC):
    """Splits the N training samples into the batches of an epoch.

    An epoch has ⌈N / batch_size⌉ batches that hold every sample once. Their sizes differ by at most
    one: a last batch of a few left-over samples would weigh as much as a full one, since a
    normalised step such as AGD's does not shrink with the batch.

    Args:
        samples: number of samples N.
        batch_size: samples a batch at most.
        seed: seed of the orders; the same seed gives the same batches on the same kind of device.
    """

    def __init__(self, samples: int, batch_size: int, seed: int = 0) -> None:
        if batch_size < 1 or samples < 1:
            raise InputError(f"a batch of {batch_size} out of {samples} samples is empty")
        self.steps_per_epoch = -(-samples // batch_size)
        short, longer = divmod(samples, self.steps_per_epoch)
        self._sizes = [short + 1] * longer + [short] * (self.steps_per_epoch - longer)
        self._seed = seed

    @property
    def smallest_batch(self) -> int:
        """Samples of the smallest batch."""
        return self._sizes[-1]

    @abc.abstractmethod
    def order(self, epoch: int) -> Tensor | None:
        """The samples ``(N,)`` in the order of an epoch, from 0; ``None`` for the given order."""

    def epoch(self, number: int) -> Iterator[Tensor | None]:
        """The index tensors of an epoch's batches; ``None`` stands for all samples."""
        order = self.order(number)
        yield from (None,) if order is None else order.split(self._sizes)

    def plans(self, start: int, end: int) -> Iterator[Plan]:
        """The batches of the steps after ``start`` up to ``end``, counted from 1 over all epochs."""
        step = start
        while step < end:
            number, position = divmod(step, self.steps_per_epoch)
            for index in list(self.epoch(number))[position:]:
                if step == end:
                    return
                yield Plan(index, derive_seed(self._seed, 1, step))
                step += 1


class FullBatch(Sampler):
    """One batch an epoch, the whole training set in the order given."""

    def __init__(self, samples: int) -> None:
        super().__init__(samples, samples)

    def order(self, epoch: int) -> None:
        """Nothing to reorder."""
        return None


class Shuffled(Sampler):
    """A new random order each epoch.

    Args:
        labels: classes ``(N,)``; only their number and device matter.
        batch_size: samples a batch at most.
        seed: seed of the orders.
    """

    def __init__(self, labels: Tensor, batch_size: int, seed: int) -> None:
        super().__init__(len(labels), batch_size, seed)
        self._generator = torch.Generator(labels.device)

    def order(self, epoch: int) -> Tensor:
        """A random permutation."""
        generator = self._generator.manual_seed(derive_seed(self._seed, 0, epoch))
        return torch.randperm(sum(self._sizes), generator=generator, device=generator.device)


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
        seed: seed of the orders.
    """

    def __init__(self, labels: Tensor, batch_size: int, seed: int) -> None:
        super().__init__(len(labels), batch_size, seed)
        # Classes without a sample take no turn.
        self._labels = torch.unique(labels, return_inverse=True)[1]
        counts = torch.bincount(self._labels)
        self._classes = len(counts)
        grouped = self._labels.sort(stable=True).values
        starts = counts.cumsum(0) - counts
        self._grouped = grouped
        self._rank = torch.arange(len(labels), device=labels.device) - starts[grouped]
        self._share = counts[grouped].to(torch.float64)
        self._generator = torch.Generator(labels.device)

    def order(self, epoch: int) -> Tensor:
        """The samples by their moment in the epoch."""
        self._generator.manual_seed(derive_seed(self._seed, 0, epoch))
        turn = self._permutation(self._classes)[self._grouped]
        moment = (self._rank + (turn + 0.5) / self._classes) / self._share
        shuffled = self._permutation(len(self._labels))
        by_class = shuffled[self._labels[shuffled].sort(stable=True).indices]
        return by_class[moment.sort(stable=True).indices]

    def _permutation(self, n: int) -> Tensor:
        return torch.randperm(n, generator=self._generator, device=self._generator.device)


def stratified_subset(labels: Tensor, wanted: int | None) -> Tensor | None:
    """The indices of ``wanted`` samples, every class with its share; None for all."""
    if wanted is None or wanted >= len(labels):
        return None
    by_class = labels.argsort(stable=True)
    places = torch.linspace(0, len(labels) - 1, wanted, dtype=torch.float64).round().long()
    return by_class[places.to(by_class.device)].sort().values
