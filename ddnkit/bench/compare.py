"""A benchmark: forms of a node at several sizes, and their ratios.

A dense form that does not fit in memory is measured at a half and a quarter of the size, and
extrapolated by the power law through the two: t(n) = t(n/2)² / t(n/4).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .measure import Measurement, MeasurementError, measure_apart

#: m×m matrices alive at once in a dense form's backward: Hessian, rows being stacked, its factors.
_DENSE_COPIES = 4
#: Forms without an m×m matrix.
_MATRIX_FREE = ("closed_form", "krylov", "fixed_point", "unrolled")


@dataclass(frozen=True)
class Entry:
    """A measured or extrapolated line of the table."""

    form: str
    size: tuple[int, ...]
    forward: float
    backward: float
    memory: float
    extrapolated_from: tuple[Measurement, ...] = ()


def compare(
    node: str,
    sizes: Sequence[tuple[int, ...]],
    forms: Sequence[str],
    *,
    progress: Callable[[str], None],
    **settings: Any,
) -> list[Entry | str]:
    """Measure every form at every size; a line of text stands for what could not be measured."""
    entries: list[Entry | str] = []
    for size in sizes:
        for form in forms:
            progress(f"{form} at {_text(size)}")
            try:
                entries.append(_entry(node, form, size, progress, settings))
            except MeasurementError as error:
                entries.append(f"{form} at {_text(size)}: {error}")
    return entries


def _entry(
    node: str,
    form: str,
    size: tuple[int, ...],
    progress: Callable[[str], None],
    settings: dict[str, Any],
) -> Entry:
    if form in _MATRIX_FREE or fits(size, settings.get("dtype", "float32")):
        m = measure_apart(node, form, size, **settings)
        return Entry(form, size, m.forward, m.backward, m.memory)
    half, quarter = (tuple(max(n // k, 1) for n in size) for k in (2, 4))
    if not fits(half, settings.get("dtype", "float32")):
        raise MeasurementError("does not fit in memory, nor does half the size: not measured")
    measured = []
    for smaller in (quarter, half):
        progress(f"{form} at {_text(smaller)}, to extrapolate to {_text(size)}")
        measured.append(measure_apart(node, form, smaller, **{**settings, "repeats": 1}))
    small, large = measured

    def power_law(a: float, b: float) -> float:
        return b * b / a if a > 0 else float("nan")

    return Entry(
        form,
        size,
        power_law(small.forward, large.forward),
        power_law(small.backward, large.backward),
        power_law(small.memory, large.memory),
        tuple(measured),
    )


def fits(size: Sequence[int], dtype: str) -> bool:
    """Whether a dense form's matrices for y of this size fit in half of this machine's memory."""
    m = 1
    for n in size:
        m *= n
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return _DENSE_COPIES * m * m * (8 if dtype == "float64" else 4) < total / 2


def table(entries: Sequence[Entry | str]) -> str:
    """The entries as text, with the ratio of each form's backward to the quickest of its size."""
    lines = [
        f"{'form':<16}{'size':>12}{'forward':>11}{'backward':>11}{'memory':>11}  backward ratio"
    ]
    reference: dict[tuple[int, ...], float] = {}
    for entry in entries:
        if isinstance(entry, Entry):
            quickest = reference.get(entry.size, float("inf"))
            reference[entry.size] = min(quickest, entry.backward)
    for entry in entries:
        if isinstance(entry, str):
            lines.append(entry)
            continue
        ratio = entry.backward / reference.get(entry.size, float("nan"))
        note = "  extrapolated" if entry.extrapolated_from else ""
        lines.append(_line(entry, f"{ratio:,.1f}{note}"))
        lines += [
            _line(Entry(m.form, m.size, m.forward, m.backward, m.memory), "  measured, for that")
            for m in entry.extrapolated_from
        ]
    return "\n".join(lines)


def _line(entry: Entry, last: str) -> str:
    return (
        f"{entry.form:<16}{_text(entry.size):>12}{entry.forward:>9.3f} s{entry.backward:>9.3f} s"
        f"{entry.memory / 2**20:>8,.0f} MB  {last}"
    )


def _text(size: Sequence[int]) -> str:
    return "×".join(map(str, size))
