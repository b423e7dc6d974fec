"""What each batch of an epoch holds."""

import pytest
import torch
from ddnkit_train import FullBatch, Shuffled, Stratified
from ddnkit_train.samplers import stratified_subset
from hypothesis import given, settings
from hypothesis import strategies as st

from ddnkit import InputError

quick = settings(max_examples=40, deadline=None)


def labels_of(counts: list[int], seed: int) -> torch.Tensor:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]


@given(
    counts=st.lists(st.integers(0, 12), min_size=1, max_size=9).filter(any),
    batch=st.integers(1, 30),
    seed=st.integers(0, 5),
    kind=st.sampled_from([Stratified, Shuffled]),
)
@quick
def test_an_epoch_holds_every_sample_once_in_batches_of_even_size(counts, batch, seed, kind):
    labels = labels_of(counts, seed)
    sampler = kind(labels, batch, seed)
    for _ in range(2):
        batches = list(sampler.epoch(0))
        assert len(batches) == sampler.steps_per_epoch == -(-len(labels) // batch)
        sizes = [len(b) for b in batches]
        assert max(sizes) <= batch
        assert max(sizes) - min(sizes) <= 1
        assert torch.equal(torch.cat(batches).sort().values, torch.arange(len(labels)))


@given(
    classes=st.integers(1, 12),
    each=st.integers(1, 10),
    batch=st.integers(1, 40),
    seed=st.integers(0, 5),
)
@quick
def test_balanced_classes_share_every_batch_evenly(classes, each, batch, seed):
    labels = labels_of([each] * classes, seed)
    sampler = Stratified(labels, batch, seed)
    for _ in range(2):
        batches = list(sampler.epoch(0))
        for b in batches:
            counts = torch.bincount(labels[b], minlength=classes)
            assert counts.max() - counts.min() <= 1
        # Fewer samples than classes: they take turns, none comes again before all have come.
        order = labels[torch.cat(batches)]
        for turn in order.split(classes):
            assert len(turn.unique()) == len(turn)


@given(
    counts=st.lists(st.integers(1, 40), min_size=2, max_size=8),
    batch=st.integers(2, 40),
    seed=st.integers(0, 5),
)
@quick
def test_unbalanced_classes_come_by_their_share(counts, batch, seed):
    labels = labels_of(counts, seed)
    share = torch.tensor(counts) / len(labels)
    for b in Stratified(labels, batch, seed).epoch(0):
        found = torch.bincount(labels[b], minlength=len(counts))
        assert ((found - len(b) * share).abs() < 2 + len(counts) * share).all()


@pytest.mark.parametrize("kind", [Stratified, Shuffled])
def test_order_follows_the_seed_and_changes_with_the_epoch(kind):
    labels = labels_of([10, 10, 10], 0)
    first, same, other = (kind(labels, 5, seed) for seed in (1, 1, 2))
    orders = [torch.cat(list(sampler.epoch(0))) for sampler in (first, same, other)]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    again = torch.cat(list(first.epoch(1)))
    assert not torch.equal(orders[0], again)
    assert torch.equal(again, torch.cat(list(same.epoch(1))))


def test_a_full_batch_is_everything_in_the_order_given():
    sampler = FullBatch(7)
    assert list(sampler.epoch(0)) == [None]
    assert sampler.steps_per_epoch == 1


@pytest.mark.parametrize("kind", [Stratified, Shuffled])
def test_an_empty_batch_is_refused(kind):
    with pytest.raises(InputError, match=r"\b0\b.*\b3 samples"):
        kind(torch.zeros(3, dtype=torch.int64), 0, 0)


def test_plans_from_any_step_are_those_of_the_whole_run():
    labels = labels_of([10, 10, 13], 0)
    sampler = Stratified(labels, 5, seed=3)
    whole = list(sampler.plans(0, 20))
    assert sampler.steps_per_epoch == 7
    for start in (0, 3, 7, 13, 20):
        rest = list(Stratified(labels, 5, seed=3).plans(start, 20))
        assert [plan.seed for plan in rest] == [plan.seed for plan in whole[start:]]
        assert all(map(torch.equal, (p.index for p in rest), (p.index for p in whole[start:])))
    assert len({plan.seed for plan in whole}) == 20


def test_a_subset_has_every_class_with_its_share():
    labels = labels_of([400, 100, 100], 0)
    index = stratified_subset(labels, 60)
    assert torch.bincount(labels[index]).tolist() == [40, 10, 10]
    assert torch.equal(index, index.unique())
    assert stratified_subset(labels, None) is None
