"""Folders of images, one a class: where they are and what they hold; without torch."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ddnkit import InputError

_ENDINGS = (".jpeg", ".jpg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
_LISTED = 8


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

    A class has the images of its folder and of all folders below it, in the order of torchvision's
    ``ImageFolder``. Links are followed; a folder that several lead to, or that contains itself,
    counts once in a class. Names that begin with a dot are left out.

    Raises:
        ddnkit.InputError: a split has no classes or a class no images, or a class is not trained; or
            a folder cannot be read.
    """
    return _read(folder, Counter())


def left_out(folder: Path) -> str:
    """How many files `read_splits` leaves out, and of what kind; empty where there is none.

    Raises:
        ddnkit.InputError: as `read_splits`.
    """
    others: Counter[str] = Counter()
    _read(folder, others)
    if not others:
        return ""
    kinds = [f"{count} {kind}" for kind, count in others.most_common(_LISTED)]
    more = sum(others.values()) - sum(count for _, count in others.most_common(_LISTED))
    kinds += [f"{more} more"] if more else []
    return f"{folder}: files that are not images of a class are left out: {', '.join(kinds)}"


def _read(folder: Path, others: Counter[str]) -> Splits:
    classes = _folders(folder / "train", others)
    if not classes:
        raise InputError(f"{folder / 'train'}: has no folders, one a class")
    tested = _folders(folder / "val", others)
    unknown = sorted(set(tested) - set(classes))
    if unknown or not tested:
        detail = f"{unknown[0]!r} is not one of train's" if unknown else "it has no folders"
        raise InputError(
            f"{folder / 'val'}: needs a folder a class, named like those of train; {detail}"
        )
    train = _files(folder / "train", enumerate(classes), others)
    known = set(tested)
    chosen = ((i, name) for i, name in enumerate(classes) if name in known)
    return Splits(len(classes), train, _files(folder / "val", chosen, others))


def _files(folder: Path, classes: Iterable[tuple[int, str]], others: Counter[str]) -> ImageFiles:
    files: list[bytes] = []
    labels: list[int] = []
    empty: list[str] = []
    for label, name in classes:
        images = _below(folder, name, others)
        if not images:
            empty.append(name)
        files += map(os.fsencode, images)
        labels += [label] * len(images)
    if empty:
        more = f" and {len(empty) - _LISTED} more" if len(empty) > _LISTED else ""
        named = ", ".join(str(folder / name) for name in empty[:_LISTED])
        raise InputError(f"{named}{more}: has no images ({', '.join(_ENDINGS)})")
    return ImageFiles(folder, np.array(files, dtype=np.bytes_), np.array(labels, dtype=np.int64))


def _below(top: Path, name: str, others: Counter[str]) -> list[str]:
    """The images in the folder ``name`` of ``top`` and below, by paths from ``top``."""
    found: dict[str, list[str]] = {}
    seen: set[tuple[int, int]] = set()
    left = deque([name])
    while left:
        folder = left.popleft()
        try:
            place = os.stat(top / folder)
        except OSError as error:
            raise _unreadable(top / folder, error) from error
        if (place.st_dev, place.st_ino) in seen:
            continue
        seen.add((place.st_dev, place.st_ino))
        found[folder] = []
        for entry in _entries(top / folder):
            if _is_folder(entry):
                if not entry.name.startswith("."):
                    left.append(os.path.join(folder, entry.name))
                continue
            kind = _left_out_as(entry)
            if kind is None:
                found[folder].append(os.path.join(folder, entry.name))
            elif kind:
                others[kind] += 1
    # As torchvision sorts: by the folder's path first.
    return [image for folder in sorted(found) for image in found[folder]]


def _left_out_as(entry: os.DirEntry[str]) -> str | None:
    """Of what kind the file is, if it is no image; empty for what hides, and is no image either."""
    image = entry.name.lower().endswith(_ENDINGS)
    if entry.name.startswith("."):
        return "hidden" if image else ""
    if image:
        return None if _is_file(entry) else "no file or a link to none"
    return os.path.splitext(entry.name)[1] or "without a suffix"


def _folders(folder: Path, others: Counter[str]) -> list[str]:
    folders = []
    for entry in _entries(folder):
        if _is_folder(entry):
            folders += [] if entry.name.startswith(".") else [entry.name]
        elif _left_out_as(entry) is None:
            others["in no class's folder"] += 1
    return folders


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What the folder holds, in the order of the names."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise _unreadable(folder, error) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads back to itself
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _unreadable(folder: Path, error: OSError) -> InputError:
    return InputError(f"{folder}: cannot be read: {error.strerror}")


__all__ = ["ImageFiles", "Splits", "left_out", "read_splits"]
