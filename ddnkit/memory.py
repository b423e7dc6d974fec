"""The memory that this process has taken; without torch."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path


def peak_resident_memory() -> int:
    """The largest resident set of this process so far, or since `reset_peak_resident_memory`; bytes."""
    with contextlib.suppress(OSError):
        # Not getrusage, which on Linux counts the process that started this one, too.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux


def reset_peak_resident_memory() -> None:
    """Count the peak from now on, where the system can: else it stays that of the whole process."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
