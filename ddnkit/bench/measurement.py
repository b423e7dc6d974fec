"""The figures of one competitor on one case, and those of all of them as a table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..recipe.pipeline import Table
from .floor import Floor, copy_rate, matmul_rate


@dataclass(frozen=True)
class Measurement:
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


def duration(seconds: float) -> str:
    """A time with three digits, in the unit that suits it."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{_digits(seconds / size)} {unit}"
    return f"{_digits(seconds / 1e-6)} µs"


def table(
    title: str,
    lines: Sequence[Measurement],
    floor: Floor | None,
    work: tuple[float, str],
    *,
    device: str,
    dtype: str,
) -> Table:
    """One case: a row a competitor, notes and the floor below.

    Times are medians, with the ratio to the first competitor's; the range is that of all phases together.
    The ratio of those comes with its range within a round: neighbours in a round are slowed alike.
    """
    timed = [line for line in lines if line.seconds]
    if not timed:
        reasons = [("competitor", "why there is no time"), *((m.competitor, m.note) for m in lines)]
        return Table(title, tuple(reasons))
    first = timed[0]
    phases = list(dict.fromkeys(phase for line in timed for phase in line.seconds))
    amount, unit = work
    head = ["", "n", *phases, *(["all"] if len(phases) > 1 else []), "[min, max]"]
    head += [f"{unit}/s"] if amount else []
    head += ["ratio"]
    head += ["memory"] if any(line.memory is not None for line in timed) else []
    head += ["difference"] if any(line.difference is not None for line in timed) else []
    extra = list(dict.fromkeys(name for line in timed for name in line.columns))
    rows: list[tuple[str, ...]] = [(*head, *extra)]
    notes = []
    for line in lines:
        if line.note:
            notes.append(f"{line.competitor}: {line.note}.")
        if not line.seconds:
            continue
        totals = line.totals()
        cells = [line.competitor, str(line.rounds)]
        cells += [_phase(line, first, phase, alone=len(phases) == 1) for phase in phases]
        cells += [duration(line.median())] if len(phases) > 1 else []
        cells += [f"[{duration(min(totals))}, {duration(max(totals))}]"]
        cells += [f"{amount / line.median():,.0f}"] if amount else []
        cells += [_ratio(line, first)]
        if "memory" in head:
            cells += ["" if line.memory is None else f"{line.memory / 2**20:,.0f} MB"]
        if "difference" in head:
            cells += ["" if line.difference is None else f"{line.difference:.0e}"]
        rows.append((*cells, *(line.columns.get(name, "") for name in extra)))
    if floor is not None:
        notes.append(_floor_note(floor, first, device, dtype))
    return Table(title, tuple(rows), " ".join(notes))


def _phase(line: Measurement, first: Measurement, phase: str, *, alone: bool) -> str:
    if phase not in line.seconds:
        return ""
    own = statistics.median(line.seconds[phase])
    if alone or line is first or phase not in first.seconds:
        return duration(own)
    other = statistics.median(first.seconds[phase])
    return f"{duration(own)} (×{_digits(own / other)})" if other else duration(own)


def _ratio(line: Measurement, first: Measurement) -> str:
    if line is first:
        return "1"
    middle = line.median() / first.median()
    pairs = list(zip(line.totals(), first.totals(), strict=False))
    if len(pairs) < 2 or line.extrapolated_from:
        return _digits(middle)
    ratios = [own / other for own, other in pairs]
    return f"{_digits(middle)} [{_digits(min(ratios))}, {_digits(max(ratios))}]"


def _floor_note(floor: Floor, first: Measurement, device: str, dtype: str) -> str:
    rate, traffic = matmul_rate(device, dtype), copy_rate(device)
    least = floor.seconds(rate, traffic)
    text = (
        f"Floor: {floor.operations / 1e9:,.3g} GFLOP{floor.what and f' ({floor.what})'} take "
        f"{duration(floor.operations / rate)} at the {rate / 1e9:,.0f} GFLOP/s of a large {dtype} "
        "product here"
    )
    if floor.bytes:
        text += (
            f", {floor.bytes / 1e6:,.0f} MB take {duration(floor.bytes / traffic)} at "
            f"{traffic / 1e9:,.0f} GB/s"
        )
    multiples = [
        f"{phase} {_digits(statistics.median(first.seconds[phase]) * rate / operations)}"
        for phase, operations in floor.phases.items()
        if phase in first.seconds
    ]
    by_phase = f" (phase by phase: {', '.join(multiples)})" if multiples else ""
    return f"{text}; {first.competitor} takes {_digits(first.median() / least)} times as long{by_phase}."


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
