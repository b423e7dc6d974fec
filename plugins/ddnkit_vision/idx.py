"""The IDX file format of the MNIST family: a header of magic number and sizes, then bytes."""

from __future__ import annotations

import contextlib
import gzip
import math
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ddnkit import InputError

_UNSIGNED_BYTE = 0x08
#: Twenty times MNIST.
_LARGEST = 2**30


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
    with _opened(path) as file:
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
def _opened(path: Path) -> Iterator[BinaryIO]:
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


__all__ = ["read_idx"]
