"""Figure and tables of a run of the pipeline low_rank_completion, from the CSV files of its jobs."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddnkit_collapse.panels import COLOURS, finish, new_figure, plain_ticks, save
from ddnkit_collapse.run_figures import Series, over_seeds, read_run, read_settings

from ddnkit import Table, read_table

from .settings import LowRankCompletion

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: What each job writes: errors of recovery; errors over a grid of ridges; noise and weight of each sensor.
RECOVERY, RIDGES, SENSORS = "recovery.csv", "ridges.csv", "sensors.csv"
#: Columns of `RECOVERY`: relative errors by method, and how the figure names them.
METHODS = {
    "path": "node, from a large ridge down",
    "node": "node, from its start alone",
    "descent": "gradient descent on factors",
    "means": "filled with means",
}
_COLOURS = dict(zip(METHODS, (COLOURS[0], COLOURS[5], COLOURS[1], COLOURS[6]), strict=True))
_RIDGE_COLUMNS = ("ridge", "equal_held_out", "equal_test", "exact_held_out", "exact_test")
#: Relative error below which a matrix counts as recovered.
_RECOVERED = 0.01
_LEAST = 1e-6
CAPTION = (
    "Above, recovery by the share of entries that are known: of all matrices, the part "
    "with a relative error below 1 %, and the median error; left of the dotted line the matrix has more "
    "degrees of freedom than known entries. Below, learning through the node, from entries that were held "
    "out: the error against the ridge, with equal weights, on a grid, and where gradient descent ends; the "
    "relative error on unseen entries over the steps; the weights that were learned, one for each sensor, "
    "against its noise. Dots and thin lines are the seeds; thick lines, medians."
)


@dataclass(frozen=True)
class _Run:
    """The rows of all finished jobs.

    Attributes:
        settings: of the run. recovery: rows of all seeds. ridges, sensors: rows, seed by seed.
        metrics: (steps, held_out, test, ridge, masked, of_ridge, at), seed by seed, by column.
    """

    settings: LowRankCompletion
    recovery: list[dict[str, float]]
    ridges: list[list[dict[str, float]]]
    sensors: list[list[dict[str, float]]]
    metrics: list[list[dict[str, float]]]

    def over_steps(self, column: str) -> Series:
        """Median and range over the seeds of a column of the metrics."""
        return over_seeds([{row["step"]: row[column] for row in rows} for rows in self.metrics])

    def recovered(self, method: str) -> dict[float, float]:
        """Part of the matrices that are recovered, by share of entries."""
        return self._by_share(
            method, lambda errors: sum(e < _RECOVERED for e in errors) / len(errors)
        )

    def error(self, method: str) -> dict[float, float]:
        """The median error, by share of entries."""
        return self._by_share(method, statistics.median)

    def _by_share(self, method: str, of: Callable[[list[float]], float]) -> dict[float, float]:
        errors = defaultdict(list)
        for row in self.recovery:
            errors[row["share"]].append(row[method])
        return {share: of(values) for share, values in errors.items()}

    def best(self, weights: str, column: str) -> list[float]:
        """By seed, a column of `RIDGES` at the ridge with the least held-out error."""
        return [
            min(rows, key=lambda row: row[f"{weights}_held_out"])[column] for rows in self.ridges
        ]

    @property
    def freedom(self) -> float:
        """Degrees of freedom of a matrix to recover, as a share of its entries."""
        m, r = self.settings.size, self.settings.rank
        return r * (2 * m - r) / m**2


def figures(folder: Path) -> list[Path]:
    """Draw recovery and learning: a PNG file in ``figures/``, for each variant."""
    runs = _read(folder)
    stem = "low_rank_completion"
    return [
        save(_draw(run), folder, stem if len(runs) == 1 else f"{stem}_{name}")
        for name, run in runs.items()
    ]


def tables(folder: Path) -> list[Table]:
    """Parts recovered, and errors of what was learned."""
    found = []
    for name, run in _read(folder).items():
        of = "" if len(_read(folder)) == 1 else f": {name}"
        shares = sorted(run.recovered("node"))
        rows = [
            (text, *(f"{100 * run.recovered(method)[share]:.0f} %" for share in shares))
            for method, text in METHODS.items()
        ]
        head = ("known entries", *(f"{100 * share:g} %" for share in shares))
        found.append(
            Table(
                f"Matrices recovered{of}",
                (head, *rows),
                f"Relative error below {100 * _RECOVERED:g} %, of all matrices of all seeds.",
            )
        )
        end = [rows[-1] for rows in run.metrics]
        errors = {
            "ridge from the grid, equal weights": run.best("equal", "equal_test"),
            "ridge learned, equal weights": [row["of_ridge"] for row in end],
            "ridge and weights learned": [row["test"] for row in end],
            "weights of the known noise, ridge from the grid": run.best("exact", "exact_test"),
        }
        rows = [
            (text, f"{statistics.median(x):.3f}", f"{min(x):.3f}–{max(x):.3f}")
            for text, x in errors.items()
        ]
        found.append(
            Table(
                f"Error on unseen entries{of}",
                (("", "median", "range over the seeds"), *rows),
                "‖X − C‖/‖C‖ over the entries that were neither used nor held out.",
            )
        )
    return found


def _read(folder: Path) -> dict[str, _Run]:
    """The variants that have a finished job, in the recipe's order."""
    found = {}
    for name in read_run(folder).variants:
        jobs = [file.parent for file in sorted((folder / "runs" / name).glob(f"seed-*/{SENSORS}"))]
        if not jobs:
            continue
        given = read_settings(folder, name)
        keys = [key for key in LowRankCompletion.model_fields if key in given and key != "paper"]
        found[name] = _Run(
            LowRankCompletion(**{key: given[key] for key in keys}),
            [row for job in jobs for row in _rows(job / RECOVERY, ("share", *METHODS))],
            [_rows(job / RIDGES, _RIDGE_COLUMNS) for job in jobs],
            [_rows(job / SENSORS, ("noise", "weight")) for job in jobs],
            [_rows(job / "metrics.csv", LowRankCompletion.columns) for job in jobs],
        )
    return found


def _rows(file: Path, columns: tuple[str, ...]) -> list[dict[str, float]]:
    lines = read_table(file, dict.fromkeys(columns, "number"))
    return [{column: float(line[column]) for column in columns} for line in lines]


def _draw(run: _Run) -> Figure:
    figure = new_figure(11.0, 7.0)
    grid = figure.add_gridspec(2, 6)
    _draw_recovery(figure.add_subplot(grid[0, :3]), figure.add_subplot(grid[0, 3:]), run)
    _draw_ridges(figure.add_subplot(grid[1, :2]), run)
    _draw_learning(figure.add_subplot(grid[1, 2:4]), run)
    _draw_weights(figure.add_subplot(grid[1, 4:]), run)
    return figure


def _draw_recovery(parts: Any, errors: Any, run: _Run) -> None:
    for method, text in METHODS.items():
        style = {"color": _COLOURS[method], "linewidth": 1.8, "marker": "o", "markersize": 3.5}
        recovered, error = run.recovered(method), run.error(method)
        shares = [100 * share for share in recovered]
        parts.plot(shares, [100 * part for part in recovered.values()], **style)
        errors.plot(
            shares, [min(max(e, _LEAST), 10.0) for e in error.values()], label=text, **style
        )
    least = 100 * min(run.freedom, min(run.recovered("node")))
    for axes in (parts, errors):
        axes.set_xlim(left=least - 4)
        axes.axvline(100 * run.freedom, color="0.35", linestyle=":", linewidth=1.2)
    errors.set_yscale("log")
    errors.axhline(_RECOVERED, color="0.7", linewidth=0.8)
    errors.legend(fontsize=9, frameon=False, loc="upper right", bbox_to_anchor=(1.0, 0.86))
    finish(parts, "Matrices recovered", "known entries, %")
    finish(errors, "Median relative error", "known entries, %")
    parts.set_ylabel("part with an error below 1 %, %", fontsize=9)
    errors.set_ylabel("‖X − C‖ / ‖C‖", fontsize=9)
    parts.annotate(
        "degrees of freedom",
        (100 * run.freedom, 97),
        xytext=(-4, 0),
        textcoords="offset points",
        rotation=90,
        ha="right",
        va="top",
        fontsize=8,
        color="0.35",
    )


def _draw_ridges(axes: Any, run: _Run) -> None:
    for rows, metrics in zip(run.ridges, run.metrics, strict=True):
        axes.plot(
            [row["ridge"] for row in rows],
            [row["equal_test"] for row in rows],
            color=COLOURS[1],
            linewidth=1,
        )
        axes.plot(metrics[-1]["at"], metrics[-1]["of_ridge"], "o", color=COLOURS[1], markersize=5)
    axes.set_xscale("log")
    finish(axes, "One unknown: the ridge", "ridge ρ")
    axes.set_ylabel("relative error, unseen entries", fontsize=9)


def _draw_learning(axes: Any, run: _Run) -> None:
    learned = (("of_ridge", COLOURS[1], "ridge alone"), ("test", COLOURS[0], "ridge and weights"))
    for column, colour, text in learned:
        series = run.over_steps(column)
        axes.plot(series.steps, series.median, color=colour, linewidth=1.8)
        axes.fill_between(
            series.steps, series.low, series.high, color=colour, alpha=0.2, linewidth=0
        )
        _name(axes, text, series.steps[-1], series.median[-1], colour)
    exact = statistics.median(run.best("exact", "exact_test"))
    axes.axhline(exact, color="0.35", linestyle="--", linewidth=1.2)
    axes.annotate(
        "weights of the known noise",
        (0, exact),
        xytext=(2, -4),
        textcoords="offset points",
        va="top",
        fontsize=8,
        color="0.35",
    )
    axes.set_ylim(0, None)
    axes.xaxis.get_major_locator().set_params(integer=True)
    count = run.settings.sensors + 1
    finish(axes, f"{count} unknowns, learned through the node", "step of Adam")


def _name(axes: Any, text: str, x: float, y: float, colour: str) -> None:
    axes.annotate(
        text,
        (x, y),
        xytext=(0, 9),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=9,
        color=colour,
    )


def _draw_weights(axes: Any, run: _Run) -> None:
    for rows in run.sensors:
        axes.plot(
            [row["noise"] for row in rows],
            [row["weight"] for row in rows],
            "o",
            color=COLOURS[0],
            markersize=3.5,
            alpha=0.6,
            markeredgewidth=0,
        )
    noise = sorted(row["noise"] for row in run.sensors[0])
    mean = math.exp(statistics.fmean(math.log(x) for x in noise))
    axes.plot(noise, [(mean / x) ** 2 for x in noise], color="0.35", linestyle="--", linewidth=1.2)
    axes.annotate(
        "1/σ²",
        (noise[0], (mean / noise[0]) ** 2),
        xytext=(8, 0),
        textcoords="offset points",
        ha="left",
        va="center",
        fontsize=9,
        color="0.35",
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    finish(axes, "Weights learned", "noise σ of the sensor (signal: 1)")
    axes.set_ylabel("weight, geometric mean 1", fontsize=9)
    plain_ticks(axes)
