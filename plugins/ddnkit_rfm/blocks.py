"""How much memory may be taken, and how many rows of a large matrix it holds at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from ddnkit import InputError

#: Of what a device has free, the share that is used where no limit is given.
SHARE = 0.5

#: A block of more bytes than this is no faster.
LARGEST_BLOCK = 1 << 28

FLOAT64_BYTES = 8


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


def row_blocks(rows: int, row_bytes: int, memory: int, what: str) -> Iterator[slice]:
    """Slices that cover `rows`, each with as many rows as `memory` and `LARGEST_BLOCK` allow.

    Args:
        rows: how many there are.
        row_bytes: taken for each.
        memory: bytes for a block.
        what: is computed, for the message.

    Raises:
        ddnkit.InputError: not even one row fits.
    """
    fitting = memory // row_bytes
    if fitting < 1:
        raise InputError(
            f"{what} takes {row_bytes:,} bytes, above the {max(memory, 0):,} "
            "that are left of the memory allowed; allow more with memory=BYTES"
        )
    size = max(min(fitting, LARGEST_BLOCK // row_bytes), 1)
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))
