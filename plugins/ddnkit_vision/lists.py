"""Data sets whose images, classes and splits are listed in text files; without torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ddnkit import InputError

from .folders import ImageFiles, Splits

#: Of the characters of a line; no path is as long.
_LONGEST = 10_000


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
    splits = Splits(classes, _listed(folder, train, classes), _listed(folder, test, classes))
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
    found = Splits(classes, images.chosen(train), images.chosen(~train))
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


def _listed(folder: Path, path: Path, classes: int) -> ImageFiles:
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


__all__ = ["cub200", "imagenet_lt"]
