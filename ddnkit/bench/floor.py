"""The least that a piece of work can take on this machine: its arithmetic and its memory traffic."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

_MATRIX = {"cpu": 1536, "cuda": 8192}
_COPY_BYTES = {"cpu": 2**28, "cuda": 2**31}
_ROUNDS = 5


@dataclass(frozen=True)
class Floor:
    """What no way to do the work can do without.

    Attributes:
        operations: floating-point operations.
        bytes: that must be read and written.
        what: the formula behind the operations, as text.
        phases: operations of single phases, by name, where the work has several.
    """

    operations: float
    bytes: float = 0.0
    what: str = ""
    phases: Mapping[str, float] = field(default_factory=dict)

    def seconds(self, rate: float, traffic: float) -> float:
        """The longer of arithmetic at ``rate`` operations a second and bytes at ``traffic`` a second."""
        return max(self.operations / rate, self.bytes / traffic)


def matmul_rate(device: str, dtype: str) -> float:
    """Floating-point operations a second of a large square product: the best seen in this process."""
    n = _MATRIX[device]
    a = torch.randn(n, n, dtype=getattr(torch, dtype), device=device)
    b, out = torch.randn_like(a), torch.empty_like(a)
    rate = 2 * n**3 / _best(lambda: torch.mm(a, b, out=out), device)
    return _best_so_far(("matmul", device, dtype), rate)


def copy_rate(device: str) -> float:
    """Bytes a second, read and written, of a large copy: the best seen in this process."""
    source = torch.ones(_COPY_BYTES[device] // 4, device=device)
    target = torch.zeros_like(source)
    rate = 2 * source.nbytes / _best(lambda: target.copy_(source), device)
    return _best_so_far(("copy", device), rate)


def _best_so_far(what: tuple[str, ...], rate: float) -> float:
    # Each table measures anew: a moment when the machine was busy must not stand for the machine.
    _rates[what] = max(rate, _rates.get(what, 0.0))
    return _rates[what]


_rates: dict[tuple[str, ...], float] = {}


def now(device: str) -> float:
    """The time once the device has done all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _best(work: Callable[[], object], device: str) -> float:
    work()
    best = float("inf")
    for _ in range(_ROUNDS):
        started = now(device)
        work()
        best = min(best, now(device) - started)
    return best
