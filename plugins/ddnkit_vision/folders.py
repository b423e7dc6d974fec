"""Folders of images, one a class: where they are and what they hold; without torch."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddnkit import InputError

from .files import Source

SPLITS = ("train", "val")
_ENDINGS = (".jpeg", ".jpg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
# Only for the names of its folders: there is nothing to download.
_SOURCE = Source("image_folder", "image folder", (), 0, "")


@dataclass(frozen=True)
class ImageFiles:
    """The image files of a split and their classes.

    Attributes:
        folder: of the split.
        files: paths relative to it, as an array of bytes: a list of a million strings would be
            copied into every worker, one reference count at a time.
        labels: their classes, int64.
    """

    folder: Path
    files: np.ndarray
    labels: np.ndarray

    def path(self, index: int) -> str:
        """The file of a sample."""
        return os.path.join(self.folder, os.fsdecode(self.files[index]))

    def first(self, count: int) -> ImageFiles:
        """About ``count`` files, evenly the first ones of each class, in the same order."""
        classes = int(self.labels.max()) + 1
        each, more = divmod(count, classes)
        # Sorted by class: a file's place among those of its class.
        starts = np.searchsorted(self.labels, np.arange(classes))
        rank = np.arange(len(self.labels)) - starts[self.labels]
        kept = rank < each + (self.labels < more)
        return ImageFiles(self.folder, self.files[kept], self.labels[kept])


def locate(root: Path | None, *, download: bool) -> Path:
    """The folder that has both splits.

    Raises:
        ddnkit.InputError: there is none; the text says where it was looked for and what it lacks.
    """
    looked = []
    for folder in _SOURCE.folders(root):
        missing = [split for split in SPLITS if not (folder / split).is_dir()]
        if not missing:
            return folder
        absent = "" if folder.is_dir() else "no such folder; "
        looked.append(f"  {folder}: {absent}missing {', '.join(f'{m}/' for m in missing)}\n")
    refused = (
        "--download cannot fetch it: ImageNet is given only to those who ask for it at "
        "image-net.org. "
        if download
        else "ImageNet cannot be downloaded with --download. "
    )
    raise InputError(
        f"image_folder: folders are missing. Looked in:\n{''.join(looked)}{refused}"
        "Give the folder that has train/CLASS/*.JPEG and val/CLASS/*.JPEG with -s data.root=DIR."
    )


def read_splits(folder: Path) -> tuple[list[str], ImageFiles, ImageFiles]:
    """The classes, in the order of their names, and the files of both splits.

    Raises:
        ddnkit.InputError: a split has no classes or a class no images, or a class is not trained.
    """
    classes = _folders(folder / "train")
    if not classes:
        raise InputError(f"{folder / 'train'}: has no folders, one a class")
    tested = _folders(folder / "val")
    unknown = sorted(set(tested) - set(classes))
    if unknown or not tested:
        detail = f"{unknown[0]!r} is none of train's" if unknown else "it has no folders"
        raise InputError(
            f"{folder / 'val'}: needs a folder a class, named like those of train; {detail}"
        )
    train = _files(folder / "train", enumerate(classes))
    known = set(tested)
    test = _files(folder / "val", ((i, name) for i, name in enumerate(classes) if name in known))
    return classes, train, test


def _files(folder: Path, classes: Iterable[tuple[int, str]]) -> ImageFiles:
    files: list[bytes] = []
    labels: list[int] = []
    for label, name in classes:
        images = sorted(e.name for e in os.scandir(folder / name) if _is_image(e.name))
        if not images:
            raise InputError(f"{folder / name}: has no images ({', '.join(_ENDINGS)})")
        files += [os.fsencode(os.path.join(name, image)) for image in images]
        labels += [label] * len(images)
    return ImageFiles(folder, np.array(files, dtype=np.bytes_), np.array(labels, dtype=np.int64))


def _is_image(name: str) -> bool:
    return name.lower().endswith(_ENDINGS) and not name.startswith(".")


def _folders(folder: Path) -> list[str]:
    return sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))


__all__ = ["SPLITS", "ImageFiles", "locate", "read_splits"]
