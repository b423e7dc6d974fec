"""The panels of the GNC paper: metrics over the training, median and range over the seeds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .run_figures import RunFigures, Series, read_run

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe and Ito's palette, told apart with any colour vision; yellow left out, faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINES = ("-", "--", ":", "-.")
_DPI = 150


@dataclass(frozen=True)
class Panel:
    """One panel: its file's name, title, the metric it shows and how.

    Attributes:
        name: stem of the PNG file.
        title: above the panel.
        metric: column of ``metrics.csv``; ``None`` for the sorted margins P_CM.
        logarithmic: whether the vertical axis is.
        bound: which theoretical value is dashed: of ``"ce"``, of the cosine ``"margin"``, or none.
        floor: on a logarithmic axis smaller values are drawn as this one. Rounding of float32
            weights leaves values of that size, or below zero, where the exact one is zero.
    """

    name: str
    title: str
    metric: str | None
    logarithmic: bool = False
    bound: str = ""
    floor: float = 1e-8


PANELS = (
    Panel("ce_loss", "Cross-entropy (training)", "train_loss", True, "ce"),
    Panel("ce_gap", "Cross-entropy above its bound", "ce_gap", True),
    Panel("cosine_margin", "Average cosine margin", "cosine_margin", False, "margin"),
    Panel("p_cm", r"$\mathcal{P}_{CM}$: sorted margins at the end", None, False, "margin"),
    Panel("nc1", "NC1: variability", "nc1", True, floor=1e-14),
    Panel("nc2", "NC2: classifier to ETF", "nc2", True),
    Panel("nc3", "NC3: self-duality", "nc3", True),
    Panel("equinorm", "W–H equinorm", "equinorm", True),
    Panel("train_top1", "Training top-1 (%)", "train_top1"),
    Panel("test_top1", "Test top-1 (%)", "test_top1"),
)


def draw_panels(folder: Path) -> list[Path]:
    """Draw every panel that the run has figures for, one by one and all in one.

    Lines are medians over the seeds, bands their range; dashed grey lines are the values of an
    exact simplex ETF. A variant has the same colour in all panels.

    Args:
        folder: a run folder with ``summary.csv``, and ``runs/<variant>/seed-*/margins.csv`` where
            margins were written.

    Returns:
        The PNG files written into ``figures/`` of ``folder``: ``panels.png``, then the single ones.

    Raises:
        ddnkit.InputError: the folder has no readable ``summary.csv``.
    """
    run = read_run(folder)
    panels = [panel for panel in PANELS if _series(panel, run)]
    target = folder / "figures"
    target.mkdir(exist_ok=True)
    written = [_save(_all_panels(panels, run), target / "panels.png")]
    for panel in panels:
        figure = _figure(5.2, 3.9)
        axes = figure.subplots()
        _draw(axes, panel, run)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=4, fontsize=9, frameon=False
        )
        written.append(_save(figure, target / f"{panel.name}.png"))
    return written


def _all_panels(panels: list[Panel], run: RunFigures) -> Figure:
    columns = min(5, len(panels)) or 1
    rows = -(-len(panels) // columns) or 1
    figure = _figure(3.3 * columns, 2.9 * rows + 0.5)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    legend: dict[str, Artist] = {}
    for axes, panel in zip(grid, panels, strict=False):
        _draw(axes, panel, run)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            legend.setdefault(label, handle)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    # The bound is the last in the legend, whichever panel is the first to have one.
    labels = sorted(legend, key=lambda label: label == _BOUND)
    figure.legend(
        [legend[label] for label in labels],
        labels,
        loc="outside lower center",
        ncols=min(max(len(labels), 1), 6),
        frameon=False,
    )
    return figure


_BOUND = "simplex ETF"


def _draw(axes: Axes, panel: Panel, run: RunFigures) -> None:
    over_steps = panel.metric is not None and run.early
    logarithmic = panel.logarithmic and _positive(panel, run)
    for variant, series in _series(panel, run).items():
        place = run.variants.index(variant)
        x = series.steps if over_steps or panel.metric is None else series.epochs
        colour = COLOURS[place % len(COLOURS)]
        median, low, high = (
            [max(value, panel.floor) for value in values] if logarithmic else values
            for values in (series.median, series.low, series.high)
        )
        axes.plot(
            x,
            median,
            label=variant,
            color=colour,
            linestyle=_LINES[place // len(COLOURS) % len(_LINES)],
            linewidth=1.6,
            marker="o" if panel.metric is not None and len(x) <= 40 else None,
            markersize=2.8,
        )
        axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    bound = {"ce": run.ce_bound, "margin": run.margin_bound}.get(panel.bound)
    if bound is not None:
        axes.axhline(bound, color="0.35", linestyle=(0, (4, 3)), linewidth=1.1, label=_BOUND)
    if over_steps:
        axes.set_xscale("log")
    if logarithmic:
        axes.set_yscale("log")
        _plain_ticks(axes)
    axes.set_title(panel.title, fontsize=10)
    if panel.metric is None:
        axes.set_xlabel("training sample, sorted", fontsize=9)
    else:
        axes.set_xlabel("step" if over_steps else "epoch", fontsize=9)
    axes.tick_params(labelsize=8, which="both")
    axes.grid(True, color="0.9", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _plain_ticks(axes: Axes) -> None:
    """Where less than two decades show, plain numbers at 1, 2 and 5 instead of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    bottom, top = axes.get_ylim()
    if top < 100 * bottom:
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _series(panel: Panel, run: RunFigures) -> dict[str, Series]:
    return run.margins if panel.metric is None else run.curves.get(panel.metric, {})


def _positive(panel: Panel, run: RunFigures) -> bool:
    return any(value > 0 for series in _series(panel, run).values() for value in series.median)


def _figure(width: float, height: float) -> Figure:
    # Figure and Agg canvas without pyplot: no global state, no window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> Path:
    # No version or date in the file: the same run draws the same bytes.
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})
    return path
