"""``summary.csv``: median, minimum and maximum over seeds of every figure at every evaluation."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..errors import DamagedFileError
from .files import write_whole
from .folder import RunFolder
from .record import KEYS, cell

HEADER = ("variant", "metric", "epoch", "step", "median", "min", "max", "n")


@dataclass(frozen=True)
class SummaryRow:
    """One figure of one variant at one evaluation, over the ``n`` seeds that have it."""

    variant: str
    metric: str
    epoch: float | None
    step: float
    median: float
    minimum: float
    maximum: float
    n: int

    def __str__(self) -> str:
        if self.n == 1:
            return f"{self.median:.4g}"
        return f"{self.median:.4g} [{self.minimum:.4g}, {self.maximum:.4g}]"


@dataclass(frozen=True)
class Summary:
    """The rows of a run, by variant, metric and step; variants and metrics in their own order.

    Attributes:
        damaged: a line for each job whose figures cannot be read, which are left out.
    """

    variants: tuple[str, ...]
    metrics: tuple[str, ...]
    rows: tuple[SummaryRow, ...]
    damaged: tuple[str, ...] = ()

    def last(self, variant: str, metric: str) -> SummaryRow | None:
        """The figure at the variant's last evaluation that has it."""
        rows = [row for row in self.rows if (row.variant, row.metric) == (variant, metric)]
        return rows[-1] if rows else None

    def headline(self) -> str | None:
        """The metric to compare by: test accuracy where it was measured, else the first that was."""
        rows = {row.metric for row in self.rows}
        measured = [metric for metric in self.metrics if metric in rows]
        return "test_top1" if "test_top1" in measured else next(iter(measured), None)


def summarise(folder: RunFolder, order: Sequence[str] = ()) -> Summary:
    """The summary of all figures in ``folder``, unfinished jobs included; variants as ``order``."""
    values: dict[tuple[str, str], dict[tuple[float, float | None], list[float]]] = {}
    metrics: dict[str, None] = {}
    found: dict[str, None] = {}
    damaged: list[str] = []
    for job in folder.jobs():
        try:
            columns, rows = job.figures()
        except DamagedFileError as error:
            damaged.append(f"{error}; {job.variant} seed {job.seed} is left out")
            continue
        found[job.variant] = None
        metrics.update(dict.fromkeys(column for column in columns if column not in KEYS))
        for row in rows:
            at = (row["step"] or 0.0, row["epoch"])
            for metric, value in row.items():
                if metric not in KEYS and value is not None:
                    values.setdefault((job.variant, metric), {}).setdefault(at, []).append(value)
    variants = [name for name in order if name in found]
    variants += [name for name in found if name not in variants]
    return Summary(
        tuple(variants),
        tuple(metrics),
        tuple(
            _row(variant, metric, epoch, step, seeds)
            for variant in variants
            for metric in metrics
            for (step, epoch), seeds in sorted(
                values.get((variant, metric), {}).items(), key=lambda item: item[0][0]
            )
        ),
        tuple(damaged),
    )


def write_summary(folder: RunFolder, summary: Summary) -> None:
    """Write ``summary.csv``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows(_cells(summary.rows))
    write_whole(folder.summary, text.getvalue())


def _cells(rows: Iterable[SummaryRow]) -> Iterable[list[str]]:
    for row in rows:
        numbers = (row.epoch, row.step, row.median, row.minimum, row.maximum)
        yield [row.variant, row.metric, *map(cell, numbers), str(row.n)]


def _row(
    variant: str, metric: str, epoch: float | None, step: float, seeds: list[float]
) -> SummaryRow:
    if any(math.isnan(value) for value in seeds):
        # A seed that diverged must show: a median that skips it would flatter the variant.
        median = minimum = maximum = math.nan
    else:
        median, minimum, maximum = statistics.median(seeds), min(seeds), max(seeds)
    return SummaryRow(variant, metric, epoch, step, median, minimum, maximum, len(seeds))
