"""The small image data sets, read from their files, or fetched, and held as uint8 tensors.

MNIST's family is in IDX files: a header of magic number and sizes, then bytes.
"""

from __future__ import annotations

import abc
import contextlib
import gzip
import math
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from ddnkit_train import Dataset, Standardise, synthetic_images
from torch import Tensor

from ddnkit import InputError

from . import sources
from .augmentation import FlipCropRotate
from .settings import SmallImages
from .sources import Source, require_torchvision

#: Values in all synthetic training images together, those of 256 of 3×32×32.
_SMOKE_VALUES = 3 * 256 * 32 * 32
_UNSIGNED_BYTE = 0x08
#: Bytes of an IDX file; twenty times MNIST.
_LARGEST = 2**30


def small_images(
    settings: SmallImages, *, seed: int, smoke: bool, download: bool = False
) -> Dataset:
    """The data set of ``settings``, standardised and augmented as they say; never augmented tests.

    Raises:
        ddnkit.InputError: files are missing or damaged.
        ddnkit.DdnkitError: a download failed.
    """
    data = _synthetic(settings) if smoke else _read(settings, download)
    return replace(
        data,
        prepare=Standardise.fit(data.inputs, settings.standardise),
        augmentation=_augmentation(settings),
    )


def _augmentation(settings: SmallImages) -> FlipCropRotate | None:
    """What changes the training images at random; ``None`` where nothing does."""
    if not (settings.flip or settings.crop or settings.rotation):
        return None
    return FlipCropRotate(settings.flip, settings.crop, settings.rotation, settings.interpolation)


def _synthetic(settings: SmallImages) -> Dataset:
    channels, height, width = settings.sample_shape
    # At least one of each class, and few of large images.
    least = max(settings.classes, 48)
    samples = max(min(512, _SMOKE_VALUES // (3 * height * width)), least)
    return synthetic_images((channels, height, width), settings.classes, samples=samples)


def _read(settings: SmallImages, download: bool) -> Dataset:
    images = READERS[settings.source.name].load(settings.root, download=download)
    train, labels = images.train[: settings.subset], images.labels[: settings.subset]
    return Dataset(train, labels, settings.classes, images.test, images.test_labels)


class Images(NamedTuple):
    """Training and test images ``(N, C, H, W)``, uint8, and their classes ``(N,)``, int64."""

    train: Tensor
    labels: Tensor
    test: Tensor
    test_labels: Tensor


class DamagedError(InputError):
    """Files are there, but are not what they should be."""


class Reader(abc.ABC):
    """Reads one data set.

    Args:
        source: its files.
    """

    def __init__(self, source: Source) -> None:
        self.source = source

    def torchvision(self) -> ModuleType:
        """torchvision's data sets.

        Raises:
            ddnkit.InputError: torchvision is not installed.
        """
        require_torchvision(self.source.title)
        import torchvision.datasets

        return torchvision.datasets

    @abc.abstractmethod
    def fetch(self, folder: Path) -> None:
        """Download the files into ``folder``, those that are missing or damaged, verified."""

    @abc.abstractmethod
    def read(self, folder: Path) -> Images:
        """The images of the files in ``folder``.

        Raises:
            DamagedError: a file is not what it should be.
        """

    def load(self, root: Path | None, *, download: bool) -> Images:
        """The images, from files found or fetched.

        Raises:
            ddnkit.InputError: files are missing or damaged.
            ddnkit.DdnkitError: a download failed.
        """
        folder = self.source.obtain(root, download=download, fetch=self.fetch)
        try:
            return self.read(folder)
        except DamagedError:
            if not download or folder != self.source.folders(root)[0]:
                raise
        self.source.fetch_again(folder, self.fetch)
        return self.read(folder)


class TorchvisionReader(Reader):
    """A data set that a class of torchvision reads, once it has verified the files' checksums.

    A file that is not the published one is read no further: no pickle of it is loaded, whatever its
    size, nor is an archive unpacked before its own checksum is found right.

    Args:
        source: its files.
        kind: name of the class.
    """

    def __init__(self, source: Source, kind: str) -> None:
        super().__init__(source)
        self._name = kind

    def kind(self) -> Any:
        """The class of torchvision."""
        return getattr(self.torchvision(), self._name)

    @abc.abstractmethod
    def checksums(self) -> dict[str, str]:
        """The MD5 of each file, by its path relative to the folder."""

    @abc.abstractmethod
    def open(self, folder: Path, split: str, download: bool = False) -> Any:
        """torchvision's data set of the split ``"train"`` or ``"test"``."""

    @abc.abstractmethod
    def tensors(self, opened: Any) -> tuple[np.ndarray, Any]:
        """Images ``(N, C, H, W)`` and classes of such a data set."""

    def fetch(self, folder: Path) -> None:
        """See `Reader.fetch`."""
        for split in ("train", "test"):
            self.open(folder, split, download=True)

    def read(self, folder: Path) -> Images:
        """See `Reader.read`."""
        try:
            train, test = (self.tensors(self.open(folder, split)) for split in ("train", "test"))
        except RuntimeError as error:
            raise self._damage(folder) from error
        except (OSError, ValueError) as error:
            raise DamagedError(
                f"{self.source.title}: files in {folder} cannot be read: {error}"
            ) from error
        return Images(*_tensors(*train), *_tensors(*test))

    def _damage(self, folder: Path) -> DamagedError:
        from torchvision.datasets.utils import check_integrity

        damaged = [
            file
            for file, md5 in self.checksums().items()
            if not check_integrity(folder / file, md5)
        ]
        return DamagedError(
            f"{self.source.title}: files in {folder} are damaged, their checksum is not the "
            f"published one: {', '.join(damaged) or 'all'}. Add --download to fetch them again "
            f"({self.source.megabytes} MB from {self.source.host}), or give another folder with "
            "-s data.root=DIR."
        )


class CIFAR(TorchvisionReader):
    """CIFAR-10 and CIFAR-100: pickled batches."""

    def checksums(self) -> dict[str, str]:
        """See `TorchvisionReader.checksums`."""
        kind = self.kind()
        meta = (kind.meta["filename"], kind.meta["md5"])
        listed = [*kind.train_list, *kind.test_list, meta]
        return {f"{kind.base_folder}/{file}": md5 for file, md5 in listed}

    def open(self, folder: Path, split: str, download: bool = False) -> Any:
        """See `TorchvisionReader.open`."""
        return self.kind()(folder, train=split == "train", download=download)

    def tensors(self, opened: Any) -> tuple[np.ndarray, Any]:
        """See `TorchvisionReader.tensors`."""
        return opened.data.transpose(0, 3, 1, 2), opened.targets


class STL10(TorchvisionReader):
    """STL-10's labelled images; the unlabelled ones (2.6 GB) need not be there."""

    def kind(self) -> Any:
        """The class of torchvision, its list of training files without the unlabelled ones."""
        base = super().kind()
        labelled = [entry for entry in base.train_list if not entry[0].startswith("unlabeled")]
        return type("STL10", (base,), {"train_list": labelled})

    def checksums(self) -> dict[str, str]:
        """See `TorchvisionReader.checksums`."""
        kind = self.kind()
        return {f"{kind.base_folder}/{file}": md5 for file, md5 in kind.train_list + kind.test_list}

    def open(self, folder: Path, split: str, download: bool = False) -> Any:
        """See `TorchvisionReader.open`."""
        return self.kind()(folder, split=split, download=download)

    def tensors(self, opened: Any) -> tuple[np.ndarray, Any]:
        """See `TorchvisionReader.tensors`."""
        return opened.data, opened.labels


class SVHN(TorchvisionReader):
    """SVHN's training and test digits, without the extra ones."""

    def checksums(self) -> dict[str, str]:
        """See `TorchvisionReader.checksums`."""
        listed = self.kind().split_list
        return {file: md5 for _, file, md5 in (listed["train"], listed["test"])}

    def open(self, folder: Path, split: str, download: bool = False) -> Any:
        """See `TorchvisionReader.open`."""
        return self.kind()(folder, split=split, download=download)

    def tensors(self, opened: Any) -> tuple[np.ndarray, Any]:
        """See `TorchvisionReader.tensors`."""
        return opened.data, opened.labels


class MNISTFamily(Reader):
    """Data sets in MNIST's four IDX files, plain or gzipped; reading them needs no torchvision.

    Args:
        source: its files.
        kind: name of torchvision's class, which knows mirrors and checksums.
    """

    def __init__(self, source: Source, kind: str) -> None:
        super().__init__(source)
        self._name = kind

    def fetch(self, folder: Path) -> None:
        """See `Reader.fetch`; the gzipped files, from the first mirror that has them."""
        kind = getattr(self.torchvision(), self._name)
        for file, md5 in kind.resources:
            _download(kind.mirrors, file, md5, folder)

    def read(self, folder: Path) -> Images:
        """See `Reader.read`."""
        paths = [self.source.path(folder, file) or folder / file for file in self.source.files]
        train_images, train_labels, test_images, test_labels = paths
        return Images(
            *self._split(train_images, train_labels), *self._split(test_images, test_labels)
        )

    def _split(self, images: Path, labels: Path) -> tuple[Tensor, Tensor]:
        try:
            pixels, classes = read_idx(images, 3), read_idx(labels, 1)
        except InputError as error:
            raise DamagedError(str(error)) from error
        if pixels.shape[1:] != (28, 28):
            height, width = pixels.shape[1:]
            raise DamagedError(
                f"{images}: images of {height}×{width}; {self.source.title}'s are 28×28"
            )
        if len(pixels) != len(classes):
            raise DamagedError(
                f"{images} holds {len(pixels)} images, {labels} {len(classes)} labels"
            )
        if len(classes) == 0 or classes.max() > 9:
            raise DamagedError(f"{labels}: expected labels 0…9 of at least one image")
        return _tensors(pixels[:, None], classes)


def read_idx(path: Path, dims: int) -> np.ndarray:
    """The array of unsigned bytes in an IDX file, plain or gzip-compressed (``.gz``).

    The header holds two zero bytes, the element type (0x08: unsigned byte), the number of
    dimensions, and each size as a big-endian 32-bit integer.

    Args:
        path: the file.
        dims: the number of dimensions that it must have: 1 for labels, 3 for images.

    Raises:
        ddnkit.InputError: the file cannot be read, its magic number is another, a size is zero, the
            sizes are of more than a gigabyte, or it holds more or fewer bytes than they say. No more
            is read than they say, however much a compressed file unpacks to.
    """
    magic = bytes((0, 0, _UNSIGNED_BYTE, dims))
    with _open(path) as file:
        start = file.read(4)
        if start != magic:
            raise InputError(
                f"{path}: not an IDX file of unsigned bytes with {dims} dimension(s): it starts with "
                f"{start.hex(' ') or 'nothing'}, expected {magic.hex(' ')}"
            )
        header = file.read(4 * dims)
        if len(header) < 4 * dims:
            raise InputError(
                f"{path}: its header of {4 + 4 * dims} bytes is cut off after {4 + len(header)}"
            )
        sizes = struct.unpack(f">{dims}I", header)
        promised = math.prod(sizes)
        shape = "×".join(map(str, sizes))
        if not 0 < promised <= _LARGEST:
            raise InputError(
                f"{path}: its header promises {shape} = {promised} bytes; expected 1 to {_LARGEST}"
            )
        content = file.read(promised + 1)
    if len(content) != promised:
        held = str(len(content)) if len(content) < promised else "more"
        raise InputError(
            f"{path}: its header promises {shape} = {promised} bytes, it holds {held}. The file is "
            "cut off or damaged."
        )
    return np.frombuffer(content, dtype=np.uint8).reshape(sizes)


@contextlib.contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """The file's content, unpacked where it is compressed; what goes wrong names the file."""
    try:
        if not path.is_file():
            there = os.path.lexists(path)
            raise InputError(
                f"{path}: {'it is no file, nor leads to one' if there else 'there is no such file'}"
            )
        opening: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
        with opening(path, "rb") as opened:
            yield opened
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


def _download(mirrors: list[str], file: str, md5: str, folder: Path) -> None:
    from torchvision.datasets.utils import download_url

    reasons = []
    for mirror in mirrors:
        try:
            return download_url(f"{mirror}{file}", folder, file, md5)
        except (OSError, RuntimeError) as error:
            reasons.append(f"{mirror}{file}: {error}")
    raise RuntimeError("; ".join(reasons))


def _tensors(images: np.ndarray, labels: Any) -> tuple[Tensor, Tensor]:
    # A copy of their own: what was read may be shared, read-only or strided.
    return torch.tensor(np.ascontiguousarray(images)), torch.tensor(
        np.asarray(labels), dtype=torch.int64
    )


READERS: dict[str, Reader] = {
    reader.source.name: reader
    for reader in (
        CIFAR(sources.CIFAR10, "CIFAR10"),
        CIFAR(sources.CIFAR100, "CIFAR100"),
        STL10(sources.STL10, "STL10"),
        SVHN(sources.SVHN, "SVHN"),
        MNISTFamily(sources.MNIST, "MNIST"),
        MNISTFamily(sources.FASHION_MNIST, "FashionMNIST"),
    )
}
