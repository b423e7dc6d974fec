"""Figures and tables of a run of the regularity pipeline, from the ``rates.csv`` of its jobs."""

from __future__ import annotations

import itertools
import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddnkit_collapse.panels import COLOURS, add_legend, finish, new_figure, save
from ddnkit_collapse.run_figures import read_run, read_settings

from ddnkit import Table, read_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: What each job writes: a line for each part of the draws, loss and rate.
RATES = "rates.csv"
#: The curve of dot regression in it.
DOT_REGRESSION = "DR, γ = √(E_H/E_W)"
_HIGHEST = 1.1
_BOUND = {"color": "0.35", "linestyle": (0, (4, 3)), "linewidth": 1.1}
#: By the stem of the figure's file.
CAPTIONS = {
    "regularity": "η of one gradient step against the angle between h and its classifier vector, the "
    "median of each tenth of the draws, over the seeds. Above without projection, where values over "
    f"{_HIGHEST} are cut off; below with projection onto ‖h‖² ≤ E_H.",
    "regularity_violations": "Share of the draws whose η(CE) is below the theorem's bound, without "
    "projection. The theorem claims none where all p_k, k ≠ c, are equal. Elsewhere it claims nothing, and "
    "near h* CE with its best rate is below the bound (derived in ddnkit_longtail/regularity.py).",
}


def figures(folder: Path) -> list[Path]:
    """Draw η, and the share of draws below the bound, against the angle: PNG files in ``figures/``."""
    variants = _read(folder)
    if not variants:
        return []
    drawn = {"regularity": _draw_eta(variants), "regularity_violations": _draw_share(variants)}
    return [save(figure, folder, name) for name, figure in drawn.items()]


def tables(folder: Path) -> list[Table]:
    """How many draws are below the bound, by variant and rate."""
    variants = _read(folder)
    return [_table(variants)] if variants else []


@dataclass(frozen=True)
class _Variant:
    """What the jobs of one variant measured.

    Attributes:
        title: its name and which features it draws.
        seeds: number of its jobs.
        curves: lines of ``rates.csv`` by curve, then by step, those of all seeds together.
    """

    title: str
    seeds: int
    curves: dict[str, dict[int, list[dict[str, float]]]]

    def median(self, curve: str, figure: str) -> list[float]:
        """Of the seeds, step by step."""
        return [statistics.median(at[figure] for at in step) for step in self._steps(curve)]

    def share(self, curve: str, figure: str) -> list[float]:
        """Of the draws of all seeds, step by step, in per cent."""
        return [
            100 * sum(at[figure] for at in step) / sum(at["draws"] for at in step)
            for step in self._steps(curve)
        ]

    def all_of(self, curve: str, figure: str) -> list[float]:
        """Of each step of each seed."""
        return [at[figure] for step in self._steps(curve) for at in step]

    def _steps(self, curve: str) -> list[list[dict[str, float]]]:
        return [self.curves[curve][step] for step in sorted(self.curves[curve])]


def _read(folder: Path) -> list[_Variant]:
    """The variants that have a finished job, in the recipe's order."""
    paths = [folder / "runs" / name for name in read_run(folder).variants]
    files = {path: sorted(path.glob(f"seed-*/{RATES}")) for path in paths}
    return [_variant(path, found) for path, found in files.items() if found]


def _variant(path: Path, files: list[Path]) -> _Variant:
    settings = read_settings(path.parents[1], path.name)
    drawn = "all p_k equal, k ≠ c" if settings["condition"] else "h in any direction"
    curves: dict[str, dict[int, list[dict[str, float]]]] = defaultdict(lambda: defaultdict(list))
    for file in files:
        for line in read_table(file, {"step": "count", "curve": "text"}, others="figure"):
            step, curve = int(line.pop("step")), line.pop("curve")
            curves[curve][step].append({key: float(text or "nan") for key, text in line.items()})
    return _Variant(f"{path.name}: {drawn}", len(files), curves)


def _table(variants: list[_Variant]) -> Table:
    head = ("", "draws", "η below the bound", "least η − bound", "greatest η − bound",
            "both projected: nearer than DR")  # fmt: skip
    rows = [_cells(variant, curve) for variant in variants for curve in variant.curves]
    seeds = ", ".join(dict.fromkeys(str(variant.seeds) for variant in variants))
    note = (
        f"Draws of all seeds ({seeds} of each variant) together. The bound is (1 + cos∠(h, w_c))/2 of "
        "Theorem 2 of Inducing Neural Collapse in Imbalanced Learning, which assumes equal p_k; a draw "
        "counts as below it where it is so by more than rounding in float64. With projection onto "
        "‖h‖² ≤ E_H the two losses are compared with each other."
    )
    return Table("Draws below the bound of Theorem 2", (head, *rows), note)


def _cells(variant: _Variant, curve: str) -> tuple[str, ...]:
    def total(figure: str) -> str:
        return f"{sum(variant.all_of(curve, figure)):.0f}"

    return (
        f"{variant.title}; {curve}",
        total("draws"),
        total("violations"),
        f"{min(variant.all_of(curve, 'least_excess')):.2g}",
        f"{max(variant.all_of(curve, 'greatest_excess')):.2g}",
        total("nearer_projected"),
    )


def _draw_eta(variants: list[_Variant]) -> Figure:
    figure, grid = _panels(2, variants)
    styles = _styles(variants)
    lowest = 1.0
    for (above, below), variant in zip(grid.T, variants, strict=True):
        angle, bound = (
            variant.median(DOT_REGRESSION, "angle"),
            variant.median(DOT_REGRESSION, "bound"),
        )
        for curve in variant.curves:
            eta = variant.median(curve, "eta")
            lowest = min(lowest, *eta)
            above.plot(angle, eta, label=curve, **styles[curve])
            below.plot(angle, variant.median(curve, "projected"), **styles[curve])
        for axes in (above, below):
            axes.plot(angle, bound, label="(1 + cos∠(h, w_c))/2", **_BOUND)
    grid[0][0].set_ylim(lowest - 0.01, _HIGHEST)
    grid[1][0].set_ylim(0, 1.02)
    grid[0][0].set_ylabel("η without projection", fontsize=9)
    grid[1][0].set_ylabel("η with projection", fontsize=9)
    add_legend(figure, fontsize=9)
    return figure


def _draw_share(variants: list[_Variant]) -> Figure:
    figure, grid = _panels(1, variants)
    styles = _styles(variants)
    for axes, variant in zip(grid[0], variants, strict=True):
        for curve in variant.curves:
            share = variant.share(curve, "violations")
            axes.plot(variant.median(DOT_REGRESSION, "angle"), share, label=curve, **styles[curve])
    grid[0][0].set_ylim(-3, 103)
    grid[0][0].set_ylabel("draws below the bound (%)", fontsize=9)
    add_legend(figure, fontsize=9)
    return figure


def _styles(variants: list[_Variant]) -> dict[str, dict[str, Any]]:
    """How each curve is drawn, in all panels alike."""
    names = dict.fromkeys(curve for variant in variants for curve in variant.curves)
    styles: dict[str, dict[str, Any]] = {
        name: {"color": colour, "marker": "o", "markersize": 2.8, "linewidth": 1.6}
        for name, colour in zip(names, itertools.cycle(COLOURS))
    }
    # Below the others, which may lie on it.
    styles[DOT_REGRESSION] |= {"linewidth": 4.5, "alpha": 0.45}
    return styles


def _panels(rows: int, variants: list[_Variant]) -> tuple[Figure, Any]:
    """A figure with a column of panels for each variant, and the grid of its axes."""
    figure = new_figure(4.4 * len(variants), 3.0 * rows + 0.6)
    grid = figure.subplots(rows, len(variants), squeeze=False, sharey="row")
    for column, variant in zip(grid.T, variants, strict=True):
        for axes in column:
            finish(
                axes,
                variant.title if axes is column[0] else "",
                "∠(h, w_c) (degrees)" if axes is column[-1] else "",
            )
    return figure, grid
