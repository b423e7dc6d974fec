"""The Bench contract: what ``ddnkit bench NAME`` runs. Without torch."""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..recipe.pipeline import Table


@dataclass(frozen=True)
class Request:
    """What ``ddnkit bench`` was asked for.

    Attributes:
        device: ``"cpu"`` or ``"cuda"``.
        dtype: ``"float32"`` or ``"float64"``; None: what the bench is usually run in.
        sizes: of the work, such as ``((1024, 100),)``; empty: the bench's own.
        only: names of the competitors asked for; empty: all.
        repeats: rounds, each of which takes every competitor once.
        budget: seconds that one competitor may take at one size; a slower one gets fewer rounds, at
            least its first call.
        memory: whether to measure peak memory, which on the CPU takes a process for each figure.
        seed: of everything random.
        progress: told what is measured next.
    """

    device: str = "cpu"
    dtype: str | None = None
    sizes: tuple[tuple[int, ...], ...] = ()
    only: tuple[str, ...] = ()
    repeats: int = 5
    budget: float = 60.0
    memory: bool = True
    seed: int = 0
    progress: Callable[[str], None] = lambda text: None


@dataclass(frozen=True)
class Result:
    """What a bench found.

    Attributes:
        tables: to read.
        measured: the same figures for programs, in plain types: what ``--json`` writes.
        figure: draws them into a file; None where there is nothing to draw.
    """

    tables: tuple[Table, ...]
    measured: tuple[dict[str, Any], ...] = ()
    figure: Callable[[Path], None] | None = None


class Bench(abc.ABC):
    """A comparison of ways to do the same work: the same inputs, in turn, in one run.

    A plugin is a subclass in the entry-point group ``ddnkit.benches``, made without arguments. Most
    are a `ddnkit.bench.Comparison`, which measures; a Bench is free to find its figures itself.

    Attributes:
        name: the one it was asked for by.
        has_figure: whether its results can be drawn.
    """

    name: str = ""
    has_figure: bool = False

    @abc.abstractmethod
    def run(self, request: Request) -> Result:
        """Measure what was asked for.

        Raises:
            InputError: where a size or a name in the request does not fit the bench.
        """
