"""Figures and tables of a network's fully connected layers; nothing here imports torch.

The figures are those of Fig. 2 and 7–12 of *Average gradient outer product as a mechanism for deep neural
collapse* (NeurIPS 2024).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddnkit_collapse.panels import (
    OVER_SEEDS,
    add_legend,
    draw_series,
    finish,
    new_figure,
    plain_ticks,
    save,
)
from ddnkit_collapse.run_figures import RunFigures, Series, read_run, read_settings, read_summary

from ddnkit import PublishedFigure, Table, published_figures, read_table

from .network_columns import LAYERS, STAGES, dnc1_column, nfa_column

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Label and place among the colours of each stage; the paper's blue, green and red.
_STAGES = {
    "input": (r"$\Phi(X)$", 0),
    "right": (r"$SV^{\top}\Phi(X)$", 2),
    "output": (r"$\mathrm{ReLU}(USV^{\top}\Phi(X))$", 1),
}
_RATIO = r"$\mathrm{tr}\,\Sigma_W\ /\ \mathrm{tr}\,\Sigma_B$"
#: Smaller values, which are rounding for float32 features, are drawn as this one.
_FLOOR = 1e-12

_NONE = "–"

CAPTIONS = {
    "decomposition": "DNC1 = tr Σ_W / tr Σ_B through each fully connected layer, W = USVᵀ: of its input, "
    "after its right singular vectors and singular values, and after U and the non-linearity. "
    "After Fig. 2 and 7–9 of the Deep RFM paper (NeurIPS 2024). " + OVER_SEEDS,
    "nfa": "Shares of the variance within and between classes after the last layer; Pearson correlation "
    "of WᵀW with the square root of the AGOP of each layer's input; the loss that is minimised, in "
    "evaluation mode. After Fig. 10–12 of the Deep RFM paper (NeurIPS 2024). " + OVER_SEEDS,
}


def draw_layers(folder: Path) -> list[Path]:
    """Draw DNC1 and NFA of the fully connected layers of a run, a row of panels for each variant.

    Args:
        folder: a run folder with ``summary.csv``.

    Returns:
        The PNG files written into ``figures/`` of ``folder``.

    Raises:
        ddnkit.InputError: the folder has no readable ``summary.csv``.
    """
    run = read_run(folder)
    variants = [variant for variant in run.variants if layer_numbers(run, variant)]
    if not variants:
        return []
    figures = {
        "decomposition": _draw_decomposition(run, variants),
        "nfa": _draw_training(run, variants),
    }
    return [save(figure, folder, stem) for stem, figure in figures.items()]


def layer_numbers(run: RunFigures, variant: str) -> list[int]:
    """The layers that a variant has, numbered from 1."""
    return [
        k for k in range(1, LAYERS + 1) if variant in run.curves.get(dnc1_column("input", k), {})
    ]


def _draw_decomposition(run: RunFigures, variants: list[str]) -> Figure:
    columns = max(len(layer_numbers(run, variant)) for variant in variants)
    figure = new_figure(2.5 * columns + 0.9, 2.5 * len(variants) + 0.5)
    grid = figure.subplots(len(variants), columns, squeeze=False, sharey="row")
    for row, variant in zip(grid, variants, strict=True):
        layers = layer_numbers(run, variant)
        for k, axes in zip(layers, row, strict=False):
            for stage, (label, place) in _STAGES.items():
                _draw_curve(axes, run, variant, dnc1_column(stage, k), label, place)
            finish(axes, f"Layer {k}", "epoch")
            _set_logarithmic(axes)
        for axes in row[len(layers) :]:
            axes.set_axis_off()
        row[0].set_ylabel(f"{variant}\n{_RATIO}" if len(variants) > 1 else _RATIO, fontsize=9)
    add_legend(figure)
    return figure


def _draw_training(run: RunFigures, variants: list[str]) -> Figure:
    """Three parts side by side, each with a legend of its own because their colours differ in meaning."""
    figure = new_figure(12.4, 2.8 * len(variants) + 0.5)
    parts = figure.subfigures(1, 3, squeeze=False, width_ratios=(1, 1.35, 1))[0]
    columns = [part.subplots(len(variants), squeeze=False)[:, 0] for part in parts]
    for variant, *row in zip(variants, *columns, strict=True):
        _draw_variability(row[0], run, variant)
        _draw_correlations(row[1], run, variant)
        _draw_objective(row[2], run, variant)
        if len(variants) > 1:
            row[0].set_ylabel(variant, fontsize=9)
    add_legend(*parts, fontsize=8)
    return figure


def _draw_variability(axes: Axes, run: RunFigures, variant: str) -> None:
    last = layer_numbers(run, variant)[-1]
    ratio = run.curves.get(dnc1_column("output", last), {}).get(variant)
    if ratio:
        within = r"$\mathrm{tr}\,\Sigma_W\ /\ \mathrm{tr}\,\Sigma_T$"
        between = r"$\mathrm{tr}\,\Sigma_B\ /\ \mathrm{tr}\,\Sigma_T$"
        # Σ_T = Σ_W + Σ_B
        shares = {between: lambda r: 1 / (1 + r), within: lambda r: r / (1 + r)}
        for place, (label, share) in enumerate(shares.items()):
            draw_series(axes, ratio.epochs, _transform(ratio, share), label, place, floor=_FLOOR)
        _set_logarithmic(axes)
    finish(axes, f"Variance after layer {last}", "epoch")


def _draw_correlations(axes: Axes, run: RunFigures, variant: str) -> None:
    for k in layer_numbers(run, variant):
        _draw_curve(axes, run, variant, nfa_column(k), f"Layer {k}", k - 1, floor=None)
    finish(axes, "Neural feature ansatz: correlation", "epoch")
    axes.set_ylim(min(0, axes.get_ylim()[0]), 1.02)


def _draw_objective(axes: Axes, run: RunFigures, variant: str) -> None:
    _draw_curve(axes, run, variant, "objective", "training samples", 6)
    finish(axes, "Loss that is minimised", "epoch")
    _set_logarithmic(axes)


def _draw_curve(
    axes: Axes,
    run: RunFigures,
    variant: str,
    metric: str,
    label: str,
    place: int,
    floor: float | None = _FLOOR,
) -> None:
    series = run.curves.get(metric, {}).get(variant)
    if series:
        draw_series(axes, series.epochs, series, label, place, floor=floor)


def _set_logarithmic(axes: Axes) -> None:
    axes.set_yscale("log")
    plain_ticks(axes)


def _transform(series: Series, function: Callable[[float], float]) -> Series:
    """The series of f of each value, for a monotone function f."""
    ends = [list(map(function, values)) for values in (series.low, series.high)]
    return Series(
        series.epochs,
        series.steps,
        list(map(function, series.median)),
        *(list(map(choose, *ends)) for choose in (min, max)),
    )


@dataclass(frozen=True)
class _Variant:
    """One variant of a run folder: its settings, and the last evaluation of each of its jobs."""

    name: str
    settings: dict[str, Any]
    ends: tuple[dict[str, str], ...]

    def values(self, column: str) -> list[float]:
        """The values of a column, of all jobs that have one."""
        return [float(end[column]) for end in self.ends if end.get(column)]

    @property
    def layers(self) -> list[int]:
        """Its layers, numbered from 1."""
        return [k for k in range(1, LAYERS + 1) if self.values(dnc1_column("input", k))]

    @property
    def published(self) -> PublishedFigure | None:
        """What its paper says of the NFA correlation over all layers, if anything."""
        return next(iter(published_figures(self.settings, "nfa")), None)


def tables(folder: Path) -> list[Table]:
    """The tables that a run folder has figures for.

    Args:
        folder: with ``summary.csv``, and for each variant ``settings.yaml`` and the jobs' ``metrics.csv``.
    """
    names = dict.fromkeys(row["variant"] for row in read_summary(folder))
    variants = [_read_variant(folder, name) for name in names]
    made = [
        _correlation_table([variant for variant in variants if variant.values(nfa_column(1))]),
        _fall_table([variant for variant in variants if variant.layers]),
    ]
    return [table for table in made if len(table.rows) > 1]


def _correlation_table(variants: list[_Variant]) -> Table:
    printed = [variant.published for variant in variants]
    compared = ["published"] * any(printed)
    numbers = [f"layer {k}" for k in range(1, LAYERS + 1)]
    rows = [("", *numbers, "all layers and seeds", *compared, "seeds")]
    for variant, figure in zip(variants, printed, strict=True):
        layers = [variant.values(nfa_column(k)) for k in range(1, LAYERS + 1)]
        together = _format_mean([value for layer in layers for value in layer])
        beside = [figure.text if figure else _NONE for _ in compared]
        seeds = str(len(variant.ends))
        rows.append((variant.name, *map(_format_mean, layers), together, *beside, seeds))
    note = (
        "Pearson correlation of WᵀW with the square root of the AGOP of the layer's input; mean ± "
        "standard deviation."
    )
    if compared:
        sources = "; ".join(dict.fromkeys(figure.source for figure in printed if figure))
        note += (
            f" Published: {sources}; “{_NONE}”: none for this data set, network, loss and optimiser. "
            "Start, length and rates of the training are not compared."
        )
    return Table("NFA correlation at the end", tuple(rows), note)


def _fall_table(variants: list[_Variant]) -> Table:
    stages = ("DNC1 of Φ(X)", "of SVᵀΦ(X)", "after U and ReLU")
    head = ("", "layer", *stages, "share of SVᵀ", "share of U and ReLU")
    rows: list[tuple[str, ...]] = [head]
    for variant in variants:
        through: list[tuple[float, float]] = []
        for k in variant.layers:
            falls = [fall for end in variant.ends if (fall := _log_falls(end, k))]
            through += falls
            ratios = (variant.values(dnc1_column(stage, k)) for stage in STAGES)
            rows.append(
                (variant.name, str(k), *map(_format_median, ratios), *_format_shares(falls))
            )
        rows.append((variant.name, "all", _NONE, _NONE, _NONE, *_format_shares(through)))
    note = (
        "DNC1 = tr Σ_W / tr Σ_B at the end of the training, W = USVᵀ; medians over seeds. Shares: of the "
        "fall of log DNC1 through the layer, its mean over seeds, or through all layers. Where one of the "
        "two steps raises DNC1 its share is below 0 %, and the other's above 100 %. "
        f"“{_NONE}”: DNC1 does not fall there."
    )
    return Table("Where DNC1 falls", tuple(rows), note)


def _log_falls(end: dict[str, str], k: int) -> tuple[float, float] | None:
    """How far log DNC1 falls by SVᵀ, and by U and the non-linearity; None if it was not measured."""
    ratios = [float(end.get(dnc1_column(stage, k)) or 0) for stage in STAGES]
    if min(ratios) <= 0:
        return None
    given, right, output = map(math.log, ratios)
    return given - right, right - output


def _format_shares(falls: list[tuple[float, float]]) -> tuple[str, str]:
    """The shares of SVᵀ, and of U and the non-linearity, in the sum of these falls."""
    right, output = (sum(parts) for parts in zip(*falls, strict=True)) if falls else (0, 0)
    if right + output <= 0:
        return _NONE, _NONE
    share = round(100 * right / (right + output))
    return f"{share} %", f"{100 - share} %"


def _format_median(values: list[float]) -> str:
    return f"{statistics.median(values):.3g}" if values else _NONE


def _format_mean(values: list[float]) -> str:
    return f"{statistics.fmean(values):.2f} ± {statistics.pstdev(values):.2f}" if values else _NONE


def _read_variant(folder: Path, name: str) -> _Variant:
    ends = (_last_row(path) for path in sorted(folder.glob(f"runs/{name}/seed-*/metrics.csv")))
    return _Variant(name, read_settings(folder, name), tuple(end for end in ends if end))


def _last_row(path: Path) -> dict[str, str]:
    return next(reversed(read_table(path, {}, others="figure", growing=True)), {})
