"""The mean squared error of logits: its value, shares of classes, parts of a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ddnkit_train import MeanSquaredError
from torch import Tensor, nn

from ddnkit import registry

B, C = 12, 5


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(B, C, dtype=torch.float64, requires_grad=True), torch.arange(B) % C


def named(**given: Any) -> nn.Module:
    settings: Any = registry.get("losses", "mean_squared_error")(**given)
    module: nn.Module = settings.build(counts=torch.ones(C), head=nn.Identity())
    return module


@pytest.mark.parametrize(("given", "other"), [({}, 0.0), ({"off_target": -1}, -1.0)])
def test_it_is_the_squared_distance_from_the_targets(given: Any, other: float) -> None:
    logits, labels = batch()
    target = torch.full((B, C), other, dtype=torch.float64)
    target[torch.arange(B), labels] = 1
    distances = (logits - target).square().sum(dim=1)
    torch.testing.assert_close(named(**given)(logits, labels), distances.mean() / C)
    torch.testing.assert_close(named(**given)(logits, labels), nn.MSELoss()(logits, target))


@pytest.mark.parametrize("off_target", [0.0, -1.0])
def test_shares_of_one_class_are_its_label_and_mixtures_have_the_gradient_of_mixed_losses(
    off_target: float,
) -> None:
    loss, (logits, labels) = MeanSquaredError(off_target), batch()
    eye = torch.eye(C, dtype=torch.float64)
    torch.testing.assert_close(loss(logits, eye[labels]), loss(logits, labels))
    others = labels.roll(1)
    mixed = loss(logits, 0.3 * eye[labels] + 0.7 * eye[others])
    apart = 0.3 * loss(logits, labels) + 0.7 * loss(logits, others)
    assert mixed < apart
    (one,), (two,) = (torch.autograd.grad(value, logits) for value in (mixed, apart))
    torch.testing.assert_close(one, two)


def test_means_of_parts_weighted_by_their_samples_are_that_of_the_batch() -> None:
    loss, (logits, labels) = MeanSquaredError(-1), batch()
    parts = [loss(z, y) * len(y) / B for z, y in zip(logits.split(5), labels.split(5), strict=True)]
    torch.testing.assert_close(sum(parts), loss(logits, labels))


def test_all_targets_alike_are_refused() -> None:
    with pytest.raises(ValueError, match=r"(?m)^off_target$"):
        named(off_target=1)
