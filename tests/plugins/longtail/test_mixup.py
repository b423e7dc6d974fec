"""Mixed batches: pairs and λ from the seed, the same over processes, evaluation untouched."""

from __future__ import annotations

import ddnkit_longtail
import pytest
import torch
from ddnkit_longtail import MixedData, mix
from ddnkit_train import Dataset, Plan, Share
from ddnkit_train.settings import FreeFeaturesData

from ddnkit import InputError


def data(count: int = 40) -> Dataset:
    """Sample i is the vector (i, 1), its label i modulo 4."""
    order = torch.arange(count)
    inputs = torch.stack([order.float(), torch.ones(count)], dim=1)
    return Dataset(inputs, order % 4, 4, inputs.clone(), order % 4)


def plans(count: int = 5) -> list[Plan]:
    return [Plan(torch.arange(8) + 8 * n, seed=100 + n) for n in range(count)]


@pytest.mark.parametrize("lam", [0.0, 0.25, 1.0])
def test_inputs_and_labels_are_mixed_alike(lam: float) -> None:
    x, y = torch.randn(2, 3, 5).double(), torch.tensor([[0, 1, 2], [2, 1, 1]])
    inputs, shares = mix(x[0], y[0], x[1], y[1], lam, 3)
    torch.testing.assert_close(inputs, lam * x[0] + (1 - lam) * x[1])
    eye = torch.eye(3).double()
    torch.testing.assert_close(shares, lam * eye[y[0]] + (1 - lam) * eye[y[1]])


def test_each_sample_is_mixed_with_one_of_its_own_batch() -> None:
    plain = list(data().training(plans()))
    for (x, y), (inputs, shares) in zip(
        plain, MixedData(data(), 1.0).training(plans()), strict=True
    ):
        assert torch.allclose(inputs[:, 1], torch.ones(8))
        assert torch.allclose(shares.sum(dim=1), torch.ones(8))
        assert float(inputs.mean(dim=0)[0]) == pytest.approx(float(x.mean(dim=0)[0]))
        assert torch.allclose(shares.sum(dim=0), torch.bincount(y, minlength=4).float())
    lambdas = {
        round(float(s.amax(dim=1).min()), 4) for _, s in MixedData(data(), 1.0).training(plans())
    }
    assert len(lambdas) > 3  # one λ a batch, another in the next


def test_batches_follow_from_the_plan_s_seed() -> None:
    first, second = (list(MixedData(data(), 0.4).training(plans())) for _ in range(2))
    for (x, y), (x2, y2) in zip(first, second, strict=True):
        assert torch.equal(x, x2) and torch.equal(y, y2)
    later = list(MixedData(data(), 0.4).training(plans()[3:]))
    assert torch.equal(later[0][0], first[3][0])


def test_processes_mix_what_one_would() -> None:
    whole = list(MixedData(data(), 1.0).training(plans()))
    halves = [MixedData(data(), 1.0).training(plans(), Share(rank, 2)) for rank in range(2)]
    for (x, y), (x0, y0), (x1, y1) in zip(whole, *halves, strict=True):
        assert torch.equal(x, torch.cat([x0, x1]))
        assert torch.equal(y, torch.cat([y0, y1]))


def test_a_full_batch_is_mixed_too() -> None:
    ((inputs, shares),) = MixedData(data(), 1.0).training([Plan(None, 7)])
    assert inputs.shape == (40, 2) and shares.shape == (40, 4)
    assert not torch.equal(inputs, data().inputs)


def test_evaluation_and_everything_else_are_those_of_the_data() -> None:
    plain, of = data(), MixedData(data(), 1.0)
    for split in ("train", "test"):
        (x, y), (x2, y2) = (next(iter(d.evaluation(split, 100))) for d in (plain, of))
        assert torch.equal(x, x2) and torch.equal(y, y2)
    assert (of.samples, of.test_samples, of.classes, of.sample_shape) == (40, 40, 4, (2,))
    assert torch.equal(of.labels, plain.labels)
    kept = of.subset(torch.tensor([1, 5, 9])).to("cpu")
    assert isinstance(kept, MixedData)
    assert kept.labels.tolist() == [1, 1, 1]


def test_indices_cannot_be_mixed() -> None:
    indices = FreeFeaturesData(classes=4, samples=12).build(seed=0, smoke=False)
    with pytest.raises(InputError, match="indices"):
        MixedData(indices, 1.0)


def test_the_old_name_of_mix_warns() -> None:
    with pytest.warns(DeprecationWarning, match=r"ddnkit_longtail\.mix;"):
        assert ddnkit_longtail.mixed is mix
