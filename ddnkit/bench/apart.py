"""Peak memory of one competitor on one case, in a process of its own.

The growth of the resident set over its size once the inputs are made and libraries have loaded in
a call on a small case; on a GPU the growth of the allocator's own peak.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import torch

from ..memory import peak_resident_memory, reset_peak_resident_memory

if TYPE_CHECKING:
    from .comparison import Case, Comparison
    from .contract import Request


class MeasurementError(RuntimeError):
    """A measurement failed; the text says how."""


def peak_memory_apart(
    bench: Comparison, case: Case, competitor: str, request: Request
) -> float | None:
    """Bytes; None where the process failed, or the bench has no name to be found by."""
    if not bench.name:
        return None
    work = json.dumps(
        {
            "bench": bench.name,
            "size": list(case.size),
            "kind": case.kind,
            "competitor": competitor,
            "device": request.device,
            "dtype": request.dtype,
            "seed": request.seed,
        }
    )
    done = subprocess.run(
        [sys.executable, "-m", "ddnkit.bench.apart", work],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        return None
    return float(done.stdout.splitlines()[-1])


def _measure(work: dict[str, Any]) -> int:
    from .comparison import Case
    from .contract import Request
    from .resolve import resolve

    bench: Any = resolve(work["bench"])
    request = Request(work["device"], work["dtype"], seed=work["seed"])
    case = Case(tuple(work["size"]), work["kind"])

    def once(at: Case, inputs: Any) -> None:
        field = {c.name: c for c in bench.competitors(at, request.device)}
        state = None
        for phase in field[work["competitor"]].prepare(inputs).values():
            state = phase(state)

    small = bench.small(case)
    for _ in range(2):
        once(small, bench.drawn(small, request))
    inputs = bench.drawn(case, request)
    before = _memory(request.device, reset=True)
    once(case, inputs)
    return _memory(request.device) - before


def _memory(device: str, reset: bool = False) -> int:
    if device == "cuda":
        torch.cuda.synchronize()
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    if reset:
        reset_peak_resident_memory()
    return peak_resident_memory()


if __name__ == "__main__":
    print(_measure(json.loads(sys.argv[1])))
