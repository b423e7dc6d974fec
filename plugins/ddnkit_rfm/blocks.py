"""Large matrices in blocks of rows: how much memory may be used, and how many rows fit in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from ddnkit import InputError

#: The share of a device's free memory that is used where no limit is given.
SHARE = 0.5

#: Larger blocks, in bytes, are no faster.
LARGEST_BLOCK = 1 << 28

FLOAT64_BYTES = 8

#: Blocks of rows that the upper triangle of a symmetric matrix is computed in: with a square on the diagonal
#: for each, that is 9/16 of the matrix.
TRIANGLE_BLOCKS = 8

#: Blocks of fewer rows are not worth their overhead.
_FEW_ROWS = 64


def allowed_memory(memory: int | None, device: torch.device) -> int:
    """The given number of bytes; by default `SHARE` of the device's free memory.

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
        # What torch's allocator holds without using it is free as well, but the driver does not count it.
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
        what: the thing computed, for the message.
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
    """`row_blocks` of a symmetric matrix of which only the upper triangle is computed."""
    most = max(-(-rows // TRIANGLE_BLOCKS), _FEW_ROWS)
    return row_blocks(rows, row_bytes, memory, what, most)


def fill_symmetric(
    matrix: Tensor, blocks: Iterable[slice], upper: Callable[[slice, slice], Tensor]
) -> Tensor:
    """Fill a matrix, symmetric to the last digit, from its entries on and above the diagonal.

    Args:
        matrix: ``(n, n)``.
        blocks: of rows.
        upper: from rows and columns to that part of the matrix; the first columns are those of the rows.
    """
    for block in blocks:
        rest = slice(block.start, len(matrix))
        part = upper(block, rest)
        matrix[block, rest] = part
        matrix[rest, block] = part.T
        # The two entries of a pair may be rounded differently.
        square = matrix[block, block]
        square.copy_(square.triu() + square.triu(1).T)
    return matrix
