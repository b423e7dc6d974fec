"""Data sets: real digits, pairs of them, IDX files, free features, and their checks."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from ddnkit_train import Dataset, read_idx, standardise
from ddnkit_train.settings import (
    DataSettings,
    DigitPairs,
    Digits,
    FashionMNIST,
    FreeFeaturesData,
)

from ddnkit import InputError


def write_idx(path: Path, array: np.ndarray, magic: bytes | None = None) -> None:
    header = magic or bytes((0, 0, 8, array.ndim))
    content = header + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_fashion(folder: Path, suffix: str = "", train: int = 30, test: int = 10) -> Path:
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    for name, count in (("train", train), ("t10k", test)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write_idx(folder / f"{name}-images-idx3-ubyte{suffix}", images)
        write_idx(
            folder / f"{name}-labels-idx1-ubyte{suffix}", np.arange(count, dtype=np.uint8) % 10
        )
    return folder


def test_digits_are_split_by_class_and_standardised() -> None:
    data = Digits().build(seed=0, smoke=False)
    assert data.sample_shape == (1, 8, 8)
    assert data.samples + len(data.test_labels) == 1797
    held_out = torch.bincount(data.test_labels) / (
        torch.bincount(data.labels) + torch.bincount(data.test_labels)
    )
    assert ((held_out - 0.2).abs() < 0.01).all()
    assert float(data.inputs.mean()) == pytest.approx(0, abs=1e-5)
    assert float(data.inputs.std()) == pytest.approx(1, abs=1e-3)


def test_digits_are_the_same_for_every_seed_and_differ_with_the_data_seed() -> None:
    torch.manual_seed(1)
    first = Digits().build(seed=0, smoke=False)
    torch.manual_seed(2)
    second = Digits().build(seed=5, smoke=False)
    assert torch.equal(first.inputs, second.inputs)
    other = Digits(data_seed=1).build(seed=0, smoke=False)
    assert not torch.equal(first.inputs, other.inputs)


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
    assert float(data.inputs.std()) == pytest.approx(1, abs=1e-3)


def test_free_features_are_balanced_indices() -> None:
    data = FreeFeaturesData(classes=3, samples=10).build(seed=0, smoke=True)
    assert data.inputs.tolist() == list(range(10))
    assert torch.bincount(data.labels).tolist() == [4, 3, 3]
    assert data.sample_shape == ()
    assert data.test_inputs is None
    with pytest.raises(ValueError, match="fewer than 11 classes"):
        FreeFeaturesData(classes=11, samples=10)


@pytest.mark.parametrize(
    ("settings", "shape", "classes"),
    [
        (Digits(), (1, 8, 8), 10),
        (DigitPairs(), (1, 8, 16), 100),
        (FashionMNIST(root=Path("/nonexistent")), (1, 28, 28), 10),
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


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_fashion_mnist_is_read_plain_and_compressed(tmp_path: Path, suffix: str) -> None:
    folder = write_fashion(tmp_path, suffix)
    data = FashionMNIST(root=folder, subset=20).build(seed=0, smoke=False)
    assert data.inputs.shape == (20, 1, 28, 28)
    assert data.test_inputs.shape == (10, 1, 28, 28)
    assert data.labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert float(data.inputs.mean()) == pytest.approx(0, abs=1e-5)
    raw = FashionMNIST(root=folder, standardise="none").build(seed=0, smoke=False)
    pixels = read_idx(folder / f"train-images-idx3-ubyte{suffix}", 3)
    assert torch.equal((raw.inputs[:, 0] * 255).round().byte(), torch.tensor(pixels))


def test_missing_files_are_listed_with_every_folder_and_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_fashion(tmp_path / "some")
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError) as caught:
        FashionMNIST(root=folder).build(seed=0, smoke=False)
    text = str(caught.value)
    assert f"{folder}: missing t10k-labels-idx1-ubyte[.gz]\n" in text
    assert "train-images" not in text
    assert "-s data.root=DIR" in text
    assert "dataset-fashion-mnist" in text

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("ddnkit_train.fashion_mnist._DEBIAN", tmp_path / "debian")
    with pytest.raises(InputError) as caught:
        FashionMNIST().build(seed=0, smoke=False)
    text = str(caught.value)
    for looked in (tmp_path / "cache" / "ddnkit" / "fashion-mnist", tmp_path / "debian"):
        assert f"{looked}: no such folder" in text
    assert text.count("train-labels-idx1-ubyte[.gz]") == 2

    (tmp_path / "cache" / "ddnkit").mkdir(parents=True)
    write_fashion(tmp_path / "cache" / "ddnkit" / "fashion-mnist", ".gz")
    assert FashionMNIST().build(seed=0, smoke=False).samples == 30
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"\.cache/ddnkit/fashion-mnist: no such folder"):
        FashionMNIST().build(seed=0, smoke=False)


def test_a_damaged_idx_file_is_named_with_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    labels = np.arange(5, dtype=np.uint8)
    write_idx(path, labels, magic=b"\x00\x00\x0d\x01")
    with pytest.raises(InputError, match=r"labels: not an IDX file.*00 00 0d 01.*00 00 08 01"):
        read_idx(path, 1)
    write_idx(path, labels)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(InputError, match="promises 5 = 5 bytes, it holds 3"):
        read_idx(path, 1)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="starts with nothing"):
        read_idx(path, 1)
    with pytest.raises(InputError, match="cannot be read"):
        read_idx(tmp_path / "absent", 1)

    compressed = tmp_path / "labels.gz"
    write_idx(compressed, labels)
    compressed.write_bytes(compressed.read_bytes()[:-12])
    with pytest.raises(InputError, match=r"labels\.gz: cannot be read"):
        read_idx(compressed, 1)
    compressed.write_bytes(b"no gzip at all")
    with pytest.raises(InputError, match=r"labels\.gz: cannot be read"):
        read_idx(compressed, 1)


def test_files_that_are_not_fashion_mnist_are_refused(tmp_path: Path) -> None:
    folder = write_fashion(tmp_path)
    labels = folder / "train-labels-idx1-ubyte"
    write_idx(labels, np.full(30, 10, dtype=np.uint8))
    with pytest.raises(InputError, match="expected labels 0…9"):
        FashionMNIST(root=folder).build(seed=0, smoke=False)
    write_idx(labels, np.zeros(29, dtype=np.uint8))
    with pytest.raises(InputError, match=r"30 images.*29 labels"):
        FashionMNIST(root=folder).build(seed=0, smoke=False)
    write_idx(folder / "train-images-idx3-ubyte", np.zeros((30, 14, 28), dtype=np.uint8))
    with pytest.raises(InputError, match="14×28"):
        FashionMNIST(root=folder).build(seed=0, smoke=False)


def test_standardise_uses_the_training_samples_alone() -> None:
    torch.manual_seed(0)
    train, test = 3 + 2 * torch.randn(50, 1, 2, 2), torch.randn(10, 1, 2, 2)
    train[:, 0, 1, 1] = 7.0  # a pixel that never varies
    shifted, other = standardise(train, test, "pixel")
    assert torch.allclose(shifted.mean(dim=0), torch.zeros(1, 2, 2), atol=1e-5)
    assert torch.allclose(shifted[:, 0, 0, 0].std(correction=0), torch.tensor(1.0))
    assert torch.equal(shifted[:, 0, 1, 1], torch.zeros(50))
    assert torch.allclose(other[:, 0, 1, 1], test[:, 0, 1, 1] - 7)
    whole, _ = standardise(train, test, "global")
    assert float(whole.std(correction=0)) == pytest.approx(1)
    assert standardise(train, test, "none")[1] is test


def test_a_dataset_that_does_not_fit_together_is_refused() -> None:
    inputs, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    assert Dataset(inputs, labels, 3).to("cpu").samples == 4
    with pytest.raises(InputError, match="from 0 to 2"):
        Dataset(inputs, labels, 2)
    with pytest.raises(InputError, match="int64 labels"):
        Dataset(inputs, labels[:3], 3)
    with pytest.raises(InputError, match="int64 labels"):
        Dataset(inputs, labels.float(), 3)
    with pytest.raises(InputError, match="both"):
        Dataset(inputs, labels, 3, test_inputs=inputs)
    with pytest.raises(InputError, match="empty"):
        Dataset(inputs[:0], labels[:0], 3)
    with pytest.raises(InputError, match="test labels run"):
        Dataset(inputs, labels, 3, inputs, labels + 1)
