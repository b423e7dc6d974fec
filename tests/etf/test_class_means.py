"""ClassMeans: the averaging of the paper, absent classes, and what is differentiated."""

import pytest
import torch
from ddnkit_etf import ClassMeans

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
