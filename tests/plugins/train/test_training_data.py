"""Data sets: real digits, pairs of them, free features, and their checks."""

from pathlib import Path

import pytest
import torch
from bounds import rounding
from ddnkit_train import Dataset, Standardise, synthetic, synthetic_images
from ddnkit_train.settings import (
    MLP,
    DataSettings,
    DigitPairs,
    Digits,
    FreeFeaturesData,
)
from training_stand_ins import pipeline

from ddnkit import InputError, Job


def test_digits_are_split_by_class_and_standardised() -> None:
    data = Digits().build(seed=0, smoke=False)
    assert data.sample_shape == (1, 8, 8)
    assert data.samples + len(data.test_labels) == 1797
    held_out = torch.bincount(data.test_labels) / (
        torch.bincount(data.labels) + torch.bincount(data.test_labels)
    )
    assert ((held_out - 0.2).abs() < 0.01).all()
    prepared = data.prepare(data.inputs)
    assert float(prepared.mean()) == pytest.approx(0, abs=rounding(torch.float32, 80))
    assert float(prepared.std()) == pytest.approx(1, abs=1e-3)


def test_digits_are_the_same_for_every_seed_and_differ_with_the_data_seed() -> None:
    torch.manual_seed(1)
    first = Digits().build(seed=0, smoke=False)
    torch.manual_seed(2)
    second = Digits().build(seed=5, smoke=False)
    assert torch.equal(first.inputs, second.inputs)
    other = Digits(data_seed=1).build(seed=0, smoke=False)
    assert not torch.equal(first.inputs, other.inputs)


class Drawn(DataSettings):
    """Samples that are drawn from torch's own generator."""

    def build(self, *, seed: int, smoke: bool, download: bool = False) -> Dataset:
        return Dataset(torch.rand(8, 2), torch.arange(8) % 2, 2)


def test_data_drawn_in_a_build_are_the_job_s_whenever_they_are_built(tmp_path: Path) -> None:
    settings = pipeline({"epochs": 1}, data=Drawn(), backbone=MLP())

    def load(seed: int) -> torch.Tensor:
        def record(row: dict[str, float]) -> None: ...

        job = Job(
            variant="v", seed=seed, folder=tmp_path, device="cpu", smoke=False,
            record=record, progress=lambda *_: None,
        )  # fmt: skip
        data: Dataset = settings.load_data(job)
        return data.inputs

    torch.manual_seed(1)
    first, again, other = load(3), load(3), load(4)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_digit_pairs_are_balanced_and_their_test_digits_unseen() -> None:
    settings = DigitPairs(standardise="none", train_per_class=20, test_per_class=5)
    data = settings.build(seed=0, smoke=False)
    assert data.sample_shape == (1, 8, 16)
    assert torch.bincount(data.labels).tolist() == [20] * 100
    assert torch.bincount(data.test_labels).tolist() == [5] * 100

    def halves(inputs: torch.Tensor) -> torch.Tensor:
        return torch.cat([inputs[..., :8], inputs[..., 8:]]).flatten(1)

    seen = {tuple(half.tolist()) for half in halves(data.inputs)}
    unseen = {tuple(half.tolist()) for half in halves(data.test_inputs)}
    assert not seen & unseen

    # The left half shows the tens, the right half the units: the nearest single digit says so.
    single = Digits(standardise="none").build(seed=0, smoke=False)
    images = torch.cat([single.inputs, single.test_inputs]).flatten(1)
    classes = torch.cat([single.labels, single.test_labels])
    nearest = classes[torch.cdist(halves(data.test_inputs), images).argmin(dim=1)]
    assert torch.equal(nearest, torch.cat([data.test_labels // 10, data.test_labels % 10]))


def test_default_digit_pairs_are_those_of_the_issue() -> None:
    data = DigitPairs(batch_size=200).build(seed=3, smoke=False)
    assert data.samples == 20000
    assert len(data.test_labels) == 2000
    assert float(data.prepare(data.inputs).std()) == pytest.approx(1, abs=1e-3)


def test_free_features_are_balanced_indices() -> None:
    data = FreeFeaturesData(classes=3, samples=10).build(seed=0, smoke=True)
    assert data.inputs.tolist() == list(range(10))
    assert torch.bincount(data.labels).tolist() == [4, 3, 3]
    assert data.sample_shape == ()
    assert data.test_inputs is None
    with pytest.raises(ValueError, match="11 classes"):
        FreeFeaturesData(classes=11, samples=10)


@pytest.mark.parametrize(
    ("settings", "shape", "classes"),
    [
        (Digits(), (1, 8, 8), 10),
        (DigitPairs(), (1, 8, 16), 100),
    ],
)
def test_smoke_data_have_the_shapes_and_need_no_files(
    settings: DataSettings, shape: tuple[int, ...], classes: int
) -> None:
    data = settings.build(seed=0, smoke=True)
    assert data.sample_shape == shape
    assert data.classes == classes
    assert data.samples <= 1000
    assert len(data.labels.unique()) == len(data.test_labels.unique()) == classes


def test_standardise_uses_the_training_samples_alone() -> None:
    train, test = 3 + 2 * torch.randn(50, 2, 2, 2), torch.randn(10, 2, 2, 2)
    train[:, 0, 1, 1] = 7.0  # a pixel that never varies
    pixel = Standardise.fit(train, "pixel")
    shifted, other = pixel(train), pixel(test)
    assert torch.allclose(
        shifted.mean(dim=0), torch.zeros(2, 2, 2), atol=rounding(train, 50, size=3)
    )
    assert torch.allclose(shifted[:, 0, 0, 0].std(correction=0), torch.tensor(1.0))
    assert torch.equal(shifted[:, 0, 1, 1], torch.zeros(50))
    assert torch.allclose(other[:, 0, 1, 1], test[:, 0, 1, 1] - 7)
    # Added up fifty times 7.7 is not 385 in float64, and the mean is another number.
    train = train.double()
    train[:, 0, 1, 1] = 7.7
    other = Standardise.fit(train, "pixel")(test)
    assert torch.allclose(other[:, 0, 1, 1], test[:, 0, 1, 1] - 7.7)
    whole = Standardise.fit(train, "global")(train)
    assert float(whole.std(correction=0)) == pytest.approx(1)
    channel = Standardise.fit(train, "channel")(train)
    assert torch.allclose(channel.std((0, 2, 3), correction=0), torch.ones(2))
    assert torch.equal(Standardise.fit(train, "none")(test), test)
    stored = torch.tensor([[0, 51, 255]], dtype=torch.uint8)
    assert torch.allclose(Standardise.fit(stored, "none")(stored), torch.tensor([[0.0, 0.2, 1.0]]))


def test_synthetic_images_are_as_many_as_asked_for() -> None:
    data = synthetic_images((1, 4, 4), 3)
    assert data.samples == 512 and data.inputs.dtype == torch.uint8
    few = synthetic_images((1, 4, 4), 100, samples=10)
    assert few.labels.tolist() == list(range(0, 100, 10)) and few.classes == 100
    assert synthetic_images((1, 4, 4), 3, samples=7).labels.tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_data_without_files_lack_none() -> None:
    Digits().locate(download=False)


def test_a_dataset_that_does_not_fit_together_is_refused() -> None:
    inputs, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    assert Dataset(inputs, labels, 3).to("cpu").samples == 4
    with pytest.raises(InputError, match=r"\b0 to 2\b.*0…1"):
        Dataset(inputs, labels, 2)
    with pytest.raises(InputError, match=r"\(4, 3\).*\(3,\)"):
        Dataset(inputs, labels[:3], 3)
    with pytest.raises(InputError, match=r"int64.*torch\.float32"):
        Dataset(inputs, labels.float(), 3)
    with pytest.raises(InputError, match="test set"):
        Dataset(inputs, labels, 3, test_inputs=inputs)
    with pytest.raises(InputError, match="training set"):
        Dataset(inputs[:0], labels[:0], 3)
    with pytest.raises(InputError, match=r"test labels .*\b1 to 3\b.*0…2"):
        Dataset(inputs, labels, 3, inputs, labels + 1)


def test_a_subset_has_these_training_samples_alone() -> None:
    data = synthetic((3,), 4)
    index = torch.tensor([7, 2, 9])
    kept = data.subset(index)
    assert torch.equal(kept.inputs, data.inputs[index])
    assert torch.equal(kept.labels, data.labels[index])
    assert (kept.samples, kept.test_samples) == (3, data.test_samples)


def test_free_features_of_a_subset_are_numbered_anew() -> None:
    data = FreeFeaturesData(classes=4, samples=12).build(seed=0, smoke=False)
    kept = data.subset(torch.tensor([1, 5, 10]))
    assert kept.inputs.tolist() == [0, 1, 2]
    assert kept.labels.tolist() == [1, 1, 2]
