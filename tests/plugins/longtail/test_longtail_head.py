"""The ETF classifier on batch-normed features of fixed length, and what is left of it when exported."""

from __future__ import annotations

import copy

import pytest
import torch
from ddnkit_longtail.settings import BatchNormETFHead
from ddnkit_train.model import FinalHead
from torch import nn
from torch.nn import functional

C, D = 5, 8


@pytest.mark.parametrize(("e_w", "e_h"), [(1.0, 1.0), (4.0, 0.25), (2.0, 25.0)])
def test_logits_are_products_of_vectors_of_the_given_lengths(e_w: float, e_h: float) -> None:
    head = BatchNormETFHead(e_w=e_w, e_h=e_h).build(feature_dim=D, classes=C)
    features = torch.randn(20, D)
    normed = functional.batch_norm(features, None, None, training=True)
    h = e_h**0.5 * functional.normalize(normed, dim=1)
    torch.testing.assert_close(head(features), h @ (e_w**0.5 * head.classifier()).T)
    gram = e_w * head.classifier() @ head.classifier().T
    torch.testing.assert_close(gram, e_w * (torch.eye(C) * C / (C - 1) - 1 / (C - 1)))


def test_the_classifier_is_random_by_seed_and_never_trained() -> None:
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        weights.append(BatchNormETFHead().build(feature_dim=D, classes=C).classifier())
    assert torch.equal(weights[0], weights[1])
    assert not torch.allclose(weights[0], weights[2])
    head = BatchNormETFHead().build(feature_dim=D, classes=C)
    assert [name for name, _ in head.named_parameters()] == ["norm.weight", "norm.bias"]
    plain = BatchNormETFHead(batch_norm="plain").build(feature_dim=D, classes=C)
    assert not list(plain.parameters())


@pytest.mark.parametrize("options", [{}, {"batch_norm": "plain"}, {"batch_norm": "none"}])
def test_what_is_exported_computes_the_same(options: dict[str, str]) -> None:
    head = BatchNormETFHead.model_validate(options).build(feature_dim=D, classes=C)
    for parameter in head.parameters():
        nn.init.uniform_(parameter, 0.5, 2)
    for _ in range(3):
        head(3 * torch.randn(20, D) + 1)
    head.eval()
    final = FinalHead(
        head.classifier(), head.global_mean, head.temperature, feature_map=head.feature_map()
    )
    features = torch.randn(6, D)
    torch.testing.assert_close(final(features), head(features))
    torch.testing.assert_close(final.embed(features), head.embed(features))


def test_statistics_are_of_training_alone() -> None:
    head = BatchNormETFHead().build(feature_dim=D, classes=C)
    head(torch.randn(20, D))
    head.eval()
    before = copy.deepcopy(head.state_dict())
    one = torch.randn(1, D)
    torch.testing.assert_close(head(one), head(torch.cat([one, torch.randn(3, D)]))[:1])
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())


def test_narrow_features_are_widened_before_the_batch_norm() -> None:
    head = BatchNormETFHead().build(feature_dim=D, classes=C)
    assert head(torch.randn(20, D, dtype=torch.bfloat16)).dtype == torch.float32
