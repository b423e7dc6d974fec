"""The IDX file format of the MNIST family: a header of magic number and sizes, then bytes."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from ddnkit import InputError

_UNSIGNED_BYTE = 0x08


def read_idx(path: Path, dims: int) -> np.ndarray:
    """The array of unsigned bytes in an IDX file, plain or gzip-compressed (``.gz``).

    The header holds two zero bytes, the element type (0x08: unsigned byte), the number of
    dimensions, and each size as a big-endian 32-bit integer.

    Args:
        path: the file.
        dims: the number of dimensions that it must have: 1 for labels, 3 for images.

    Raises:
        ddnkit.InputError: the file cannot be read, its magic number is another, or it holds more
            or fewer bytes than its sizes say.
    """
    content = _read(path)
    magic = bytes((0, 0, _UNSIGNED_BYTE, dims))
    header = 4 + 4 * dims
    if len(content) < header or content[:4] != magic:
        raise InputError(
            f"{path}: not an IDX file of unsigned bytes with {dims} dimension(s): it starts with "
            f"{content[:4].hex(' ') or 'nothing'}, expected {magic.hex(' ')}"
        )
    sizes = struct.unpack(f">{dims}I", content[4:header])
    if len(content) - header != math.prod(sizes):
        raise InputError(
            f"{path}: its header promises {'×'.join(map(str, sizes))} = {math.prod(sizes)} bytes, "
            f"it holds {len(content) - header}. The file is cut off or damaged."
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(sizes)


def _read(path: Path) -> bytes:
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                return file.read()
        return path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
