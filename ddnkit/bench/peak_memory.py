"""Peak memory of one competitor on one case, in a process of its own.

The growth of the resident set over its size once the inputs are made and libraries have loaded in
a call on a small case; on a GPU the growth of the allocator's own peak. The process is
``python -m ddnkit.bench``, which finds the bench by its name.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict

from ..errors import plain
from .case import Case
from .contract import Request

#: Of what a process that failed wrote to its standard error, so many lines and characters are told.
_LAST_LINES, _LAST_CHARACTERS = 3, 300


class MeasurementError(RuntimeError):
    """A measurement failed; the text says how."""


def peak_memory(bench: str, case: Case, competitor: str, request: Request) -> float:
    """The bytes that a competitor of the bench of that name takes beyond its inputs.

    Raises:
        MeasurementError: the process failed; the text says how it ended, and what it said last.
    """
    work = {
        "bench": bench,
        "case": asdict(case),
        "competitor": competitor,
        "request": {"device": request.device, "dtype": request.dtype, "seed": request.seed},
    }
    process = subprocess.run(
        [sys.executable, "-m", "ddnkit.bench", json.dumps(work)],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
        env={**os.environ, "PYTHONSAFEPATH": "1"},  # a file of the user's folder is no module
    )
    try:
        if process.returncode == 0:
            return float(process.stdout.split()[-1])
    except (ValueError, IndexError):
        pass
    raise MeasurementError(
        f"the process that measures it {_ending(process.returncode)}{_last_words(process.stderr)}"
    )


def _ending(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}" if status else "gave no figure"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"was ended by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}"


def _last_words(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()][-_LAST_LINES:]
    text = " | ".join(lines)[-_LAST_CHARACTERS:]
    return f": {plain(text, _LAST_CHARACTERS)}" if text else ""
