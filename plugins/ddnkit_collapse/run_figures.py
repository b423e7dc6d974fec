"""The figures of a run folder as series over its seeds, from which panels and tables are made."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from ddnkit import InputError, read_table, read_yaml


@dataclass
class Series:
    """Median and range over seeds of one metric of one variant, point by point.

    Attributes:
        epochs, steps: where the points lie (for P_CM, both are the ranks of the samples).
        median, low, high: over the seeds.
    """

    epochs: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    median: list[float] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)

    def append(self, epoch: float, step: float, median: float, low: float, high: float) -> None:
        """Add one point."""
        for values, value in zip(
            (self.epochs, self.steps, self.median, self.low, self.high),
            (epoch, step, median, low, high),
            strict=True,
        ):
            values.append(value)


@dataclass(frozen=True)
class RunFigures:
    """All series of a run folder.

    Attributes:
        variants: in the order of ``summary.csv``.
        curves: by metric, then by variant.
        margins: the sorted cosine margins by variant, at the end of the training.
        margin_bound: C/(C−1), where margins were written.
    """

    variants: list[str]
    curves: dict[str, dict[str, Series]]
    margins: dict[str, Series]
    margin_bound: float | None

    @property
    def ce_bound(self) -> float | None:
        """The lower bound of the cross-entropy that the CE gap is measured from."""
        for variant, gap in self.curves.get("ce_gap", {}).items():
            loss = self.curves.get("train_loss", {}).get(variant)
            if loss is not None and loss.steps[-1] == gap.steps[-1]:
                return loss.median[-1] - gap.median[-1]
        return None

    @property
    def early(self) -> bool:
        """Whether early evaluations are closer together, so that a logarithmic axis of steps suits them."""
        for by_variant in self.curves.values():
            for series in by_variant.values():
                gaps = [later - earlier for earlier, later in pairwise(series.steps)]
                if gaps and max(gaps) > 3 * gaps[0] > 0:
                    return True
        return False


def read_run(folder: Path) -> RunFigures:
    """Read ``summary.csv`` and ``runs/<variant>/seed-*/margins.csv`` of a run folder.

    Raises:
        ddnkit.InputError: there is no ``summary.csv``, or it lacks a column or holds no figure.
    """
    curves: dict[str, dict[str, Series]] = defaultdict(dict)
    variants: list[str] = []
    for row in read_summary(folder):
        if row["variant"] not in variants:
            variants.append(row["variant"])
        values = [_number(row[key]) for key in ("epoch", "step", "median", "min", "max")]
        if not math.isnan(values[2]):
            curves[row["metric"]].setdefault(row["variant"], Series()).append(*values)
    margins, bound = {}, None
    for variant in variants:
        read = [_read_margins(p) for p in sorted(folder.glob(f"runs/{variant}/seed-*/margins.csv"))]
        if read:
            margins[variant] = over_seeds([ranks_and_margins for ranks_and_margins, _ in read])
            bound = read[0][1]
    return RunFigures(variants, dict(curves), margins, bound)


def read_summary(folder: Path) -> list[dict[str, str]]:
    """The rows of ``summary.csv``, by column; rows of one variant and metric are in the order of steps.

    Raises:
        ddnkit.InputError: it is not there, or lacks a column or holds no figure.
    """
    path = folder / "summary.csv"
    figures = dict.fromkeys(("epoch", "median", "min", "max"), "figure")
    columns = {"variant": "text", "metric": "text", **figures, "step": "number"}
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; is it a run folder?")
    rows = read_table(path, columns)
    if not rows:
        raise InputError(f"{path}: expected rows with the columns {', '.join(sorted(columns))}")
    return rows


def read_settings(folder: Path, variant: str) -> dict[str, Any]:
    """The content of a variant's ``settings.yaml`` in a run folder; empty if there is no such file.

    Raises:
        ddnkit.InputError: it is not a mapping in YAML.
    """
    file = folder / "runs" / variant / "settings.yaml"
    return read_yaml(file) if file.exists() else {}


def _number(text: str) -> float:
    return float(text) if text else math.nan


def _read_margins(path: Path) -> tuple[dict[float, float], float]:
    rows = read_table(path, {"example": "count", "cosine_margin": "figure", "bound": "number"})
    if not rows:
        raise InputError(f"{path}: expected rows with a margin, and there is none")
    margins = {float(row["example"]): _number(row["cosine_margin"]) for row in rows}
    return margins, float(rows[0]["bound"])


def over_seeds(seeds: list[dict[float, float]]) -> Series:
    """Median and range over the seeds, at the numbered places at which every seed has a figure."""
    series = Series()
    for rank in sorted(set.intersection(*(set(seed) for seed in seeds))):
        values = [seed[rank] for seed in seeds]
        series.append(rank, rank, statistics.median(values), min(values), max(values))
    return series
