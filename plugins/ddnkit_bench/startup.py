"""``ddnkit bench startup``: the time that commands take to start, against Python and torch alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ddnkit.bench import Case, Comparison, Competitor, Request

from . import Prepare

_COMMANDS: dict[str, tuple[list[str], int]] = {
    "ddnkit --help": (["-m", "ddnkit", "--help"], 0),
    "ddnkit list": (["-m", "ddnkit", "list"], 0),
    "ddnkit run, a misspelt recipe": (["-m", "ddnkit", "run", "no_such_recipe"], 2),
    "python -c pass": (["-c", "pass"], 0),
    "import click": (["-c", "import click"], 0),
    "import torch": (["-c", "import torch"], 0),
}


class Startup(Comparison):
    """Commands of ddnkit that need no torch, against bare Python and `import torch`."""

    measures_memory = False

    def cases(self, request: Request) -> list[Case]:
        """One: each command in a process of its own."""
        return [Case((), "a process of its own")]

    def inputs(self, case: Case, dtype: torch.dtype) -> Mapping[str, Any]:
        """None."""
        return {}

    def competitors(self, case: Case, device: str) -> Sequence[Competitor]:
        """The commands."""
        return [Competitor(name, _process(*_COMMANDS[name])) for name in _COMMANDS]


def _process(arguments: list[str], status: int) -> Prepare:
    def run(_: object) -> Mapping[str, torch.Tensor]:
        done = subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
        if done.returncode != status:
            raise RuntimeError(f"exit status {done.returncode} in place of {status}")
        return {}

    return lambda inputs: {"start to end": run}
