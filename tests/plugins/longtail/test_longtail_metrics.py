"""Accuracy by class size, and the cosines between classes, at cases whose values are known."""

from __future__ import annotations

import math

import pydantic
import pytest
import torch
from bounds import rounding
from ddnkit_collapse import Evaluation, HeldOut, class_statistics, cosine_margins
from ddnkit_etf import simplex_etf
from ddnkit_longtail import class_cosines, rare_angle, worst_cosine
from ddnkit_longtail.settings import LongTail

C, D = 5, 7
W = simplex_etf(C, D, direction="canonical").T
COUNTS = torch.tensor([200, 101, 100, 20, 19])


def evaluation(
    features: torch.Tensor, labels: torch.Tensor, held_out: HeldOut | None
) -> Evaluation:
    margins = cosine_margins(features, labels, W)
    return Evaluation(
        features, labels, W, torch.zeros(D), C, margins,
        counts=COUNTS, predictions=labels, held_out=held_out,
    )  # fmt: skip


def test_at_a_simplex_etf_the_cosines_are_the_etf_s() -> None:
    labels = torch.arange(C).repeat(4)
    found = class_cosines(class_statistics(W[labels], labels, C), W)
    assert found == pytest.approx(
        {"hh_cos_mean": -1 / (C - 1), "hh_cos_std": 0, "hw_cos_mean": -1 / (C - 1),
         "hw_cos_std": 0, "hw_own_cos": 1, "wh_distance": 0},
        abs=rounding(W, 4 * D),
    )  # fmt: skip


def test_cosines_of_any_means() -> None:
    labels = torch.arange(C).repeat_interleave(torch.tensor([4, 3, 2, 1, 1]))
    features = torch.randn(len(labels), D).double()
    weight = torch.randn(C, D).double()
    found = class_cosines(class_statistics(features, labels, C), weight)
    H = torch.stack([features[labels == c].mean(0) for c in range(C)]) - features.mean(0)
    pairs = [(c, k) for c in range(C) for k in range(C) if c != k]
    hh = torch.stack([torch.cosine_similarity(H[c], H[k], dim=0) for c, k in pairs])
    hw = torch.stack([torch.cosine_similarity(H[c], weight[k], dim=0) for c, k in pairs])
    assert found["hh_cos_mean"] == pytest.approx(float(hh.mean()))
    assert found["hh_cos_std"] == pytest.approx(float(hh.std(correction=0)))
    assert found["hw_cos_mean"] == pytest.approx(float(hw.mean()))
    assert found["hw_cos_std"] == pytest.approx(float(hw.std(correction=0)))
    assert found["hw_own_cos"] == pytest.approx(float(torch.cosine_similarity(H, weight).mean()))
    distance = (weight / weight.norm() - H / H.norm()).square().sum()
    assert found["wh_distance"] == pytest.approx(float(distance))


def test_classes_without_samples_take_no_part() -> None:
    labels = torch.tensor([0, 1, 3, 0])
    found = class_cosines(class_statistics(W[labels], labels, C), W)
    assert all(math.isfinite(value) for value in found.values())


def test_accuracy_by_class_size() -> None:
    labels = torch.arange(C).repeat(4)
    predictions = labels.clone()
    predictions[labels == 4] = 0  # few: none right
    predictions[2] = 0  # medium, classes 2 and 3: seven of eight
    held_out = HeldOut(labels, predictions, W[labels])
    found = LongTail().build()(evaluation(W[labels], labels, held_out))
    assert found["test_many"] == 100
    assert found["test_medium"] == pytest.approx(100 * 7 / 8)
    assert found["test_few"] == 0
    assert found["test_balanced"] == pytest.approx(100 * (1 + 1 + 0.75 + 1 + 0) / 5)
    assert set(LongTail.columns) <= found.keys()
    assert found["test_hw_own_cos"] == pytest.approx(1)


def test_groups_are_by_training_samples_and_may_be_empty() -> None:
    labels = torch.arange(C).repeat(2)
    held_out = HeldOut(labels, labels)
    found = LongTail(many_above=300, few_below=20).build()(evaluation(W[labels], labels, held_out))
    assert math.isnan(found["test_many"])
    assert found["test_few"] == 100
    assert "test_hh_cos_mean" not in found  # no features of the test set


def test_without_a_test_set_there_are_no_test_figures() -> None:
    labels = torch.arange(C).repeat(2)
    found = LongTail().build()(evaluation(W[labels], labels, None))
    assert not [name for name in found if name.startswith("test_")]
    assert found["worst_cos"] == pytest.approx(1)


def test_groups_must_not_overlap() -> None:
    with pytest.raises(pydantic.ValidationError, match="both groups"):
        LongTail(many_above=10, few_below=12)


def test_the_worst_cosine_is_that_of_one_sample() -> None:
    features = W.repeat(3, 1)
    labels = torch.arange(C).repeat(3)
    features[7] = -features[7]
    assert float(worst_cosine(features, labels, W)) == pytest.approx(-1)


def test_the_rare_angle_is_of_the_rarer_half() -> None:
    etf = math.degrees(math.acos(-1 / (C - 1)))
    assert rare_angle(W, COUNTS) == pytest.approx(etf)
    merged = W.clone()
    merged[4] = merged[3]
    # Of two unit vectors that are rounded apart, in degrees.
    assert rare_angle(merged, COUNTS) <= math.degrees(rounding(torch.float64, D))
    assert rare_angle(merged, COUNTS.flip(0)) == pytest.approx(etf)
    tiny = W.double().clone()
    tiny[4] = tiny[3] + 1e-9 * tiny[0]
    assert 0 < rare_angle(tiny, COUNTS) < 1e-6
    assert math.isnan(rare_angle(W[:2], COUNTS[:2]))
