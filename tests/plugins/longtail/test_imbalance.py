"""Imbalanced subsets have exactly the class counts of the papers, whatever data they are drawn from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ddnkit_longtail import class_counts, imbalanced_subset
from hypothesis import given, settings
from hypothesis import strategies as st

from ddnkit import InputError

# "Inducing Neural Collapse in Imbalanced Learning": training images in all, by imbalance ratio.
CIFAR10 = {0.005: 11_203, 0.01: 12_406, 0.02: 13_996}
CIFAR100 = {0.005: 9_502, 0.01: 10_847, 0.02: 12_608}


def labels_of(counts: list[int], seed: int = 0) -> torch.Tensor:
    """Labels with these class sizes, in no order."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]


@pytest.mark.parametrize(("ratio", "total"), CIFAR10.items())
def test_cifar10_has_the_published_totals(ratio: float, total: int) -> None:
    labels = labels_of([5000] * 10)
    kept = imbalanced_subset(labels, 10, ratio)
    assert len(kept) == total
    counts = torch.bincount(labels[kept], minlength=10).tolist()
    assert counts == class_counts(10, 5000, ratio)
    assert (counts[0], counts[-1]) == (5000, round(5000 * ratio))


@pytest.mark.parametrize(("ratio", "total"), CIFAR100.items())
def test_cifar100_has_the_published_totals(ratio: float, total: int) -> None:
    labels = labels_of([500] * 100)
    kept = imbalanced_subset(labels, 100, ratio)
    assert len(kept) == total
    assert torch.bincount(labels[kept]).tolist() == class_counts(100, 500, ratio)


def test_a_ratio_of_one_keeps_equally_many_of_each() -> None:
    labels = labels_of([7, 9, 8])
    kept = imbalanced_subset(labels, 3, 1.0)
    assert torch.bincount(labels[kept]).tolist() == [7, 7, 7]


def test_step_imbalance_has_two_sizes() -> None:
    assert class_counts(10, 500, 0.01, profile="step") == [500] * 5 + [5] * 5
    assert class_counts(10, 500, 0.01, profile="step", minority=0.2) == [500] * 8 + [5] * 2


def test_a_whole_number_is_not_lost_to_rounding() -> None:
    assert [class_counts(2, n, r)[-1] for n, r in ((5000, 0.001), (1000, 0.003), (300, 0.07))] == [
        5, 3, 21,
    ]  # fmt: skip


@settings(deadline=None)
@given(
    available=st.lists(st.integers(1, 400), min_size=2, max_size=12),
    ratio=st.floats(0.001, 1),
    profile=st.sampled_from(["exponential", "step"]),
    order=st.sampled_from(["label", "random"]),
    seed=st.integers(0, 2**32),
)
def test_by_default_every_class_has_what_it_is_to_keep(
    available: list[int], ratio: float, profile: str, order: str, seed: int
) -> None:
    labels = labels_of(available, seed)
    classes = len(available)
    kept = imbalanced_subset(labels, classes, ratio, profile=profile, order=order, seed=seed)
    assert torch.equal(kept, kept.unique())
    counts = torch.bincount(labels[kept], minlength=classes)
    assert sorted(counts.tolist(), reverse=True) == sorted(
        class_counts(classes, int(counts.max()), ratio, profile=profile), reverse=True
    )
    assert all(n <= there for n, there in zip(counts.tolist(), available, strict=True))


def test_the_choice_follows_from_the_seed_alone() -> None:
    labels = labels_of([50] * 4)
    one, same, other = (imbalanced_subset(labels, 4, 0.1, seed=s) for s in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_random_order_makes_other_classes_rare() -> None:
    labels = labels_of([100] * 10)
    kept = imbalanced_subset(labels, 10, 0.01, order="random", seed=1)
    counts = torch.bincount(labels[kept], minlength=10).tolist()
    assert sorted(counts, reverse=True) == class_counts(10, 100, 0.01)
    assert counts != class_counts(10, 100, 0.01)


def test_a_class_with_too_few_samples_is_named() -> None:
    with pytest.raises(InputError, match=r"class 1 .*50 .*20"):
        imbalanced_subset(labels_of([100, 20]), 2, 0.5, largest=100)


@pytest.mark.parametrize(
    ("options", "text"),
    [({"ratio": 0.0}, "ratio"), ({"ratio": 1.5}, "ratio"), ({"profile": "linear"}, "profile")],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        class_counts(**{"classes": 4, "largest": 10, "ratio": 0.1, **options})
