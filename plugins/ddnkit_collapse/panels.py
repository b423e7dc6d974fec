"""The panels of the GNC paper: metrics over the training, as median and range over the seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .run_figures import RunFigures, Series, read_run

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

#: Okabe and Ito's palette, distinguishable with any colour vision; without yellow, too faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINES = ("-", "--", ":", "-.")
_DPI = 150

#: What lines and bands show, in every caption.
OVER_SEEDS = "Lines: median over the seeds; bands: their range."
#: Captions by the stem of the panel's file.
_CAPTIONS = {
    "panels": "All panels of the run.",
    "ce_loss": "Cross-entropy on the training set; dashed: its lower bound, at a simplex ETF.",
    "ce_gap": "Cross-entropy on the training set above its lower bound.",
    "cosine_margin": "Average cosine margin of the training samples; dashed: that of a simplex "
    "ETF, C/(C−1).",
    "p_cm": "P_CM: the cosine margins of the training samples at the end, sorted; dashed: that of "
    "a simplex ETF, C/(C−1).",
    "nc1": "NC1: variability of the features within their classes.",
    "nc2": "NC2: distance of the classifier to a simplex ETF, by its Gram matrix.",
    "nc3": "NC3: distance of classifier and class means from self-duality.",
    "equinorm": "W–H equinorm: difference between the relative spreads of the lengths of classifier "
    "rows and of class means.",
    "train_top1": "Top-1 accuracy on the training set, in per cent.",
    "test_top1": "Top-1 accuracy on the test set, in per cent.",
}


@dataclass(frozen=True)
class Panel:
    """One panel: its file's name, title, the metric it shows and how.

    Attributes:
        name: stem of the PNG file.
        title: above the panel.
        metric: column of ``metrics.csv``; ``None`` for the sorted margins P_CM.
        logarithmic: whether the vertical axis is.
        bound: the value at an exact simplex ETF, dashed; None if there is none.
        floor: on a logarithmic axis smaller values are drawn as this one. Where the exact value is
            zero, rounding of float32 weights leaves values of that size, or negative ones.
    """

    name: str
    title: str
    metric: str | None
    logarithmic: bool = False
    bound: float | None = None
    floor: float = 1e-8


def _panels(run: RunFigures, further: Sequence[str]) -> list[Panel]:
    """The panels of the paper for which the run has figures, and one of each further column."""
    ce, margin = run.ce_bound, run.margin_bound
    panels = [
        Panel("ce_loss", "Cross-entropy (training)", "train_loss", True, ce),
        Panel("ce_gap", "Cross-entropy above its bound", "ce_gap", True),
        Panel("cosine_margin", "Average cosine margin", "cosine_margin", False, margin),
        Panel("p_cm", r"$\mathcal{P}_{CM}$: sorted margins at the end", None, False, margin),
        Panel("nc1", "NC1: variability", "nc1", True, floor=1e-14),
        Panel("nc2", "NC2: classifier to ETF", "nc2", True),
        Panel("nc3", "NC3: self-duality", "nc3", True),
        Panel("equinorm", "W–H equinorm", "equinorm", True),
        Panel("train_top1", "Training top-1 (%)", "train_top1"),
        Panel("test_top1", "Test top-1 (%)", "test_top1"),
    ]
    taken = {"panels", *(panel.name for panel in panels)}
    shown = {panel.metric for panel in panels}
    panels += [
        Panel(f"{metric}_" if metric in taken else metric, metric, metric)
        for metric in further
        if metric not in shown
    ]
    return [panel for panel in panels if _series(panel, run)]


def caption(stem: str) -> str:
    """The caption of the figure in the file ``stem``.png."""
    return f"{_CAPTIONS.get(stem, stem.replace('_', ' ') + '.')} {OVER_SEEDS}"


def draw_panels(folder: Path, further: Sequence[str] = ()) -> list[Path]:
    """Draw every panel for which the run has figures, each in a file and all in one.

    Lines are medians over the seeds, bands their range; dashed grey lines are the values of an
    exact simplex ETF. A variant has the same colour in all panels.

    Args:
        folder: a run folder with ``summary.csv``, and ``runs/<variant>/seed-*/margins.csv`` where
            margins were written.
        further: columns of ``metrics.csv`` that get a panel each besides.

    Returns:
        The PNG files written into ``figures/`` of ``folder``: ``panels.png``, then the single ones.

    Raises:
        ddnkit.InputError: the folder has no readable ``summary.csv``.
    """
    run = read_run(folder)
    panels = _panels(run, further)
    written = [save(panel_grid(panels, run, columns=5), folder, "panels")]
    for panel in panels:
        figure = new_figure(5.2, 3.9)
        draw_panel(figure.subplots(), panel, run)
        add_legend(figure, fontsize=9)
        written.append(save(figure, folder, panel.name))
    return written


def panel_grid(
    panels: Sequence[Panel], run: RunFigures, *, columns: int, height: float = 2.9
) -> Figure:
    """Draw panels that belong together side by side, with one legend for all of them.

    Args:
        panels: row by row.
        run: what they are drawn from.
        columns: how many at most are in a row.
        height: of a row, in inches.
    """
    columns = min(columns, len(panels)) or 1
    rows = -(-len(panels) // columns) or 1
    figure = new_figure(3.3 * columns, height * rows + 0.5)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, panel in zip(grid, panels, strict=False):
        draw_panel(axes, panel, run)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    add_legend(figure)
    return figure


def add_legend(*parts: Figure | SubFigure, fontsize: int = 10) -> None:
    """Add a legend below the axes, with every line of a figure once and the bound last.

    Args:
        parts: a figure, or subfigures side by side, each with its own legend. The figure grows by the
            rows of the legend, so that its axes keep their size.
        fontsize: of the legend.
    """
    rows = max(_draw_legend(part, fontsize) for part in parts)
    whole = parts[0].figure
    whole.set_figheight(whole.get_figheight() + 0.021 * fontsize * (rows - 1))


def _draw_legend(figure: Figure | SubFigure, fontsize: int) -> int:
    """Draw a legend; returns its number of rows, at least 1."""
    legend: dict[str, Artist] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            legend.setdefault(label, handle)
    if not legend:
        return 1
    labels = sorted(legend, key=lambda label: label == _BOUND)
    columns = _columns(labels, fontsize, figure.bbox.width / figure.dpi)
    figure.legend(
        [legend[label] for label in labels],
        labels,
        loc="outside lower center",
        ncols=columns,
        fontsize=fontsize,
        frameon=False,
    )
    return -(-len(labels) // columns)


def _columns(labels: list[str], fontsize: int, width: float) -> int:
    """How many columns of a legend fit into a width in inches, at most 6."""
    from matplotlib.textpath import TextPath

    points = [TextPath((0, 0), label, size=fontsize).get_extents().width for label in labels]
    for columns in range(min(len(labels), 6), 1, -1):
        text = sum(part.max() for part in np.array_split(points, columns))
        # A line with the space beside it takes 4.8 times the font's size by default.
        if text + 4.8 * fontsize * columns <= 72 * width:
            return columns
    return 1


_BOUND = "simplex ETF"


def draw_panel(axes: Axes, panel: Panel, run: RunFigures) -> None:
    """Draw one panel: a line and a band for each variant.

    Over epochs, or over steps where evaluations come closer together early on.
    """
    over_steps = panel.metric is not None and run.early
    floor = panel.floor if panel.logarithmic and _positive(panel, run) else None
    for variant, series in _series(panel, run).items():
        draw_series(
            axes,
            series.steps if over_steps or panel.metric is None else series.epochs,
            series,
            variant,
            run.variants.index(variant),
            floor=floor,
            points=panel.metric is not None,
        )
    if over_steps:
        axes.set_xscale("log")
    over = "step" if over_steps else "epoch"
    finish(axes, panel.title, over if panel.metric else "training sample, sorted", panel.bound)
    if floor is not None:
        axes.set_yscale("log")
        plain_ticks(axes)


def draw_series(
    axes: Axes,
    x: Sequence[float],
    series: Series,
    label: str,
    place: int,
    *,
    floor: float | None = None,
    points: bool = True,
) -> None:
    """Draw a median as a line and its range over the seeds as a band.

    Args:
        axes: where to.
        x: where its points lie.
        series: the values.
        label: in the legend.
        place: among the lines of the run, from 0; it determines colour and dashes.
        floor: smaller values are drawn as this one; None for no floor.
        points: whether points are marked if there are few.
    """
    colour = COLOURS[place % len(COLOURS)]
    median, low, high = (
        values if floor is None else [max(value, floor) for value in values]
        for values in (series.median, series.low, series.high)
    )
    axes.plot(
        x,
        median,
        label=label,
        color=colour,
        linestyle=_LINES[place // len(COLOURS) % len(_LINES)],
        linewidth=1.6,
        marker="o" if points and len(x) <= 40 else None,
        markersize=2.8,
    )
    axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)


def finish(axes: Axes, title: str, over: str, bound: float | None = None) -> None:
    """Give axes the style of all panels.

    Args:
        axes: with their lines drawn.
        title: above them.
        over: name of the horizontal axis.
        bound: the value at an exact simplex ETF, dashed.
    """
    if bound is not None:
        axes.axhline(bound, color="0.35", linestyle=(0, (4, 3)), linewidth=1.1, label=_BOUND)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(over, fontsize=9)
    axes.tick_params(labelsize=8, which="both")
    axes.grid(True, color="0.9", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def plain_ticks(axes: Axes) -> None:
    """On a logarithmic axis of less than two decades, label 1, 2 and 5 as plain numbers, not powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    bottom, top = axes.get_ylim()
    if top < 100 * bottom:
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _series(panel: Panel, run: RunFigures) -> dict[str, Series]:
    return run.margins if panel.metric is None else run.curves.get(panel.metric, {})


def _positive(panel: Panel, run: RunFigures) -> bool:
    values = (value for series in _series(panel, run).values() for value in series.median)
    return any(0 < value < math.inf for value in values)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that many inches."""
    # Figure and Agg canvas without pyplot: no global state, no window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, folder: Path, stem: str) -> Path:
    """Write a figure as ``figures/<stem>.png`` of a run folder; the same run gives the same bytes."""
    path = folder / "figures" / f"{stem}.png"
    path.parent.mkdir(exist_ok=True)
    # No version or date in the file.
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})
    return path
