"""Neural-collapse metrics against their definitions and at an exact simplex ETF."""

import math

import pytest
import torch
from bounds import eps, factorised, rounding
from ddnkit_collapse import (
    Evaluation,
    NeuralCollapse,
    ce_bound,
    class_statistics,
    cosine_margins,
    equinorm,
    etf_cosine_margin,
    etf_distance,
    nc1,
    nc2,
    nc3,
    nc4,
    neural_collapse,
)
from torch import Tensor
from torch.nn import functional

import ddnkit

SHAPES = [(60, 7, 5), (90, 12, 4), (40, 3, 6), (9, 30, 3)]  # samples, dimension, classes


def sample(samples: int, dimension: int, classes: int, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(samples + dimension)
    labels = torch.randint(classes, (samples,), generator=generator)
    labels[:classes] = torch.arange(classes)
    centres = torch.randn(classes, dimension, generator=generator, dtype=torch.float64)
    noise = torch.randn(samples, dimension, generator=generator, dtype=torch.float64)
    weight = torch.randn(classes, dimension, generator=generator, dtype=torch.float64)
    return (centres[labels] + 0.3 * noise).to(dtype), labels, weight.to(dtype)


def simplex_etf(classes: int, dimension: int) -> Tensor:
    """Unit rows (C, d) of a simplex ETF in a random direction."""
    generator = torch.Generator().manual_seed(0)
    frame = torch.linalg.qr(
        torch.randn(dimension, classes, generator=generator, dtype=torch.float64)
    ).Q
    centring = torch.eye(classes, dtype=torch.float64) - 1 / classes
    return math.sqrt(classes / (classes - 1)) * centring @ frame.T


def class_means_by_definition(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    return torch.stack([features[labels == c].mean(dim=0) for c in range(classes)])


@pytest.mark.parametrize("shape", SHAPES)
def test_nc1_is_the_trace_with_the_pseudo_inverse(shape: tuple[int, int, int]) -> None:
    features, labels, _ = sample(*shape)
    classes = shape[2]
    means = class_means_by_definition(features, labels, classes)
    global_mean = features.mean(dim=0)
    within = sum(
        torch.outer(h - means[c], h - means[c])
        for h, c in zip(features, labels.tolist(), strict=True)
    ) / len(features)
    between = sum(torch.outer(m - global_mean, m - global_mean) for m in means) / classes
    expected = torch.trace(within @ torch.linalg.pinv(between, hermitian=True)) / classes
    assert float(nc1(features, labels, class_statistics(features, labels, classes))) == (
        pytest.approx(float(expected), rel=pinv_bound(between))
    )


def pinv_bound(A: Tensor) -> float:
    """Of a pseudo-inverse: its condition is the ratio of the largest singular value to the least kept."""
    values = torch.linalg.svdvals(A)
    kept = values[values > len(A) * eps(A) * values[0]]
    return factorised(A, len(A), condition=float(values[0] / kept[-1]))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_other_metrics_are_their_definitions(shape: tuple[int, int, int]) -> None:
    features, labels, W = sample(*shape)
    classes = shape[2]
    means = class_means_by_definition(features, labels, classes)
    global_mean = features.mean(dim=0)
    H = (means - global_mean).T
    target = (torch.eye(classes) - torch.ones(classes, classes) / classes) / math.sqrt(classes - 1)
    statistics = class_statistics(features, labels, classes)

    assert torch.allclose(statistics.means, means)
    assert torch.allclose(statistics.global_mean, global_mean)
    WW, WH = W @ W.T, W @ H
    assert float(nc2(W)) == pytest.approx(float((WW / WW.norm() - target).norm()))
    assert float(nc3(W, statistics)) == pytest.approx(float((WH / WH.norm() - target).norm()))

    bias = -W @ global_mean
    by_classifier = [int((W @ h + bias).argmax()) for h in features]
    by_centre = [int((means - h).norm(dim=1).argmin()) for h in features]
    disagree = sum(a != b for a, b in zip(by_classifier, by_centre, strict=True)) / len(features)
    assert float(nc4(features, W, global_mean, statistics)) == pytest.approx(disagree)

    variation = [x.std(correction=0) / x.mean() for x in (W.norm(dim=1), H.norm(dim=0))]
    expected = float(abs(variation[0] - variation[1]))
    assert float(equinorm(W, statistics)) == pytest.approx(expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_cosine_margins_are_their_definition(shape: tuple[int, int, int]) -> None:
    features, labels, W = sample(*shape)
    expected = []
    for h, c in zip(features, labels.tolist(), strict=True):
        cosines = functional.cosine_similarity(W - W.mean(dim=0), h - features.mean(dim=0), dim=1)
        others = torch.cat([cosines[:c], cosines[c + 1 :]])
        expected.append(cosines[c] - others.max())
    assert torch.allclose(cosine_margins(features, labels, W), torch.stack(expected))


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_at_an_exact_simplex_etf_everything_has_its_theoretical_value(
    classes: int, dtype: torch.dtype
) -> None:
    etf = simplex_etf(classes, 16)
    labels = torch.arange(6 * classes) % classes
    features = (2.5 * etf[labels]).to(dtype)
    W = etf.to(dtype)
    figures = neural_collapse(features, labels, W, features.mean(dim=0), classes)
    # Sums of 16 terms, of lengths 2.5; distances are roots of sums over C² entries, each of them so.
    tolerance = rounding(dtype, 16, size=2.5) * classes
    assert figures.keys() == {
        "nc1", "nc2", "nc3", "nc4", "equinorm", "etf_distance_w", "etf_distance_h",
    }  # fmt: skip
    assert figures == pytest.approx(dict.fromkeys(figures, 0.0), abs=tolerance)
    margins = cosine_margins(features, labels, W)
    assert margins.tolist() == pytest.approx([classes / (classes - 1)] * len(labels), abs=tolerance)


def test_metrics_do_not_depend_on_how_the_samples_are_chunked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features, labels, W = sample(60, 7, 5)
    mean = features.mean(dim=0)
    whole = neural_collapse(features, labels, W, mean, 5)
    monkeypatch.setattr("ddnkit_collapse.statistics.CHUNK", 7)
    monkeypatch.setattr("ddnkit_collapse.metrics.CHUNK", 11)
    assert neural_collapse(features, labels, W, mean, 5) == pytest.approx(whole)


@pytest.mark.parametrize(("dimension", "classes"), [(12, 5), (5, 5), (4, 5)])
def test_etf_distance_is_the_least_over_scale_and_rotation(dimension: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(3)
    X = torch.randn(dimension, classes, generator=generator, dtype=torch.float64)
    # An orthonormal basis of the complement of 1, in which any ETF is α U Eᵀ/√(C−1).
    E = torch.linalg.svd(torch.ones(classes, 1, dtype=torch.float64)).U[:, 1:]
    left, _, right = torch.linalg.svd(X @ E, full_matrices=False)
    M = (left @ right) @ E.T / math.sqrt(classes - 1)
    best = (X - (X * M).sum() * M).norm() / X.norm()
    # A polar factor, of which the least distance depends to second order alone.
    bound = factorised(X, max(X.shape))
    assert float(etf_distance(X.T)) == pytest.approx(float(best), rel=bound)
    for _ in range(20):
        U = torch.linalg.qr(torch.randn(dimension, classes - 1, generator=generator).double()).Q
        other = U @ E.T / math.sqrt(classes - 1)
        assert float((X - (X * other).sum() * other).norm() / X.norm()) >= float(best) - bound


def test_etf_distance_needs_room_for_an_etf() -> None:
    assert math.isnan(float(etf_distance(torch.randn(6, 4))))
    assert math.isnan(float(etf_distance(torch.zeros(4, 6))))


def test_a_missing_class_is_left_out() -> None:
    features, labels, W = sample(80, 9, 5)
    kept = labels != 3
    features, labels = features[kept], labels[kept]
    statistics = class_statistics(features, labels, 5)
    assert statistics.present.tolist() == [True, True, True, False, True]
    assert torch.equal(statistics.centred[3], torch.zeros(9, dtype=torch.float64))

    compact = labels - (labels > 3).long()
    others = class_statistics(features, compact, 4)
    assert float(nc1(features, labels, statistics)) == pytest.approx(
        float(nc1(features, compact, others))
    )
    W[3] *= 0  # so that the classifier never chooses the missing class by its size alone
    figures = neural_collapse(features, labels, W, features.mean(dim=0), 5)
    assert all(math.isfinite(value) for value in figures.values())
    assert figures["nc4"] <= 1


def test_no_within_class_variance_is_zero_nc1() -> None:
    etf = simplex_etf(4, 8)
    labels = torch.arange(40) % 4
    distorted = torch.cat([3 * etf[:2], etf[2:] + 0.2])[labels]
    assert float(nc1(distorted, labels, class_statistics(distorted, labels, 4))) < (
        # Squares of the rounding of class means of 10 features of length 3.
        rounding(torch.float64, 10, size=3) ** 2
    )


@pytest.mark.parametrize("power", [0, 10, 20, 30, 36])
def test_nc1_keeps_its_digits_on_the_way_to_collapse(power: int) -> None:
    generator = torch.Generator().manual_seed(4)
    # Numbers of few bits, deviations in pairs that cancel: sums and class means are exact, and
    # deviations 2⁻ᵖ times as large make NC1 exactly 4⁻ᵖ times as large.
    means = torch.randint(-64, 64, (6, 40), generator=generator).double() / 8
    halves = torch.randint(-64, 64, (48, 40), generator=generator).double() / 64
    labels = (torch.arange(48) % 6).repeat(2)
    deviations = torch.cat([halves, -halves])

    def at(scale: float) -> float:
        features = means[labels] + scale * deviations
        return float(nc1(features, labels, class_statistics(features, labels, 6)))

    # What is left to rounding is the pseudo-inverse of Σ_B, the same every time.
    between = (means - means.mean(dim=0)).T @ (means - means.mean(dim=0))
    assert at(2.0**-power) * 4.0**power == pytest.approx(at(1.0), rel=pinv_bound(between))


def test_nc1_has_a_gradient() -> None:
    features, labels, _ = sample(30, 5, 4)
    features.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda h: nc1(h, labels, class_statistics(h, labels, 4)), (features,)
    )
    single = features.detach().float().requires_grad_()
    bound = rounding(torch.float32, 30, condition=100)  # deviations and means cancel: Σ_B is small
    nc1(single, labels, class_statistics(single, labels, 4)).backward()
    assert single.grad is not None
    nc1(features, labels, class_statistics(features, labels, 4)).backward()
    assert torch.allclose(single.grad.double(), features.grad, rtol=bound, atol=bound)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1])
def test_metrics_of_features_that_are_all_the_same_are_nan_not_a_crash(value: float) -> None:
    labels = torch.arange(30) % 3
    features = torch.full((30, 6), value)
    W = torch.randn(3, 6)
    figures = neural_collapse(features, labels, W, torch.zeros(6), 3)
    assert math.isnan(figures["nc1"])
    assert math.isnan(figures["nc4"]) == (value == 0)
    assert cosine_margins(torch.zeros(30, 6), labels, W).isnan().all()


def test_ce_bound_is_the_loss_of_an_exact_etf() -> None:
    # To the digits that are written here.
    assert ce_bound(10, 5.0) == pytest.approx(0.0342017, abs=1e-7)
    assert ce_bound(100, 5.0) == pytest.approx(0.4911556, abs=1e-7)
    etf = simplex_etf(7, 9)
    loss = functional.cross_entropy(3 * etf @ etf.T, torch.arange(7))
    assert ce_bound(7, 3.0) == pytest.approx(float(loss))
    assert etf_cosine_margin(5) == 1.25


def test_neural_collapse_is_built_by_its_settings() -> None:
    assert ddnkit.registry.get("metrics", "neural_collapse") is NeuralCollapse
    features, labels, W = sample(60, 7, 5)
    margins = cosine_margins(features, labels, W)
    mean = features.mean(dim=0)
    figures = NeuralCollapse().build()(Evaluation(features, labels, W, mean, 5, margins))
    assert figures.pop("cosine_margin") == pytest.approx(float(margins.mean()))
    assert figures == neural_collapse(features, labels, W, mean, 5)


@pytest.mark.parametrize("exponent", [100, 64, -64, -100])
def test_metrics_do_not_depend_on_the_size_of_the_features(exponent: int) -> None:
    """Times a power of two, which no rounding sees: squares may overflow or vanish in float32."""
    features, labels, weight = sample(60, 7, 5, torch.float32)
    mean = features.mean(dim=0)
    huge = features * 2.0**exponent
    plain = neural_collapse(features, labels, weight, mean, 5)
    scaled = neural_collapse(huge, labels, weight, mean * 2.0**exponent, 5)
    assert plain.keys() == scaled.keys()
    for name, figure in plain.items():
        torch.testing.assert_close(torch.tensor(scaled[name]), torch.tensor(figure), msg=name)
    margins = cosine_margins(features, labels, weight)
    torch.testing.assert_close(cosine_margins(huge, labels, weight).float(), margins.float())
