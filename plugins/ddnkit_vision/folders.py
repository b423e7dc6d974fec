"""Folders of images, one a class: where they are and what they hold; without torch."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ddnkit import InputError

_ENDINGS = (".jpeg", ".jpg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")


@dataclass(frozen=True)
class ImageFiles:
    """The image files of a split and their classes.

    Attributes:
        folder: that the paths start from.
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

    def chosen(self, index: np.ndarray) -> ImageFiles:
        """The files at ``index``, or where it is true, in its order."""
        return ImageFiles(self.folder, self.files[index], self.labels[index])

    def first(self, count: int) -> ImageFiles:
        """About ``count`` files, evenly the first ones of each class, in the same order."""
        each, more = divmod(count, int(self.labels.max()) + 1)
        by_class = np.argsort(self.labels, kind="stable")
        ordered = self.labels[by_class]
        # Each file's place among those of its class.
        rank = np.empty_like(by_class)
        rank[by_class] = np.arange(len(ordered)) - np.searchsorted(ordered, ordered)
        return self.chosen(rank < each + (self.labels < more))


class Splits(NamedTuple):
    """A data set: its number of classes and its files."""

    classes: int
    train: ImageFiles
    test: ImageFiles


def read_splits(folder: Path) -> Splits:
    """The images of ``folder/train`` and ``folder/val``, classes in the order of their names.

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
    return Splits(len(classes), train, test)


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


__all__ = ["ImageFiles", "Splits", "read_splits"]
