"""Classifier heads: their logits, what they learn from a batch, and what they keep."""

import pydantic
import pytest
import torch
from ddnkit_etf import (
    ClassifierHead,
    NearestETFClassifier,
    etf_of_frame,
    nearest_etf,
    simplex_etf,
)
from ddnkit_etf.settings import FixedETFHead, MeansSettings, NearestETFHead
from ddnkit_manifolds import Procrustes
from torch import nn

import ddnkit
from ddnkit import InputError, registry

NAMES = ["standard", "standard_unnormalised", "fixed_etf", "nearest_etf"]


def build(name, d=8, C=4, **settings):
    return registry.get("heads", name)(**settings).build(feature_dim=d, classes=C)


def batch(d=8, C=4, each=3):
    labels = torch.arange(C).repeat(each)
    return torch.randn(len(labels), d, requires_grad=True), labels


@pytest.mark.parametrize("name", NAMES)
def test_trains_and_evaluates(name):
    head = build(name)
    features, labels = batch()
    loss = nn.functional.cross_entropy(head(features, labels), labels)
    loss.backward()
    assert features.grad.isfinite().all()
    assert features.grad.abs().max() > 0
    head.after_step()
    head.eval()
    with torch.no_grad():
        logits = head(features)
        mean = head.global_mean
        expected = head.temperature * (head.embed(features) - mean) @ head.classifier().T
    torch.testing.assert_close(logits, expected)
    assert not head.classifier().requires_grad


@pytest.mark.parametrize("name", ["fixed_etf", "nearest_etf"])
def test_classifier_is_a_simplex_etf_and_centres(name):
    head = build(name)
    features, labels = batch()
    head(features, labels)
    W = head.classifier()
    cosines = torch.full((4, 4), -1 / 3).fill_diagonal_(1)
    torch.testing.assert_close(W @ W.T, cosines)
    torch.testing.assert_close(head.global_mean, head.embed(features).mean(0))


def test_standard_rows_are_unit_after_each_step():
    head = build("standard")
    with torch.no_grad():
        head.weight.mul_(3)
    head.after_step()
    torch.testing.assert_close(head.classifier().norm(dim=1), torch.ones(4))
    free = build("standard_unnormalised")
    before = free.classifier().clone() * 3
    with torch.no_grad():
        free.weight.mul_(3)
    free.after_step()
    torch.testing.assert_close(free.classifier(), before)
    assert head.normalise != free.normalise


def test_standard_may_centre():
    head = build("standard", centre=True)
    features, labels = batch()
    logits = head(features, labels)
    torch.testing.assert_close(logits.mean(0), torch.zeros(4))
    head.eval()
    torch.testing.assert_close(head(features), logits)


def test_fixed_directions():
    torch.testing.assert_close(build("fixed_etf").classifier(), simplex_etf(4, 8).T.contiguous())
    assert not torch.equal(
        build("fixed_etf", direction="haar").classifier(), build("fixed_etf").classifier()
    )


def test_nearest_starts_without_the_proximal_term_and_then_follows_its_last_solution():
    head = build("nearest_etf")
    features, labels = batch()
    H = head.tracker.__class__(8, 4)(head.embed(features), labels).detach()
    head(features, labels)
    first = nearest_etf(H)
    torch.testing.assert_close(head.prox, nearest_etf(H, first))
    previous = head.prox.clone()
    more, labels = batch()
    head(more, labels)
    H = head.class_means / head.class_means.norm()
    torch.testing.assert_close(head.prox, nearest_etf(H, previous))
    assert head.certificate.solved.all()


def test_the_ddn_gradient_is_that_of_the_whole_head():
    head = NearestETFClassifier(6, 3).double()
    warm, labels = batch(6, 3)
    head(warm.double(), labels)
    state = head.state_dict()
    V = torch.randn(9, 3, dtype=torch.float64)

    def loss(features):
        head.load_state_dict({k: v.clone() if torch.is_tensor(v) else v for k, v in state.items()})
        return (head(features, labels) * V).sum()

    state = {k: v.clone() if torch.is_tensor(v) else v for k, v in head.state_dict().items()}
    features = torch.randn(9, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, features)
    with_ddn = torch.autograd.grad(loss(features), features)[0]
    head.differentiate = False
    without = torch.autograd.grad(loss(features), features)[0]
    assert (with_ddn - without).norm() > 1e-3 * with_ddn.norm()  # not of rounding


def test_state_survives_saving(tmp_path):
    head = build("nearest_etf")
    features, labels = batch()
    head(features, labels)
    torch.save(head.state_dict(), tmp_path / "head.pt")
    again = build("nearest_etf")
    again.load_state_dict(torch.load(tmp_path / "head.pt", weights_only=True))
    torch.testing.assert_close(again(features, labels), head(features, labels))


def test_features_of_dimension_one_less_than_classes_use_the_reduced_form():
    head = build("nearest_etf", d=3, C=4)
    features, labels = batch(3, 4)
    for _ in range(2):
        nn.functional.cross_entropy(head(features, labels), labels).backward()
    W = head.classifier()
    cosines = torch.full((4, 4), -1 / 3).fill_diagonal_(1)
    torch.testing.assert_close(W @ W.T, cosines)


def test_classes_missing_from_the_first_batches():
    head = build("nearest_etf", d=8, C=6)
    for step in range(3):
        features = torch.randn(4, 8, requires_grad=True)
        labels = torch.tensor([2 * step, 2 * step + 1]).repeat(2)
        nn.functional.cross_entropy(head(features, labels), labels).backward()
        assert features.grad.isfinite().all()


def test_bfloat16_features_under_autocast():
    head = build("nearest_etf")
    features, labels = batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(features.bfloat16(), labels)
    assert logits.dtype == torch.float32
    logits.sum().backward()
    assert features.grad.isfinite().all()


def test_what_heads_refuse():
    with pytest.raises(InputError, match="labels"):
        build("nearest_etf")(torch.randn(2, 8))
    with pytest.raises(InputError, match=r"\b9\b.*\b8\b"):
        build("nearest_etf", d=8, C=10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"means": {"policy": "constant"}}, "alpha"),
        ({"means": {"policy": "paper", "alpha": 0.1}}, "policy"),
        ({"solver": "trust_region"}, "'trust_regions'"),
        ({"backward": "closed"}, "'closed'"),
    ],
)
def test_settings_of_the_nearest_head_are_checked(settings, message):
    with pytest.raises(pydantic.ValidationError, match=message):
        registry.get("heads", "nearest_etf")(**settings)


def test_settings_reach_the_head():
    head = build(
        "nearest_etf",
        solver="trust_regions",
        differentiate=False,
        backward="dense",
        means={"policy": "constant", "alpha": 0.1},
    )
    assert head.tracker.settings.alpha == 0.1
    assert head.layer.form.name == "dense"
    assert isinstance(head.layer, ddnkit.DeclarativeLayer)
    features, labels = batch()
    head(features, labels)
    assert head.certificate.solver == "trust_regions"


CENTRING = [("standard", {"centre": True}), ("fixed_etf", {}), ("nearest_etf", {})]


@pytest.mark.parametrize("which", ["running", "last_batch", "test_batch"])
@pytest.mark.parametrize(("name", "settings"), CENTRING)
def test_the_mean_in_evaluation(name, settings, which):
    head = build(name, evaluation_mean=which, **settings)
    seen = []
    for _ in range(3):
        features, labels = batch()
        head(features, labels)
        seen.append(head.embed(features).mean(0))
    head.eval()
    features, _ = batch()
    embedded = head.embed(features)
    mean = {
        "running": seen[0] / 6 + seen[1] / 3 + seen[2] / 2,
        "last_batch": seen[2],
        "test_batch": embedded.mean(0),
    }[which]
    torch.testing.assert_close(head(features), 5 * (embedded - mean) @ head.classifier().T)
    if which != "test_batch":
        torch.testing.assert_close(head.global_mean, mean)


def test_a_random_start_shows_before_the_first_step_and_where_that_leaves_a_choice():
    torch.manual_seed(3)
    canonical, haar = build("nearest_etf"), build("nearest_etf", initial="haar")
    start = haar.prox.clone()
    torch.testing.assert_close(start.T @ start, torch.eye(4))
    torch.testing.assert_close(haar.classifier(), etf_of_frame(start).T)
    assert (haar.classifier() - canonical.classifier()).norm() > 0.5
    features, labels = batch()
    for head in (canonical, haar):
        head(features, labels)
    # With all classes seen the ETF is unique; the null direction 1 of U is not.
    torch.testing.assert_close(haar.classifier(), canonical.classifier())
    null = haar.prox.sum(1) - canonical.prox.sum(1)
    assert null.norm() > 0.1
    # Half of the classes: the other half stays near to where it was.
    partly = build("nearest_etf", initial="haar")
    start = partly.classifier().clone()
    partly(features[labels < 2], labels[labels < 2])
    assert (partly.classifier() - start).norm() < (partly.classifier() - canonical.weight).norm()


def test_a_random_start_with_features_of_dimension_one_less_than_classes():
    head = build("nearest_etf", d=3, C=4, initial="haar")
    features, labels = batch(3, 4)
    nn.functional.cross_entropy(head(features, labels), labels).backward()
    assert features.grad.isfinite().all()


def test_settings_of_the_means_reach_the_head():
    head = build("nearest_etf", means={"normalise": "before", "absent": "zero"})
    means = head.tracker.settings
    assert (means.normalise, means.absent) == ("before", "zero")


def test_wrong_choices_are_refused():
    with pytest.raises(InputError, match=r"evaluation_mean.*'none'"):
        NearestETFClassifier(8, 4, evaluation_mean="none")
    with pytest.raises(InputError, match=r"'canonical' or 'haar'.*'random'"):
        NearestETFClassifier(8, 4, initial="random")


def test_a_head_is_made_of_its_settings_or_by_their_fields():
    settings = NearestETFHead(delta=0.1, means={"alpha": 0.3})
    whole = NearestETFClassifier(8, 4, settings)
    assert whole.settings is settings
    by_fields = NearestETFClassifier(8, 4, delta=0.1, means={"alpha": 0.3})
    assert by_fields.settings == settings
    one_other = NearestETFClassifier(8, 4, settings, delta=0.2, solver=Procrustes("factors"))
    assert one_other.settings == settings.model_copy(update={"delta": 0.2})
    features, labels = batch()
    torch.testing.assert_close(by_fields(features, labels), whole(features, labels))


@pytest.mark.parametrize(
    ("old", "means"),
    [
        ({"alpha": 0.3}, {"policy": "constant", "alpha": 0.3}),
        (
            {"normalise_means": "before", "absent": "zero"},
            {"normalise": "before", "absent": "zero"},
        ),
        ({"weight": "samples"}, {"weight": "samples"}),
    ],
)
def test_old_keywords_of_the_means_warn_and_are_fields_of_means(old, means):
    with pytest.warns(DeprecationWarning, match="means="):
        head = NearestETFClassifier(8, 4, **old)
    assert head.tracker.settings == MeansSettings(**means)


def test_keywords_that_are_no_field_are_told_with_the_nearest():
    with pytest.raises(InputError, match="'delta'"):
        NearestETFClassifier(8, 4, detla=0.1)
    with pytest.raises(InputError, match=r"means\.alhpa.*'alpha'"):
        NearestETFClassifier(8, 4, means={"alhpa": 0.1})
    with pytest.raises(InputError, match="NearestETFHead"):
        NearestETFClassifier(8, 4, FixedETFHead())


def test_a_head_of_a_user_s_own_gives_the_base_its_keywords():
    class Own(ClassifierHead):
        def __init__(self, feature_dim, classes):
            super().__init__(feature_dim, classes, temperature=2.0, normalise=False)

        def classifier(self):
            return torch.ones(self.classes, self.feature_dim)

        def forward(self, features, labels=None):
            return self._logits(self.embed(features), self.classifier(), None)

    assert Own(3, 2)(torch.ones(1, 3)).tolist() == [[6.0, 6.0]]


def test_fixed_may_leave_the_mean_in():
    head = registry.get("heads", "fixed_etf")(centre=False).build(feature_dim=6, classes=3)
    features = torch.randn(9, 6) + 1
    expected = 5 * nn.functional.normalize(features, dim=1) @ head.classifier().T
    torch.testing.assert_close(head(features), expected)
    torch.testing.assert_close(head.eval()(features), expected)
    assert not head.global_mean.any()


def test_nearest_may_leave_the_mean_in():
    head = NearestETFClassifier(6, 3, centre="none")
    features, labels = torch.randn(9, 6) + 1, torch.arange(9) % 3
    logits = head(features, labels)
    expected = 5 * nn.functional.normalize(features, dim=1) @ head.classifier().T
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(head.eval()(features), expected)


def test_the_mean_of_the_classes_counts_each_class_once():
    head = NearestETFClassifier(6, 3, centre="classes")
    features = nn.functional.normalize(torch.randn(10, 6) + 1, dim=1)
    labels = torch.tensor([0] * 6 + [1] * 3 + [2])
    logits = head(features, labels)
    means = torch.stack([features[labels == c].mean(0) for c in range(3)])
    expected = 5 * (features - means.mean(0)) @ head.classifier().T
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(head.global_mean, means.mean(0))
    # Class 2 is not in the next batch: its mean of before stands in.
    later = nn.functional.normalize(torch.randn(4, 6) + 1, dim=1)
    there = torch.tensor([0, 1, 0, 1])
    logits = head(later, there)
    now = torch.stack([later[there == 0].mean(0), later[there == 1].mean(0), means[2]])
    expected = 5 * (later - now.mean(0)) @ head.classifier().T
    torch.testing.assert_close(logits, expected)


def test_the_mean_of_the_classes_is_the_samples_own_where_classes_are_equally_large():
    features, labels = torch.randn(9, 6), torch.arange(9) % 3
    logits = [
        NearestETFClassifier(6, 3, centre=c)(features, labels) for c in ("samples", "classes")
    ]
    torch.testing.assert_close(*logits)


def test_mixed_labels_train_the_nearest_head():
    head = NearestETFClassifier(6, 3)
    features = torch.randn(9, 6, requires_grad=True)
    shares = torch.eye(3)[torch.arange(9) % 3]
    loss = nn.functional.cross_entropy(
        head(features, 0.4 * shares + 0.6 * shares.roll(1, 1)), shares
    )
    loss.backward()
    assert features.grad.isfinite().all()
    assert features.grad.norm() > 0


@pytest.mark.parametrize("name", ["fixed_etf", "nearest_etf"])
@pytest.mark.parametrize("batch_norm", ["plain", "affine"])
def test_features_may_be_batch_normed_first(name, batch_norm):
    settings = registry.get("heads", name)
    head = settings(batch_norm=batch_norm).build(feature_dim=6, classes=3)
    plain = settings().build(feature_dim=6, classes=3)
    features, labels = 3 * torch.randn(12, 6) + 1, torch.arange(12) % 3
    normed = nn.functional.batch_norm(features, None, None, training=True)
    torch.testing.assert_close(head(features, labels), plain(normed, labels))
    assert len(list(head.parameters())) == (2 if batch_norm == "affine" else 0)
    head.eval()
    scale, shift = head.feature_map()
    expected = nn.functional.normalize(features * scale + shift, dim=1)
    torch.testing.assert_close(head.embed(features), expected)
