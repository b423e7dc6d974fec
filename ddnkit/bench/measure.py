"""One measurement: forward and backward of a node in a given form, in a process of its own.

A fresh process each, so that the peak memory is that of the measured calls: on the CPU the growth of
the resident set over its size after a small warm-up, on a GPU the allocator's own peak.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .. import registry
from ..layer import DeclarativeLayer
from ..memory import peak_resident_memory


@dataclass(frozen=True)
class Measurement:
    """Median seconds of the forward and backward passes, and the extra memory in bytes."""

    form: str
    size: tuple[int, ...]
    dtype: str
    device: str
    forward: float
    backward: float
    memory: int
    repeats: int
    seed: int


class MeasurementError(RuntimeError):
    """The measuring process failed; the text is the end of what it printed."""


def measure_apart(node: str, form: str, size: Sequence[int], **settings: Any) -> Measurement:
    """`measure` in a fresh process."""
    request = json.dumps({"node": node, "form": form, "size": list(size), **settings})
    done = subprocess.run(
        [sys.executable, "-m", "ddnkit.bench.measure", request],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise MeasurementError(last)
    result = json.loads(done.stdout.splitlines()[-1])
    return Measurement(**{**result, "size": tuple(result["size"])})


def measure(
    node: str,
    form: str,
    size: Sequence[int],
    *,
    dtype: str = "float32",
    device: str = "cpu",
    repeats: int = 3,
    seed: int = 0,
) -> Measurement:
    """Forward and backward of a registered node on its `bench_inputs`, the median of ``repeats``."""
    kind = registry.get("nodes", node)()
    layer = DeclarativeLayer(kind, form)
    torch.manual_seed(seed)
    small = [min(n, 16 >> i) for i, n in enumerate(size)]
    for warm in (small, small):  # libraries load and allocate on their first use
        _once(layer, kind.bench_inputs(*warm), dtype, device)
    inputs = kind.bench_inputs(*size)
    before = _memory(device, reset=True)
    times = [_once(layer, inputs, dtype, device) for _ in range(repeats)]
    memory = _memory(device) - before
    forward, backward = (sorted(column)[len(times) // 2] for column in zip(*times, strict=True))
    return Measurement(
        form, tuple(size), dtype, device, forward, backward, memory, repeats, seed
    )  # fmt: skip


def _once(
    layer: DeclarativeLayer, inputs: Sequence[Any], dtype: str, device: str
) -> tuple[float, float]:
    xs = [
        x.to(device, getattr(torch, dtype)).requires_grad_() if torch.is_tensor(x) else x
        for x in inputs
    ]
    started = _now(device)
    y = layer(*xs)
    solved = _now(device)
    v = torch.ones_like(y)
    ready = _now(device)
    y.backward(v)
    return solved - started, _now(device) - ready


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _memory(device: str, reset: bool = False) -> int:
    if device == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    return peak_resident_memory()


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    print(json.dumps(asdict(measure(**request))))
