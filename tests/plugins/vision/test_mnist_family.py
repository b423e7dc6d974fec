"""MNIST and Fashion-MNIST: IDX files, where they are looked for, fetching them."""

import gzip
import os
import re
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets as published
from ddnkit_vision import read_idx
from ddnkit_vision.settings import MNIST, FashionMNIST
from image_stand_ins import md5, served, write_idx, write_mnist

from ddnkit import DdnkitError, InputError


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_are_read_plain_and_compressed(tmp_path: Path, suffix: str) -> None:
    folder = write_mnist(tmp_path, suffix)
    data = FashionMNIST(root=folder, subset=20).build(seed=0, smoke=False)
    assert data.inputs.shape == (20, 1, 28, 28) and data.inputs.dtype == torch.uint8
    assert data.test_inputs is not None and data.test_inputs.shape == (10, 1, 28, 28)
    assert data.labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert float(data.prepare(data.inputs).mean()) == pytest.approx(0, abs=1e-5)
    assert data.augmentation is None
    raw = MNIST(root=folder, standardise="none").build(seed=0, smoke=False)
    pixels = torch.tensor(read_idx(folder / f"train-images-idx3-ubyte{suffix}", 3))
    assert torch.equal(raw.inputs[:, 0], pixels)
    assert torch.equal(raw.prepare(raw.inputs)[:, 0], pixels / 255)


def test_missing_files_are_listed_with_every_folder_and_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_mnist(tmp_path / "some")
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError) as caught:
        FashionMNIST(root=folder).build(seed=0, smoke=False)
    text = str(caught.value)
    assert re.search(rf"{folder}: .*t10k-labels-idx1-ubyte\[\.gz\]\n", text)
    assert "train-images" not in text
    assert "-s data.root=DIR" in text
    assert "--download" in text and "31 MB" in text
    assert "dataset-fashion-mnist" in text


def test_the_usual_folders_are_looked_in_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, cache = tmp_path / "given", tmp_path / "cache"
    monkeypatch.setenv("DDNKIT_DATA", str(given))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    with pytest.raises(InputError) as caught:
        MNIST().locate(download=False)
    text = str(caught.value)
    for looked in (given / "mnist", cache / "ddnkit" / "mnist"):
        assert f"{looked}: " in text
    assert text.count("train-labels-idx1-ubyte[.gz]") == 2
    assert "debian" not in text.lower()

    write_mnist(cache / "ddnkit" / "mnist", ".gz")
    assert MNIST().build(seed=0, smoke=False).samples == 30
    write_mnist(given / "mnist", train=20)
    assert MNIST().build(seed=0, smoke=False).samples == 20
    monkeypatch.delenv("DDNKIT_DATA")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"\.cache/ddnkit/mnist"):
        MNIST().build(seed=0, smoke=False)


def test_debians_folder_is_the_last_one() -> None:
    assert FashionMNIST.source.folders(None)[-1] == Path("/usr/share/datasets/fashion-mnist")


def serve_mnist(folder: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [f"{file}.gz" for file in MNIST.source.files]
    monkeypatch.setattr(published.MNIST, "resources", [(f, md5(folder / f)) for f in files])
    monkeypatch.setattr(published.MNIST, "mirrors", [f"{url}/gone/", f"{url}/"])


def test_files_are_fetched_from_a_mirror_that_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin, folder = write_mnist(tmp_path / "origin", ".gz"), tmp_path / "new" / "mnist"
    settings = MNIST(root=folder)
    with served(origin) as url:
        serve_mnist(origin, url, monkeypatch)
        settings.locate(download=True)
        assert not folder.exists()
        assert settings.build(seed=0, smoke=False, download=True).samples == 30
        # A damaged file is fetched again, where that is allowed.
        broken = folder / "t10k-labels-idx1-ubyte.gz"
        broken.write_bytes(b"half")
        with pytest.raises(InputError, match=r"t10k-labels-idx1-ubyte\.gz"):
            settings.build(seed=0, smoke=False)
        assert settings.build(seed=0, smoke=False, download=True).test_samples == 10
    assert settings.build(seed=0, smoke=False, download=True).samples == 30
    assert md5(broken) == md5(origin / broken.name)


def test_a_failed_download_says_from_where_and_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = write_mnist(tmp_path / "origin", ".gz")
    with served(origin) as url:
        serve_mnist(origin, url, monkeypatch)
        monkeypatch.setattr(
            published.MNIST, "resources", [("train-images-idx3-ubyte.gz", "0" * 32)]
        )
        with pytest.raises(DdnkitError, match=f"MNIST: .*{tmp_path}/new .*{url}/") as caught:
            MNIST(root=tmp_path / "new").build(seed=0, smoke=False, download=True)
    assert caught.value.exit_status == 1
    with pytest.raises(DdnkitError, match=f"MNIST: .*{tmp_path}/other .*{url}/") as caught:
        MNIST(root=tmp_path / "other").build(seed=0, smoke=False, download=True)
    assert "-s data.root=DIR" in str(caught.value)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=str(tmp_path / "file")):
        MNIST(root=tmp_path / "file").build(seed=0, smoke=False, download=True)


def test_without_torchvision_idx_files_are_read_but_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    MNIST(root=write_mnist(tmp_path / "there")).locate(download=True)
    assert MNIST(root=tmp_path / "there").build(seed=0, smoke=False).samples == 30
    with pytest.raises(InputError, match=r"MNIST .*ddnkit\[vision\]"):
        MNIST(root=tmp_path / "gone").locate(download=True)
    with pytest.raises(InputError, match="torchvision"):
        MNIST(root=tmp_path / "gone").build(seed=0, smoke=False, download=True)


def test_a_damaged_idx_file_is_named_with_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    labels = np.arange(5, dtype=np.uint8)
    write_idx(path, labels, magic=b"\x00\x00\x0d\x01")
    with pytest.raises(InputError, match=r"labels: .*00 00 0d 01.*00 00 08 01"):
        read_idx(path, 1)
    write_idx(path, labels)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(InputError, match=r"5 bytes.* 3"):
        read_idx(path, 1)
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"labels: .*\b00 00 08 01"):
        read_idx(path, 1)
    with pytest.raises(InputError, match="absent"):
        read_idx(tmp_path / "absent", 1)

    compressed = tmp_path / "labels.gz"
    write_idx(compressed, labels)
    compressed.write_bytes(compressed.read_bytes()[:-12])
    with pytest.raises(InputError, match=r"labels\.gz"):
        read_idx(compressed, 1)
    compressed.write_bytes(b"no gzip at all")
    with pytest.raises(InputError, match=r"labels\.gz"):
        read_idx(compressed, 1)


def idx(sizes: tuple[int, ...], content: bytes = b"") -> bytes:
    return struct.pack(f">4B{len(sizes)}I", 0, 0, 8, len(sizes), *sizes) + content


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("content", "part"),
    [
        (idx((0, 2**32 - 1, 2**32 - 1)), "0×4294967295×4294967295"),
        (idx((2**32 - 1,) * 3), "4294967295×4294967295×4294967295"),
        (idx((2, 0, 28)), "2×0×28"),
        (idx((1, 2**15, 2**15 + 1), bytes(99)), "1×32768×32769"),
        (idx((2, 3, 4), bytes(23)), "23"),
        (idx((2, 3, 4), bytes(25)), "24 bytes"),
        (idx((2, 3, 4))[:9], "after 9"),
        (idx((2, 3, 4))[:3], "00 00 08"),
        (idx((24,), bytes(24)), "00 00 08 01"),
    ],
)
def test_a_header_that_cannot_be_of_the_file_is_refused(
    tmp_path: Path, suffix: str, content: bytes, part: str
) -> None:
    path = tmp_path / f"images{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    with pytest.raises(InputError) as caught:
        read_idx(path, 3)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and part in text and "\n" not in text


def test_no_more_is_unpacked_than_the_header_promises(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(idx((1, 28, 28)))
        for _ in range(64):
            file.write(bytes(2**20))
    tracemalloc.start()
    with pytest.raises(InputError, match=r"bomb\.gz"):
        read_idx(path, 3)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Buffers of the file and of what is unpacked from it, which do not grow with the content.
    assert taken < 8 * 2**20


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe"):
        read_idx(tmp_path / "pipe", 1)
    with pytest.raises(InputError, match=str(tmp_path)):
        read_idx(tmp_path, 1)


def test_files_that_are_not_the_data_sets_are_refused(tmp_path: Path) -> None:
    folder = write_mnist(tmp_path)
    labels = folder / "train-labels-idx1-ubyte"
    write_idx(labels, np.full(30, 10, dtype=np.uint8))
    with pytest.raises(InputError, match="0…9"):
        FashionMNIST(root=folder).build(seed=0, smoke=False)
    write_idx(labels, np.zeros(29, dtype=np.uint8))
    with pytest.raises(InputError, match=r"30 images.*29 labels"):
        FashionMNIST(root=folder).build(seed=0, smoke=False)
    write_idx(folder / "train-images-idx3-ubyte", np.zeros((30, 14, 28), dtype=np.uint8))
    with pytest.raises(InputError, match="14×28"):
        FashionMNIST(root=folder).build(seed=0, smoke=False)


def test_what_is_there_and_no_file_is_not_called_missing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    for name, missing in (("folder", False), ("loop", False), ("gone", True)):
        with pytest.raises(InputError) as told:
            read_idx(tmp_path / name, 1)
        assert str(tmp_path / name) in str(told.value)
        assert ("no such file" in str(told.value)) == missing
