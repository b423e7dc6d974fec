"""Measured: the figures of one competitor on one case."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Measured:
    """One line of a comparison.

    Attributes:
        competitor: its name.
        seconds: of each phase, a figure a round; empty where it was not timed.
        memory: peak bytes beyond the inputs; None: not measured.
        difference: of its results from the reference's; None: nothing to compare.
        columns: what else a reader wants to know of its results, by heading.
        note: why it was not timed, or what else a reader must know.
        extrapolated_from: the sizes measured in place of this one.
    """

    competitor: str
    seconds: Mapping[str, Sequence[float]] = field(default_factory=dict)
    memory: float | None = None
    difference: float | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    extrapolated_from: tuple[tuple[int, ...], ...] = ()

    @property
    def rounds(self) -> int:
        """How often it was timed."""
        return len(next(iter(self.seconds.values()), ()))

    def totals(self) -> list[float]:
        """Seconds of all phases together, round by round."""
        return [sum(phases) for phases in zip(*self.seconds.values(), strict=True)]

    def median(self) -> float:
        """Of the totals, in seconds."""
        return statistics.median(self.totals())

    def plain(self) -> dict[str, Any]:
        """The same in plain types."""
        return {
            "competitor": self.competitor,
            "seconds": {phase: list(rounds) for phase, rounds in self.seconds.items()},
            "memory_bytes": self.memory,
            "difference": self.difference,
            "columns": dict(self.columns),
            "note": self.note,
            "extrapolated_from": [list(size) for size in self.extrapolated_from],
        }
