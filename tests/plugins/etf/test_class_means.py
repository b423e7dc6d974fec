"""ClassMeans: the averaging of the paper, absent classes, and what is differentiated."""

import pytest
import torch
from ddnkit_etf import ClassMeans
from ddnkit_etf.reduction import class_sums
from ddnkit_etf.settings import MeansSettings

from ddnkit import InputError


def batch(C=3, d=4, each=2):
    labels = torch.arange(C).repeat_interleave(each)
    return torch.randn(len(labels), d), labels


def centred_means(features, labels, C):
    means = torch.stack([features[labels == c].mean(0) for c in range(C)], dim=1)
    return means - features.mean(0).unsqueeze(-1)


def test_paper_policy_is_the_published_average():
    tracker = ClassMeans(4, 3)
    average = torch.zeros(4, 3)
    for t in range(5):
        features, labels = batch()
        alpha = max(2 / (t + 2), 1e-4)
        average = alpha * centred_means(features, labels, 3) + (1 - alpha) * average
        torch.testing.assert_close(tracker(features, labels), average / average.norm())
    torch.testing.assert_close(tracker.means, average)


def test_constant_policy():
    tracker = ClassMeans(4, 3, alpha=0.3)
    first, labels = batch()
    second, _ = batch()
    tracker(first, labels)
    expected = 0.7 * centred_means(first, labels, 3) + 0.3 * centred_means(second, labels, 3)
    torch.testing.assert_close(tracker(second, labels), expected / expected.norm())


def test_alpha_does_not_fall_below_the_threshold():
    tracker = ClassMeans(4, 3)
    tracker.counts.fill_(1e9)
    features, labels = batch()
    tracker(features, labels)
    torch.testing.assert_close(tracker.means, 1e-4 * centred_means(features, labels, 3))


def test_absent_classes_contribute_zero_until_seen_and_keep_their_mean_after():
    tracker = ClassMeans(4, 3)
    features, labels = batch(C=2)
    H = tracker(features, labels)
    assert (H[:, 2] == 0).all()
    late = torch.randn(4, 4)
    tracker(late, torch.tensor([2, 2, 0, 0]))
    torch.testing.assert_close(tracker.means[:, 2], late[:2].mean(0) - late.mean(0))
    kept = tracker.means[:, 2].clone()
    tracker(features, labels)
    torch.testing.assert_close(tracker.means[:, 2], kept)


def test_gradient_flows_through_this_batch_alone():
    tracker = ClassMeans(4, 3).double()
    tracker(torch.randn(6, 4).double(), torch.arange(3).repeat_interleave(2))
    state = {key: value.clone() for key, value in tracker.state_dict().items()}
    labels = torch.tensor([0, 0, 1, 1, 2, 2])

    def fresh(features):
        tracker.load_state_dict(state)
        return tracker(features, labels)

    assert torch.autograd.gradcheck(fresh, torch.randn(6, 4).double().requires_grad_())
    assert not tracker.means.requires_grad


def test_wrong_alpha():
    with pytest.raises(InputError, match="alpha"):
        ClassMeans(4, 3, alpha=0)


def test_alpha_in_place_of_the_settings_own_is_as_where_alpha_alone_is_given():
    found = ClassMeans(4, 3, MeansSettings(absent="zero"), alpha=0.3).settings
    assert found == MeansSettings(policy="constant", alpha=0.3, absent="zero")
    with pytest.raises(InputError, match="alpha"):
        ClassMeans(4, 3, MeansSettings(policy="paper"), alpha=0.3)


def test_alpha_by_its_place_warns():
    with pytest.warns(DeprecationWarning, match="alpha="):
        assert ClassMeans(4, 3, 0.3).settings == ClassMeans(4, 3, alpha=0.3).settings


def test_normalising_before_averaging_is_eq_9_as_printed():
    tracker = ClassMeans(4, 3, normalise="before")
    average = torch.zeros(4, 3)
    for t in range(4):
        features, labels = batch()
        newest = centred_means(features, labels, 3)
        alpha = 2 / (t + 2)
        average = alpha * newest / newest.norm() + (1 - alpha) * average
        torch.testing.assert_close(tracker(features, labels), average)
    assert average.norm() < 1


@pytest.mark.parametrize("absent", ["zero", "global_mean"])
def test_what_stands_for_an_absent_class_is_averaged_in_by_one_clock(absent):
    tracker = ClassMeans(4, 3, absent=absent)
    average = torch.zeros(4, 3)
    for t in range(4):
        features, labels = batch(C=3 if t == 2 else 2)
        newest = centred_means(features, labels, 3)
        if t != 2:
            newest[:, 2] = 0 if absent == "zero" else features.mean(0)
        alpha = 2 / (t + 2)
        average = alpha * newest + (1 - alpha) * average
        torch.testing.assert_close(tracker(features, labels), average / average.norm())
    torch.testing.assert_close(tracker.counts, torch.full((3,), 4.0))


@pytest.mark.parametrize("absent", ["keep", "zero", "global_mean"])
def test_with_every_class_in_every_batch_it_does_not_matter_what_stands_for_an_absent_one(absent):
    trackers = ClassMeans(4, 3), ClassMeans(4, 3, absent=absent)
    for _ in range(3):
        features, labels = batch()
        ours, other = (tracker(features, labels) for tracker in trackers)
        torch.testing.assert_close(ours, other)


def test_half_precision_is_summed_in_single():
    features, labels = batch(each=50)
    features = (features + 30).bfloat16()
    single = ClassMeans(4, 3)(features.float(), labels)
    torch.testing.assert_close(ClassMeans(4, 3)(features, labels), single)


@pytest.mark.parametrize("wrong", [{"normalise": "never"}, {"absent": "mean"}, {"weight": "rare"}])
def test_wrong_choices(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(InputError, match=f"{name}.*'{value}'"):
        ClassMeans(4, 3, **wrong)


def test_shares_count_a_sample_for_each_of_its_classes():
    features, labels = batch()
    shares = torch.eye(3)[labels]
    torch.testing.assert_close(
        ClassMeans(4, 3)(features, shares), ClassMeans(4, 3)(features, labels)
    )
    mixed = 0.3 * shares + 0.7 * shares.roll(1, 0)
    sums = class_sums(features, mixed, 3)
    torch.testing.assert_close(sums.sums, features.T @ mixed)
    torch.testing.assert_close(sums.class_means(), features.T @ mixed / mixed.sum(0))
    torch.testing.assert_close(sums.mean(), features.mean(0))


def test_weighted_by_samples_a_column_counts_for_its_class_s_share():
    tracker = ClassMeans(4, 3, weight="samples")
    plain = ClassMeans(4, 3)
    seen = torch.zeros(3)
    for _ in range(3):
        features, labels = batch()
        labels = labels.clone()
        labels[labels == 2] = torch.tensor([2, *[0] * (int((labels == 2).sum()) - 1)])
        seen += torch.bincount(labels, minlength=3)
        plain(features, labels)
        found = tracker(features, labels)
        weighted = plain.means * seen / seen.sum()
        torch.testing.assert_close(found, weighted / weighted.norm())


def test_weights_of_equal_classes_change_nothing():
    trackers = ClassMeans(4, 3, weight="samples"), ClassMeans(4, 3)
    for _ in range(2):
        one, other = (
            tracker(*batch_of) for tracker, batch_of in zip(trackers, [batch()] * 2, strict=True)
        )
        torch.testing.assert_close(one, other)
