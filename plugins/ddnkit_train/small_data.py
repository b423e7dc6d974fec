"""Data that need no files: free features, and the UCI digits that scikit-learn ships."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .data import Dataset, Standardise, synthetic
from .settings import DigitPairs, Digits, FreeFeaturesData


class Indices(Dataset):
    """Samples that are their own indices: a subset is numbered anew, from 0."""

    def subset(self, index: Tensor) -> Indices:
        """See `Data.subset`."""
        return replace(self, inputs=self.inputs[: len(index)], labels=self.labels[index])


def free_features(
    settings: FreeFeaturesData, *, seed: int, smoke: bool, download: bool = False
) -> Indices:
    """The indices 0…N−1, with label i mod C; already synthetic, so that ``smoke`` keeps them."""
    indices = torch.arange(settings.samples)
    return Indices(indices, indices % settings.classes, settings.classes)


def digits(settings: Digits, *, seed: int, smoke: bool, download: bool = False) -> Dataset:
    """The single digits: ``(N, 1, 8, 8)``, 10 classes, standardised."""
    if smoke:
        return synthetic((1, 8, 8), 10)
    train, test = _split_digits(settings.test_fraction, _generator(settings.data_seed))
    prepare = Standardise.fit(train[0], settings.standardise)
    return Dataset(*train, 10, *test, prepare=prepare)


def digit_pairs(settings: DigitPairs, *, seed: int, smoke: bool, download: bool = False) -> Dataset:
    """Pairs of digits: ``(N, 1, 8, 16)``, label 10·left + right, 100 balanced classes."""
    if smoke:
        return synthetic((1, 8, 16), 100)
    generator = _generator(settings.data_seed)
    # The single digits are split first: no test pair shares a digit with a training pair.
    train, test = _split_digits(settings.test_fraction, generator)
    train_images, train_labels = _pairs(*train, settings.train_per_class, generator)
    test_images, test_labels = _pairs(*test, settings.test_per_class, generator)
    prepare = Standardise.fit(train_images, settings.standardise)
    return Dataset(train_images, train_labels, 100, test_images, test_labels, prepare)


def _generator(seed: int) -> torch.Generator:
    # Its own generator, on the CPU: the data are the same for every seed and device of a recipe.
    return torch.Generator().manual_seed(seed)


def _split_digits(
    test_fraction: float, generator: torch.Generator
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """((training images, labels), (test images, labels)), the same share held out of each class."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).to(torch.float32)[:, None]
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    train, test = [], []
    for digit in range(10):
        members = torch.nonzero(labels == digit)[:, 0]
        members = members[torch.randperm(len(members), generator=generator)]
        held_out = min(max(round(test_fraction * len(members)), 1), len(members) - 1)
        test.append(members[:held_out])
        train.append(members[held_out:])
    train_index, test_index = torch.cat(train), torch.cat(test)
    return (
        (images[train_index], labels[train_index]),
        (images[test_index], labels[test_index]),
    )


def _pairs(
    images: Tensor, labels: Tensor, per_class: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """``per_class`` pairs of each of the 100 classes, both digits drawn with replacement."""
    pair_labels = torch.arange(100).repeat_interleave(per_class)
    halves = [
        images[_draw(labels, wanted, generator)] for wanted in (pair_labels // 10, pair_labels % 10)
    ]
    return torch.cat(halves, dim=-1), pair_labels


def _draw(labels: Tensor, wanted: Tensor, generator: torch.Generator) -> Tensor:
    """For each wanted class the index of a random sample of it."""
    order = torch.argsort(labels, stable=True)
    counts = torch.bincount(labels, minlength=10)
    starts = counts.cumsum(0) - counts
    uniform = torch.rand(len(wanted), generator=generator, dtype=torch.float64)
    return order[starts[wanted] + (uniform * counts[wanted]).to(torch.int64)]
