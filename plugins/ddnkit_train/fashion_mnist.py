"""Fashion-MNIST from the IDX files on the user's disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ddnkit import InputError

from .data import Dataset, standardise, synthetic
from .idx import read_idx

if TYPE_CHECKING:
    from .settings import FashionMNIST

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def fashion_mnist(settings: FashionMNIST, *, smoke: bool) -> Dataset:
    """Images ``(N, 1, 28, 28)`` in 10 classes, standardised.

    Raises:
        ddnkit.InputError: files are missing or not Fashion-MNIST's.
    """
    if smoke:
        return synthetic((1, 28, 28), 10)
    train_images, train_labels, test_images, test_labels = find_files(settings.root)
    train, labels = _read_images(train_images, train_labels)
    test, test_classes = _read_images(test_images, test_labels)
    train, labels = train[: settings.subset], labels[: settings.subset]
    train, test = standardise(train, test, settings.standardise)
    return Dataset(train, labels, 10, test, test_classes)


def find_files(root: Path | None) -> list[Path]:
    """The four files in the order of `FILES`, from the first folder that has them all.

    Args:
        root: the folder to look in; ``None`` for the usual ones.

    Raises:
        ddnkit.InputError: no folder has them; the text lists every folder and what it lacks.
    """
    folders = [root.expanduser()] if root is not None else [_user_folder(), _DEBIAN]
    lines = []
    for folder in folders:
        found = [_existing(folder, name) for name in FILES]
        present = [path for path in found if path is not None]
        if len(present) == len(FILES):
            return present
        missing = ", ".join(
            f"{n}[.gz]" for n, path in zip(FILES, found, strict=True) if path is None
        )
        absent = "" if folder.is_dir() else "no such folder; "
        lines.append(f"  {folder}: {absent}missing {missing}")
    raise InputError(
        "Fashion-MNIST: files are missing. Looked in:\n"
        + "\n".join(lines)
        + "\nGive the folder that has the four files with -s data.root=DIR, "
        "or install them with Debian's package dataset-fashion-mnist."
    )


def _user_folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "ddnkit" / "fashion-mnist"


def _existing(folder: Path, name: str) -> Path | None:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    return None


def _read_images(images: Path, labels: Path) -> tuple[Tensor, Tensor]:
    pixels, classes = read_idx(images, 3), read_idx(labels, 1)
    if pixels.shape[1:] != (28, 28):
        height, width = pixels.shape[1:]
        raise InputError(f"{images}: images of {height}×{width}; Fashion-MNIST's are 28×28")
    if len(pixels) != len(classes):
        raise InputError(f"{images} holds {len(pixels)} images, {labels} {len(classes)} labels")
    if len(classes) == 0 or classes.max() > 9:
        raise InputError(f"{labels}: expected labels 0…9 of at least one image")
    scaled = torch.tensor(pixels, dtype=torch.float32)[:, None] / 255
    return scaled, torch.tensor(classes, dtype=torch.int64)
