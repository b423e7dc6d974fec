"""The process in which `peak_memory` measures: ``python -m ddnkit.bench WORK``, which is JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

import torch

from ..memory import peak_resident_memory, reset_peak_resident_memory
from .case import Case
from .comparison import Comparison
from .contract import Request
from .forms import resolve


def main(text: str) -> None:
    """Print the bytes; what a competitor prints goes to standard error."""
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    work = json.loads(text)
    bench = resolve(work["bench"])
    if not isinstance(bench, Comparison):
        raise TypeError(f"{work['bench']} is no Comparison")
    case = Case(tuple(work["case"]["size"]), work["case"]["kind"])
    with answer:
        print(_growth(bench, case, work["competitor"], Request(**work["request"])), file=answer)


def _growth(bench: Comparison, case: Case, competitor: str, request: Request) -> int:
    """By how many bytes the memory of this process grows at most."""

    def once(at: Case, inputs: Mapping[str, Any]) -> None:
        field = {one.name: one for one in bench.competitors(at, request.device)}
        state = None
        for phase in field[competitor].prepare(inputs).values():
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
    if len(sys.argv) != 2 or not sys.argv[1].startswith("{"):
        sys.exit("this process measures memory for a bench; to run one: ddnkit bench NAME")
    main(sys.argv[1])
