"""Dot regression and weighted cross-entropy: values, gradients, lengths, and mixed labels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from bounds import rounding
from ddnkit_etf import simplex_etf
from ddnkit_etf.settings import FixedETFHead, NearestETFHead, StandardHead
from ddnkit_longtail import (
    DotRegression,
    WeightedCrossEntropy,
    balanced_lengths,
    dot_regression,
    mix,
)
from ddnkit_longtail import settings as longtail
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from ddnkit import InputError, registry

C, D, B = 5, 8, 7
#: Logits of eight terms, softmaxes of five classes, a mean of seven; temperatures of order ten.
SUMS = rounding(torch.float64, B * C * D, size=10)


def problem(
    e_w: float = 1.0, e_h: float = 1.0, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features of length √E_H, an ETF with rows of length √E_W, labels; in float64."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(B, D, generator=generator, dtype=torch.float64)
    features = math.sqrt(e_h) * functional.normalize(features, dim=1)
    torch.manual_seed(seed)
    weight = math.sqrt(e_w) * simplex_etf(C, D, direction="haar", dtype=torch.float64).T
    return features, weight, torch.randint(0, C, (B,), generator=generator)


ENERGIES = st.floats(0.01, 100)


@settings(deadline=None)
@given(e_w=ENERGIES, e_h=ENERGIES, seed=st.integers(0, 1000))
def test_the_value_is_half_the_scaled_squared_shortfall(e_w: float, e_h: float, seed: int) -> None:
    features, weight, labels = problem(e_w, e_h, seed)
    found = dot_regression(features, weight, labels, e_w=e_w, e_h=e_h)
    cosine = functional.cosine_similarity(features, weight[labels])
    torch.testing.assert_close(found, math.sqrt(e_w * e_h) / 2 * (1 - cosine).square())


@settings(deadline=None)
@given(e_w=ENERGIES, e_h=ENERGIES, seed=st.integers(0, 1000))
def test_the_gradient_is_minus_one_minus_cosine_times_the_classifier_vector(
    e_w: float, e_h: float, seed: int
) -> None:
    features, weight, labels = problem(e_w, e_h, seed)
    features.requires_grad_()
    dot_regression(features, weight, labels, e_w=e_w, e_h=e_h).sum().backward()
    cosine = functional.cosine_similarity(features.detach(), weight[labels])
    torch.testing.assert_close(features.grad, -(1 - cosine)[:, None] * weight[labels])


def test_dot_regression_passes_gradcheck() -> None:
    features, weight, labels = problem(2.0, 3.0)
    features.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda h: dot_regression(h, weight, labels, e_w=2.0, e_h=3.0), features
    )
    loss = DotRegression(math.sqrt(6), torch.rand(C, dtype=torch.float64) + 0.5).double()
    assert torch.autograd.gradcheck(lambda h: loss(h @ weight.T, labels), features)


def test_it_is_zero_at_the_etf_and_nowhere_else() -> None:
    _, weight, labels = problem()
    loss = DotRegression(1.0, torch.ones(C)).double()
    assert float(loss(weight[labels] @ weight.T, labels)) < rounding(weight, D) ** 2
    assert float(loss(weight[(labels + 1) % C] @ weight.T, labels)) > 0.5


@settings(deadline=None)
@given(seed=st.integers(0, 1000), e_w=ENERGIES, e_h=ENERGIES)
def test_the_module_regresses_on_classifier_vectors_of_its_lengths(
    seed: int, e_w: float, e_h: float
) -> None:
    """On the head's logits with lengths l it is the formula with classifier vectors l_c w_c."""
    features, weight, labels = problem(e_w, e_h, seed)
    lengths = torch.rand(C, dtype=torch.float64) + 0.5
    loss = DotRegression(math.sqrt(e_w * e_h), lengths).double()
    loss.lengths = lengths
    found = loss(features @ weight.T, labels)
    one_by_one = [
        dot_regression(h[None], (lengths[:, None] * weight), c[None], e_w=float(lengths[c]) ** 2 * e_w,
                       e_h=e_h)
        for h, c in zip(features, labels, strict=True)
    ]  # fmt: skip
    torch.testing.assert_close(found, torch.cat(one_by_one).mean())


def test_balanced_lengths_give_every_class_the_same_pull() -> None:
    counts = torch.tensor([50, 20, 5, 4, 1])
    lengths = balanced_lengths(counts)
    torch.testing.assert_close(lengths, (counts.sum() / 5 / counts.double()).sqrt())
    torch.testing.assert_close((counts * lengths.square()), torch.full((5,), 16.0).double())
    assert balanced_lengths(torch.tensor([4, 0]))[1] == 1


def test_weighted_cross_entropy_counts_each_class_the_same() -> None:
    """Over a whole training set it is the mean over the classes of their mean losses."""
    counts = torch.tensor([6, 3, 1])
    labels = torch.arange(3).repeat_interleave(counts)
    logits = torch.randn(10, 3)
    loss = WeightedCrossEntropy(balanced_lengths(counts).square())
    losses = functional.cross_entropy(logits, labels, reduction="none")
    by_class = torch.stack([losses[labels == c].mean() for c in range(3)])
    torch.testing.assert_close(loss(logits, labels), by_class.mean())


LOSSES = ["cross_entropy", "weighted_cross_entropy", "dot_regression"]


def built(name: str, head: Any) -> torch.nn.Module:
    counts = torch.tensor([40, 20, 10, 5, 2])
    module: torch.nn.Module = registry.get("losses", name)().build(counts=counts, head=head)
    return module.double()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("lam", [0.0, 1.0, 0.3])
def test_a_mixed_loss_is_the_mixture_of_the_losses(name: str, lam: float) -> None:
    """For λ = 0 and 1 it is the loss of the one label or the other."""
    features, weight, first = problem()
    second = (first + 2) % C
    logits = features @ weight.T
    head = FixedETFHead(temperature=1.0, centre=False).build(feature_dim=D, classes=C)
    loss = built(name, head)
    _, shares = mix(features, first, features, second, lam, C)
    expected = lam * loss(logits, first) + (1 - lam) * loss(logits, second)
    torch.testing.assert_close(loss(logits, shares), expected, rtol=SUMS, atol=SUMS)
    if lam in (0.0, 1.0):
        one = first if lam else second
        torch.testing.assert_close(loss(logits, shares), loss(logits, one), rtol=SUMS, atol=SUMS)


@pytest.mark.parametrize("name", LOSSES)
def test_parts_of_a_batch_add_up(name: str) -> None:
    """Weighted by their samples, as several processes are, they average to the whole batch's."""
    features, weight, labels = problem()
    logits = features @ weight.T
    loss = built(name, FixedETFHead(temperature=1.0).build(feature_dim=D, classes=C))
    parts = [len(y) / B * loss(z, y) for z, y in zip(logits.split(3), labels.split(3), strict=True)]
    torch.testing.assert_close(sum(parts), loss(logits, labels))


def test_dot_regression_takes_its_target_from_the_head() -> None:
    head = longtail.BatchNormETFHead(e_w=4.0, e_h=9.0).build(feature_dim=D, classes=C)
    loss: Any = longtail.DotRegression().build(counts=torch.ones(C), head=head)
    assert loss.temperature == pytest.approx(6.0)
    nearest = NearestETFHead(temperature=3.0).build(feature_dim=D, classes=C)
    loss = longtail.DotRegression(lengths="equal").build(counts=torch.arange(C), head=nearest)
    assert loss.temperature == 3.0
    assert loss.lengths.tolist() == [1.0] * C


def test_dot_regression_refuses_a_classifier_that_could_collapse() -> None:
    learned = StandardHead().build(feature_dim=D, classes=C)
    with pytest.raises(
        InputError, match=r"dot_regression .*batch_norm_etf, fixed_etf or nearest_etf"
    ):
        longtail.DotRegression().build(counts=torch.ones(C), head=learned)


def test_dot_regression_refuses_features_of_any_length() -> None:
    head = FixedETFHead().build(feature_dim=D, classes=C)
    head.normalise = False
    with pytest.raises(InputError, match=r"dot_regression .*length"):
        longtail.DotRegression().build(counts=torch.ones(C), head=head)
