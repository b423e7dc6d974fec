"""Image files and their classes, in a folder for each class or listed in text files; without torch."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ddnkit import InputError
from ddnkit.renamed import OldMethod

_ENDINGS = (".jpeg", ".jpg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
_LISTED = 8
#: Of the characters of a line; no path is as long.
_LONGEST = 10_000


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

    chosen = OldMethod("select")

    def select(self, index: np.ndarray) -> ImageFiles:
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
        return self.select(rank < each + (self.labels < more))


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


def describe_ignored(folder: Path) -> str:
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
            raise _cannot_read(top / folder, error) from error
        if (place.st_dev, place.st_ino) in seen:
            continue
        seen.add((place.st_dev, place.st_ino))
        found[folder] = []
        for entry in _entries(top / folder):
            if _is_folder(entry):
                if not entry.name.startswith("."):
                    left.append(os.path.join(folder, entry.name))
                continue
            kind = _kind_ignored(entry)
            if kind is None:
                found[folder].append(os.path.join(folder, entry.name))
            elif kind:
                others[kind] += 1
    # As torchvision sorts: by the folder's path first.
    return [image for folder in sorted(found) for image in found[folder]]


def _kind_ignored(entry: os.DirEntry[str]) -> str | None:
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
        elif _kind_ignored(entry) is None:
            others["in no class's folder"] += 1
    return folders


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What the folder holds, in the order of the names."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise _cannot_read(folder, error) from error


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


def _cannot_read(folder: Path, error: OSError) -> InputError:
    return InputError(f"{folder}: cannot be read: {error.strerror}")


def imagenet_lt(folder: Path, train: Path, test: Path, classes: int) -> Splits:
    """The images of two lists of lines ``PATH CLASS``, classes counted from 0.

    Source: Z. Liu et al., "Large-Scale Long-Tailed Recognition in an Open World", CVPR 2019.

    Args:
        folder: that the paths in the lists start from.
        train: the list of the training images.
        test: the list of the test images.
        classes: number of classes C.

    Raises:
        ddnkit.InputError: a list has a malformed line, with its number, or no image of a class to
            train on; or the first image of a list does not exist.
    """
    splits = Splits(classes, _read_list(folder, train, classes), _read_list(folder, test, classes))
    _check_classes(splits, train, 0)
    return splits


def cub200(folder: Path, classes: int) -> Splits:
    """The images of CUB-200-2011, in three lists with a line an image.

    ``images.txt`` has its path in ``images``, ``image_class_labels.txt`` its class, counted from 1,
    and ``train_test_split.txt`` 1 for training images and 0 for test images.

    Source: C. Wah et al., "The Caltech-UCSD Birds-200-2011 Dataset", Caltech CNS-TR-2011-001.

    Args:
        folder: that has the lists.
        classes: number of classes C.

    Raises:
        ddnkit.InputError: a list has a malformed line, with its number, or no image of a class to
            train on; the lists do not fit together; or their first image does not exist.
    """
    paths = folder / "images.txt"
    labels = folder / "image_class_labels.txt"
    splits = folder / "train_test_split.txt"
    lines = zip_longest(_lines(paths), _lines(labels), _lines(splits))
    files: list[bytes] = []
    numbers: list[int] = []
    training: list[bool] = []
    for count, (path, label, split) in enumerate(lines, 1):
        if not (path and label and split and path.first == label.first == split.first):
            raise InputError(
                f"{folder}: line {count} of {paths.name}, {labels.name} and {splits.name} is not "
                "of the same image"
            )
        files.append(os.fsencode(path.second))
        numbers.append(label.whole_number(label.second, 1, classes) - 1)
        training.append(bool(split.whole_number(split.second, 0, 1)))
    images, train = _images(folder / "images", files, numbers, paths), np.array(training)
    found = Splits(classes, images.select(train), images.select(~train))
    _check_classes(found, labels, 1)
    return found


class _Line(NamedTuple):
    """A line of a list: two words."""

    path: Path
    number: int
    first: str
    second: str

    def whole_number(self, word: str, lowest: int, highest: int) -> int:
        # int() refuses thousands of digits in its own words.
        digits = word.isascii() and word.isdecimal() and len(word) < 20
        if not (digits and lowest <= int(word) <= highest):
            raise InputError(
                f"{self.path}, line {self.number}: {word!r} is no whole number in "
                f"{lowest}…{highest}"
            )
        return int(word)


def _lines(path: Path) -> Iterator[_Line]:
    try:
        with path.open(encoding="utf-8", errors="surrogateescape") as opened:
            lines = iter(lambda: opened.readline(_LONGEST), "")
            for number, line in enumerate(lines, 1):
                if len(line) == _LONGEST:
                    raise InputError(f"{path}, line {number}: has {_LONGEST} characters or more")
                words = line.split()
                if len(words) != 2:
                    raise InputError(
                        f"{path}, line {number}: expected two words with a space between them, "
                        f"not {line.strip()!r}"
                    )
                yield _Line(path, number, *words)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


def _read_list(folder: Path, path: Path, classes: int) -> ImageFiles:
    files: list[bytes] = []
    labels: list[int] = []
    for line in _lines(path):
        files.append(os.fsencode(line.first))
        labels.append(line.whole_number(line.second, 0, classes - 1))
    return _images(folder, files, labels, path)


def _images(folder: Path, files: list[bytes], labels: list[int], path: Path) -> ImageFiles:
    if not files:
        raise InputError(f"{path}: lists no images")
    images = ImageFiles(folder, np.array(files, dtype=np.bytes_), np.array(labels, dtype=np.int64))
    # Thousands of others are not looked for: a wrong folder has none of them.
    if not os.path.isfile(images.path(0)):
        raise InputError(f"{path}, line 1: there is no image {images.path(0)}")
    return images


def _check_classes(splits: Splits, path: Path, lowest: int) -> None:
    counts = np.bincount(splits.train.labels, minlength=splits.classes)
    absent = np.flatnonzero(counts == 0)
    if absent.size:
        more = f" and {absent.size - 1} others" if absent.size > 1 else ""
        raise InputError(f"{path}: no training image of class {absent[0] + lowest}{more}")
