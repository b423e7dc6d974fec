"""CIFAR, STL-10 and SVHN: made files in their formats, missing, damaged and fetched ones."""

import fcntl
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets as published
from ddnkit_vision import FlipCropRotate
from ddnkit_vision.readers import READERS, TorchvisionReader
from ddnkit_vision.settings import (
    CIFAR10,
    CIFAR100,
    CUB200,
    MNIST,
    STL10,
    SVHN,
    FashionMNIST,
    ImageFolder,
    ImageNetLT,
    SmallImages,
    StreamedImageSettings,
)
from image_stand_ins import pack_cifar10, served, write_cifar10, write_stl10, write_svhn

from ddnkit import DdnkitError, InputError


def test_cifar10_is_read_as_bytes_and_standardised_when_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.tensor(write_cifar10(tmp_path, monkeypatch))
    settings = CIFAR10(root=tmp_path, standardise="pixel", subset=15)
    settings.locate(download=False)
    data = settings.build(seed=0, smoke=False)
    assert torch.equal(data.inputs, images[:15]) and data.inputs.dtype == torch.uint8
    assert data.test_inputs is not None and torch.equal(data.test_inputs, images[20:])
    assert data.labels.tolist() == [i % 10 for i in range(15)]
    mean, std = images[:15].float().mean(0), images[:15].float().std(0, correction=0)
    expected = (images[20:].float() - mean) / std
    assert torch.allclose(data.prepare(images[20:]), expected, atol=1e-4)
    assert data.augmentation == FlipCropRotate(True, 4, 15.0, "bilinear")
    plain = CIFAR10(root=tmp_path, flip=False, crop=0, rotation=0).build(seed=0, smoke=False)
    assert plain.augmentation is None and plain.samples == 20


def test_stl10_is_read_without_the_unlabelled_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.tensor(write_stl10(tmp_path, monkeypatch))
    data = STL10(root=tmp_path).build(seed=0, smoke=False)
    assert torch.equal(data.inputs, images[:3])
    assert data.test_inputs is not None and torch.equal(data.test_inputs, images[3:])
    assert data.labels.tolist() == [0, 1, 2]


def test_svhns_zero_has_the_label_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_svhn(tmp_path / "svhn", monkeypatch)
    data = SVHN(root=tmp_path / "svhn").build(seed=0, smoke=False)
    assert torch.equal(data.inputs, torch.tensor(np.ascontiguousarray(images)))
    assert data.labels.tolist() == [0, 1, 2, 3]
    assert data.augmentation is None


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10", "svhn"])
def test_the_files_looked_for_are_those_that_torchvision_verifies(name: str) -> None:
    reader = READERS[name]
    assert isinstance(reader, TorchvisionReader)
    assert sorted(reader.checksums()) == sorted(reader.source.files)
    assert all(len(md5) == 32 for md5 in reader.checksums().values())
    assert reader.source.host in str(vars(reader.kind()) | vars(reader.kind().__base__))


def test_absent_files_are_told_from_damaged_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar10(tmp_path, monkeypatch)
    settings = CIFAR10(root=tmp_path)
    broken = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    broken.write_bytes(broken.read_bytes()[:-5])
    settings.locate(download=False)
    with pytest.raises(InputError) as caught:
        settings.build(seed=0, smoke=False)
    text = str(caught.value)
    assert "checksum" in text and "--download" in text
    assert "data_batch_3" in text and "data_batch_2" not in text
    broken.unlink()
    for check in (settings.locate, lambda: settings.build(seed=0, smoke=False)):
        with pytest.raises(InputError) as caught:
            check()
        assert f"  {tmp_path}: " in str(caught.value)
        assert " cifar-10-batches-py/data_batch_3\n" in str(caught.value)
        assert "--download" in str(caught.value) and "170 MB" in str(caught.value)
    settings.locate(download=True)


def test_a_pickle_that_is_not_the_published_one_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Trace:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "trace"),)

    write_cifar10(tmp_path, monkeypatch)
    for file in ("data_batch_1", "test_batch", "batches.meta"):
        path = tmp_path / "cifar-10-batches-py" / file
        before = path.read_bytes()
        path.write_bytes(pickle.dumps(Trace()))
        with pytest.raises(InputError, match=file):
            CIFAR10(root=tmp_path).build(seed=0, smoke=False)
        path.write_bytes(before)
    assert not (tmp_path / "trace").exists()
    assert CIFAR10(root=tmp_path).build(seed=0, smoke=False).samples == 20


def test_an_archive_is_fetched_verified_and_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin, folder = tmp_path / "origin", tmp_path / "data" / "cifar10"
    images = write_cifar10(origin, monkeypatch)
    monkeypatch.setenv("DDNKIT_DATA", str(tmp_path / "data"))
    with served(origin) as url:
        pack_cifar10(origin, url, monkeypatch)
        data = CIFAR10().build(seed=0, smoke=False, download=True)
        assert torch.equal(data.inputs, torch.tensor(images[:20]))
        (folder / "cifar-10-batches-py" / "test_batch").write_bytes(b"damaged")
        CIFAR10().build(seed=0, smoke=False, download=True)
    assert CIFAR10().build(seed=0, smoke=False).test_samples == 4


def test_an_archive_with_another_checksum_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = tmp_path / "origin"
    write_cifar10(origin, monkeypatch)
    with served(origin) as url:
        pack_cifar10(origin, url, monkeypatch)
        monkeypatch.setattr(published.CIFAR10, "tgz_md5", "0" * 32)
        with pytest.raises(DdnkitError, match=f"CIFAR-10: .*{tmp_path}/new ") as caught:
            CIFAR10(root=tmp_path / "new").build(seed=0, smoke=False, download=True)
    assert not isinstance(caught.value, InputError)
    assert not (tmp_path / "new" / "cifar-10-batches-py").exists()


HOLD = """
import sys
from pathlib import Path
from ddnkit_vision.sources import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", "torch" in sys.modules, flush=True)
    sys.stdin.readline()
"""


def test_a_second_process_waits_for_the_download_of_the_first(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == "held False\n"
        with (tmp_path / ".download.lock").open("w") as lock:
            with pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            other.communicate("leave\n")
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_settings_and_missing_files_need_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from ddnkit_vision.settings import CIFAR10, CUB200, ImageNetLT, ResNet18\n"
        "data = [kind(root=sys.argv[1]) for kind in (CIFAR10, CUB200, ImageNetLT)]\n"
        "for settings in (*data, ResNet18(weights='no', affine=True)):\n"
        "    try: settings.locate()\n"
        "    except Exception as error: print(type(error).__name__)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["InputError"] * 4 + ["False"]


def test_a_file_that_came_while_waiting_is_not_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = tmp_path / "origin"
    write_cifar10(origin, monkeypatch)
    source = CIFAR10.source
    fetched: list[Path] = []
    assert source.obtain(origin, download=True, fetch=fetched.append) == origin
    assert not fetched
    with pytest.raises(DdnkitError, match="cifar-10-batches-py/data_batch_1"):
        source.obtain(tmp_path / "new", download=True, fetch=fetched.append)
    assert fetched == [tmp_path / "new"]


@pytest.mark.parametrize("settings", [CIFAR10, CIFAR100, STL10, SVHN, MNIST, FashionMNIST])
def test_smoke_data_have_the_shapes_and_the_pipeline_of_the_real_ones(
    settings: type[SmallImages], tmp_path: Path
) -> None:
    data = settings(root=tmp_path).build(seed=0, smoke=True)
    assert data.sample_shape == settings.sample_shape
    assert data.inputs.dtype == torch.uint8 and data.samples <= 512
    assert data.test_labels is not None
    assert len(data.labels.unique()) == len(data.test_labels.unique()) == settings.classes
    assert (data.augmentation is None) == (settings in (SVHN, MNIST, FashionMNIST))
    assert float(data.prepare(data.inputs).std()) == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize(
    ("settings", "samples", "classes"),
    [
        (ImageFolder(image_size=32), 32, 1000),
        (ImageNetLT(image_size=32), 32, 1000),
        (CUB200(), 8, 200),
    ],
)
def test_smoke_data_of_image_files_are_few_and_of_many_classes(
    settings: StreamedImageSettings, samples: int, classes: int
) -> None:
    data = settings.build(seed=0, smoke=True)
    assert (data.samples, data.test_samples, data.classes) == (samples, samples // 2, classes)
    assert len(data.labels.unique()) == samples and int(data.labels.max()) > 0.85 * classes
    assert data.sample_shape == (3, settings.image_size, settings.image_size)
