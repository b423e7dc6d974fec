"""How much memory may be taken, and how many rows of a large matrix it holds at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from ddnkit import InputError

#: Of what a device has free, the share that is used where no limit is given.
SHARE = 0.5

#: A block of more bytes than this is no faster.
LARGEST_BLOCK = 1 << 28

FLOAT64_BYTES = 8

#: Blocks that the upper triangle of a symmetric matrix is taken in: with one square on the diagonal for
#: each, 9/16 of the matrix are computed.
TRIANGLE_BLOCKS = 8

#: Rows of which a block is not worth its overhead.
_FEW_ROWS = 64


def allowed_memory(memory: int | None, device: torch.device) -> int:
    """The given number of bytes, or by default `SHARE` of what the device has free.

    Raises:
        ddnkit.InputError: the number is not above 0.
    """
    if memory is None:
        return int(SHARE * _free_memory(device))
    if memory <= 0:
        raise InputError(f"memory is {memory}; expected a number of bytes above 0")
    return memory


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        # What torch's allocator holds without using it is free, too, but not to the driver.
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    information = Path("/proc/meminfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def row_blocks(
    rows: int, row_bytes: int, memory: int, what: str, most: int | None = None
) -> Iterator[slice]:
    """Slices that cover `rows`, each with as many rows as `memory` and `LARGEST_BLOCK` allow.

    Args:
        rows: how many there are.
        row_bytes: taken for each.
        memory: bytes for a block.
        what: is computed, for the message.
        most: rows in a block, at most.

    Raises:
        ddnkit.InputError: not even one row fits.
    """
    fitting = memory // row_bytes
    if fitting < 1:
        raise InputError(
            f"{what} takes {row_bytes:,} bytes, above the {max(memory, 0):,} "
            "that are left of the memory allowed; allow more with memory=BYTES"
        )
    size = max(min(fitting, LARGEST_BLOCK // row_bytes, most or rows), 1)
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def triangle_blocks(rows: int, row_bytes: int, memory: int, what: str) -> Iterator[slice]:
    """`row_blocks` of a symmetric matrix, of which what is right of the diagonal will do."""
    most = max(-(-rows // TRIANGLE_BLOCKS), _FEW_ROWS)
    return row_blocks(rows, row_bytes, memory, what, most)


def fill_symmetric(
    matrix: Tensor, blocks: Iterable[slice], upper: Callable[[slice, slice], Tensor]
) -> Tensor:
    """Fill a matrix that is symmetric, to the last digit, from what is on and above its diagonal.

    Args:
        matrix: ``(n, n)``.
        blocks: of rows.
        upper: the part of given rows and columns, of which the first are those of the rows.
    """
    for block in blocks:
        rest = slice(block.start, len(matrix))
        part = upper(block, rest)
        matrix[block, rest] = part
        matrix[rest, block] = part.T
        # What two roundings say of a pair may differ.
        square = matrix[block, block]
        square.copy_(square.triu() + square.triu(1).T)
    return matrix
