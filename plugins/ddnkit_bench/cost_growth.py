"""``ddnkit bench cost_growth``: how time and memory grow with d, C, m and the batch.

A power law t = a nᵖ is fitted to each series by least squares on logarithms, over the upper half of
its sizes, because the fixed cost of a call dominates at small ones. ``--figure`` draws time and memory,
log-log.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddnkit_collapse.panels import COLOURS, add_legend, finish, new_figure

from ddnkit import InputError, Table
from ddnkit.bench import Bench, Case, Comparison, Forms, Measurement, Request, Result, duration

from .nearest_etf import NearestETFBench


@dataclass(frozen=True)
class Sweep:
    """One series: a competitor over sizes that differ in one number.

    Attributes:
        title: the work.
        variable: name of the number that varies.
        bench: the bench that has the competitor.
        competitor: its name.
        sizes: small to large.
        place: index of the number that varies.
        expected: the exponents of time that follow from its arithmetic, as text.
    """

    title: str
    variable: str
    bench: str
    competitor: str
    sizes: tuple[tuple[int, ...], ...]
    place: int
    expected: str


def _sweeps() -> list[Sweep]:
    powers = [2**k for k in range(7, 13)]
    return [
        Sweep("nearest ETF, C = 100", "d", "nearest_etf", "closed_form",
              tuple((d, 100) for d in powers), 0, "1 (dC² + C³)"),
        Sweep("nearest ETF, d = 2048", "C", "nearest_etf", "closed_form",
              tuple((2048, C) for C in (32, 64, 128, 256, 512, 1024)), 1, "2 to 3 (dC² + C³)"),
        Sweep("quadratic on the sphere, krylov", "m", "quadratic_on_sphere", "krylov",
              tuple((m, 1) for m in (10**3, 10**4, 10**5, 10**6, 4 * 10**6)), 0,
              "1 (a matrix-free product)"),
        Sweep("quadratic on the sphere, dense", "m", "quadratic_on_sphere", "dense",
              tuple((m, 1) for m in (50, 100, 200, 400, 800)), 0, "2 to 3 (m×m matrix, factored)"),
        Sweep("quadratic on the sphere, krylov, m = 1000", "batch", "quadratic_on_sphere", "krylov",
              tuple((1000, b) for b in (1, 4, 16, 64, 256, 1024)), 1, "1"),
    ]  # fmt: skip


class CostGrowth(Bench):
    """Time and memory against d, C, m and batch, with fitted exponents."""

    has_figure = True
    sweeps: Sequence[Sweep] = tuple(_sweeps())

    def run(self, request: Request) -> Result:
        """A table of exponents, and a table of points for each series."""
        if request.sizes or request.only:
            raise InputError(
                "--sizes, --only: cost_growth has its own sizes and competitors; leave them out"
            )
        series = [(sweep, self._measure_series(sweep, request)) for sweep in self.sweeps]
        tables = [_exponents(series), *(_points(sweep, lines) for sweep, lines in series)]
        measured = tuple(
            {"series": sweep.title, "size": list(size), **line.plain()}
            for sweep, lines in series
            for size, line in zip(sweep.sizes, lines, strict=True)
        )
        return Result(tuple(tables), measured, lambda path: _draw(series, path))

    def _measure_series(self, sweep: Sweep, request: Request) -> list[Measurement]:
        bench: Comparison = (
            NearestETFBench() if sweep.bench == "nearest_etf" else Forms(sweep.bench)
        )
        bench.name = sweep.bench
        alone = dataclasses.replace(request, only=(sweep.competitor,))
        return [bench.measure(Case(size), alone)[0] for size in sweep.sizes]


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """p of the power law a nᵖ nearest in logarithms to the upper half of the points; NaN for none."""
    pairs = [(math.log(n), math.log(v)) for n, v in zip(sizes, values, strict=True) if v > 0]
    upper = pairs[len(pairs) // 2 :] if len(pairs) >= 4 else pairs
    if len(upper) < 2:
        return math.nan
    x = sum(a for a, _ in upper) / len(upper)
    y = sum(b for _, b in upper) / len(upper)
    return sum((a - x) * (b - y) for a, b in upper) / sum((a - x) ** 2 for a, _ in upper)


def _varied_sizes(sweep: Sweep) -> list[float]:
    return [float(size[sweep.place]) for size in sweep.sizes]


def _seconds(line: Measurement) -> float:
    return line.median() if line.seconds else math.nan


def _exponents(series: Sequence[tuple[Sweep, list[Measurement]]]) -> Table:
    rows: list[tuple[str, ...]] = [
        ("work", "over", "time ∝", "memory ∝", "arithmetic says, of time")
    ]
    for sweep, lines in series:
        time = exponent(_varied_sizes(sweep), [_seconds(line) for line in lines])
        memory = exponent(_varied_sizes(sweep), [line.memory or 0.0 for line in lines])
        name = sweep.variable
        rows.append(
            (
                sweep.title,
                name,
                f"{name}^{time:.2f}",
                "" if math.isnan(memory) else f"{name}^{memory:.2f}",
                sweep.expected,
            )
        )
    note = "Forward and backward together; least squares on the logarithms of the larger half."
    return Table("Fitted exponents", tuple(rows), note)


def _points(sweep: Sweep, lines: Sequence[Measurement]) -> Table:
    rows: list[tuple[str, ...]] = [(sweep.variable, "time", "memory")]
    for n, line in zip(_varied_sizes(sweep), lines, strict=True):
        time = duration(line.median()) if line.seconds else line.note
        memory = "" if line.memory is None else f"{line.memory / 2**20:,.1f} MB"
        rows.append((f"{n:,.0f}", time, memory))
    notes = [
        f"{sweep.variable} = {n:,.0f}: {line.note}."
        for n, line in zip(_varied_sizes(sweep), lines, strict=True)
        if line.seconds and line.note
    ]
    return Table(sweep.title, tuple(rows), " ".join(notes))


def _draw(series: Sequence[tuple[Sweep, list[Measurement]]], path: Path) -> None:
    variables = list(dict.fromkeys(sweep.variable for sweep, _ in series))
    figure = new_figure(3.3 * len(variables), 6.2)
    grid: Any = figure.subplots(2, len(variables), squeeze=False)
    for place, (sweep, lines) in enumerate(series):
        column = variables.index(sweep.variable)
        seconds = [_seconds(line) for line in lines]
        megabytes = [(line.memory or math.nan) / 2**20 for line in lines]
        for row, (values, unit) in enumerate(((seconds, "seconds"), (megabytes, "MB"))):
            axes = grid[row][column]
            power = exponent(_varied_sizes(sweep), [0.0 if math.isnan(v) else v for v in values])
            axes.loglog(
                _varied_sizes(sweep), values, "o-", markersize=3, linewidth=1.5,
                color=COLOURS[place % len(COLOURS)], label=sweep.title,
            )  # fmt: skip
            if not math.isnan(power):
                axes.annotate(
                    f"{sweep.variable}$^{{{power:.2f}}}$",
                    (_varied_sizes(sweep)[-1], values[-1]),
                    textcoords="offset points",
                    xytext=(-4, 5),
                    ha="right",
                    fontsize=8,
                    color=COLOURS[place % len(COLOURS)],
                )
            finish(axes, "", sweep.variable)
            axes.xaxis.set_minor_formatter("")  # labels between decades would overlap
            axes.set_ylabel(unit, fontsize=9)
    add_legend(figure, fontsize=8)
    figure.savefig(path, dpi=150, metadata={"Software": None})
