"""Small made files in the formats of the image data sets, and a server to fetch them from."""

import contextlib
import functools
import gzip
import hashlib
import pickle
import struct
import tarfile
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets as published
from PIL import Image

CIFAR_BATCHES = [f"data_batch_{i}" for i in range(1, 6)]


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_idx(path: Path, array: np.ndarray, magic: bytes | None = None) -> None:
    header = magic or bytes((0, 0, 8, array.ndim))
    content = header + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_mnist(folder: Path, suffix: str = "", train: int = 30, test: int = 10) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for name, count in (("train", train), ("t10k", test)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write_idx(folder / f"{name}-images-idx3-ubyte{suffix}", images)
        write_idx(
            folder / f"{name}-labels-idx1-ubyte{suffix}", np.arange(count, dtype=np.uint8) % 10
        )
    return folder


def write_cifar10(folder: Path, monkeypatch: pytest.MonkeyPatch, each: int = 4) -> np.ndarray:
    """CIFAR-10's files with ``each`` images a batch, and torchvision's checksums of them."""
    base = folder / "cifar-10-batches-py"
    base.mkdir(parents=True)
    random = np.random.default_rng(0)
    batches = [random.integers(0, 256, (each, 3072), dtype=np.uint8) for _ in range(6)]
    names = [*CIFAR_BATCHES, "test_batch"]
    for number, (name, data) in enumerate(zip(names, batches, strict=True)):
        labels = [(number * each + i) % 10 for i in range(each)]
        (base / name).write_bytes(pickle.dumps({"data": data, "labels": labels}))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    kind = published.CIFAR10
    listed = [[name, md5(base / name)] for name in names]
    monkeypatch.setattr(kind, "train_list", listed[:-1])
    monkeypatch.setattr(kind, "test_list", listed[-1:])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(base / "batches.meta")})
    return np.concatenate(batches).reshape(-1, 3, 32, 32)


def pack_cifar10(folder: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The archive of CIFAR-10's files in ``folder``, which torchvision shall fetch from ``url``."""
    archive = folder / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder / "cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setattr(published.CIFAR10, "url", f"{url}/{archive.name}")
    monkeypatch.setattr(published.CIFAR10, "tgz_md5", md5(archive))
    return archive


def write_stl10(folder: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """STL-10's labelled files, columns first as published, with the checksums of them."""
    base = folder / "stl10_binary"
    base.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 96, 96), dtype=np.uint8)
    for split, part in (("train", images[:3]), ("test", images[3:])):
        (base / f"{split}_X.bin").write_bytes(part.transpose(0, 1, 3, 2).tobytes())
        (base / f"{split}_y.bin").write_bytes(np.arange(1, len(part) + 1, dtype=np.uint8).tobytes())
        listed = [[f"{split}_{part}.bin", md5(base / f"{split}_{part}.bin")] for part in "Xy"]
        rest = getattr(published.STL10, f"{split}_list")[2:]
        monkeypatch.setattr(published.STL10, f"{split}_list", listed + rest)
    return images


def write_svhn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """SVHN's files, in which the digit 0 has the label 10, with the checksums of them."""
    from scipy.io import savemat

    folder.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    listed = dict(published.SVHN.split_list)
    for split in ("train", "test"):
        path = folder / f"{split}_32x32.mat"
        savemat(path, {"X": images, "y": np.array([[10], [1], [2], [3]], dtype=np.uint8)})
        listed[split] = [listed[split][0], path.name, md5(path)]
    monkeypatch.setattr(published.SVHN, "split_list", listed)
    return images.transpose(3, 2, 0, 1)


def write_images(root: Path, train: int = 5, test: int = 3) -> Path:
    """An image folder of three classes, JPEG, PNG and grey PNG, of different sizes."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("val", test)):
        for number, name in enumerate(("ant", "bee", "cat")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                size = (40 + 7 * i, 60 - 5 * number) + ((3,) if number < 2 else ())
                image = Image.fromarray(random.integers(0, 256, size, dtype=np.uint8))
                image.save(folder / f"{i}.{'JPEG' if number == 0 else 'png'}")
    return root


def write_jpegs(folder: Path, count: int = 7) -> list[str]:
    """The names of photographs in ``folder``, of different sizes."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    names = [f"{i}.JPEG" for i in range(count)]
    for i, name in enumerate(names):
        pixels = random.integers(0, 256, (30 + 3 * i, 40 - 2 * i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return names


def write_imagenet_lt(root: Path) -> Path:
    """Lists of 1000 classes in no order, three images of class 0, of a few photographs."""
    names = write_jpegs(root / "train" / "n01440764")
    labels = [0, *range(999, -1, -1), 0]
    train = (f"train/n01440764/{names[i % 7]} {label}\n" for i, label in enumerate(labels))
    (root / "ImageNet_LT_train.txt").write_text("".join(train))
    names = write_jpegs(root / "val", 3)
    test = (f"val/{name} {label}\n" for name, label in zip(names, (5, 999, 5), strict=True))
    (root / "ImageNet_LT_test.txt").write_text("".join(test))
    return root


def write_cub200(root: Path) -> Path:
    """CUB-200-2011's lists: images of 200 classes, the first of each for testing, then two."""
    names = write_jpegs(root / "images" / "001.Black_footed_Albatross")
    labels = [label for label in range(1, 201) for _ in range(3)]
    columns = {
        "images.txt": [f"001.Black_footed_Albatross/{names[i % 7]}" for i in range(600)],
        "image_class_labels.txt": labels,
        "train_test_split.txt": [int(i % 3 > 0) for i in range(600)],
    }
    for file, column in columns.items():
        (root / file).write_text("".join(f"{i} {word}\n" for i, word in enumerate(column, 1)))
    return root


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server of ``folder``, on this machine."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
