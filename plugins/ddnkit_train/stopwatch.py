"""Times and memory of a training: ``resources.json`` in the job's folder."""

from __future__ import annotations

import json
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from ddnkit import peak_resident_memory, replace_file, reset_peak_resident_memory

#: Steps before the first that is measured: libraries load, choose algorithms and allocate.
_WARM_UP = 10


class Stopwatch:
    """Forward, backward and whole-step times of some steps, and the peak memory.

    On a GPU the times are between events on its stream, read once at the end: nothing waits.

    Args:
        device: that trains.
        steps: how many to measure.
        total: steps of this session; a short one is measured from the second on.
    """

    def __init__(self, device: torch.device, steps: int, total: int) -> None:
        self._device = device
        first = _WARM_UP if total > _WARM_UP + steps else 1
        self._wanted = range(first, first + steps)
        self._seen = 0
        reset_peak_memory(device)
        self._marks: list[list[Any]] = []

    def begin(self) -> None:
        """A step begins; then `mark` after the forward, the backward and the update."""
        if self._seen in self._wanted:
            self._marks.append([self._now()])

    def mark(self, *, last: bool = False) -> None:
        """A part of the step has been done; ``last``: so has the step."""
        if self._seen in self._wanted:
            self._marks[-1].append(self._now())
        self._seen += last

    def write(self, file: Path, precision: str, devices: int) -> None:
        """Write what was measured; a file of an earlier session is kept where nothing was."""
        marks = [marks for marks in self._marks if len(marks) == 4]
        if not marks:
            return
        parts = [self._differences(step) for step in marks]
        forward, backward, _ = (statistics.median(part) for part in zip(*parts, strict=True))
        cuda = self._device.type == "cuda"
        content = {
            "forward_ms": round(forward, 4),
            "backward_ms": round(backward, 4),
            "step_ms": round(statistics.median(map(sum, parts)), 4),
            "peak_memory_mb": round(peak_memory(self._device) / 2**20, 1),
            "memory_of": "device" if cuda else "process",
            "steps": len(marks),
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "devices": devices,
            "precision": precision,
        }
        text = json.dumps(content, indent=2) + "\n"
        replace_file(file, lambda part: part.write_text(text, encoding="utf-8"))

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _differences(self, marks: list[Any]) -> list[float]:
        """Milliseconds between the marks."""
        if self._device.type != "cuda":
            return [1e3 * (b - a) for a, b in pairwise(marks)]
        marks[-1].synchronize()
        return [a.elapsed_time(b) for a, b in pairwise(marks)]


def peak_memory(device: torch.device) -> int:
    """Bytes: the allocator's peak on a GPU, elsewhere the largest resident set of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_resident_memory()


def reset_peak_memory(device: torch.device) -> None:
    """Count the peak from now on, where that can be: else it is that since the process began."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        reset_peak_resident_memory()
