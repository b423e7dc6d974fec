"""The figures of a network's fully connected layers, after Fig. 2 and 7–12 of the Deep RFM paper.

*Average gradient outer product as a mechanism for deep neural collapse* (NeurIPS 2024). Nothing here
imports torch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ddnkit_collapse.captions import OVER_SEEDS
from ddnkit_collapse.panels import (
    add_legend,
    draw_series,
    finish,
    new_figure,
    plain_ticks,
    save,
)
from ddnkit_collapse.run_figures import RunFigures, Series, read_run

from .settings.networks import LAYERS

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
#: Smaller values are drawn as this one: of float32 features they are rounding.
_FLOOR = 1e-12

CAPTIONS = {
    "decomposition": "DNC1 = tr Σ_W / tr Σ_B through each fully connected layer, W = USVᵀ: of what it is "
    "given, after its right singular vectors and singular values, and after U and the non-linearity. "
    "After Fig. 2 and 7–9 of the Deep RFM paper (NeurIPS 2024). " + OVER_SEEDS,
    "nfa": "Shares of the variance within and between classes after the last layer; Pearson correlation "
    "of WᵀW with the square root of the AGOP of each layer's input; the loss that is minimised, in "
    "evaluation mode. After Fig. 10–12 of the Deep RFM paper (NeurIPS 2024). " + OVER_SEEDS,
}


def draw_layers(folder: Path) -> list[Path]:
    """Draw what the fully connected layers of a run do, a row of panels for each variant.

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
    figures = {"decomposition": _decomposition(run, variants), "nfa": _training(run, variants)}
    return [save(figure, folder, stem) for stem, figure in figures.items()]


def layer_numbers(run: RunFigures, variant: str) -> list[int]:
    """The layers that a variant has, numbered from 1."""
    return [k for k in range(1, LAYERS + 1) if variant in run.curves.get(f"dnc1_input_{k}", {})]


def _decomposition(run: RunFigures, variants: list[str]) -> Figure:
    columns = max(len(layer_numbers(run, variant)) for variant in variants)
    figure = new_figure(2.5 * columns + 0.9, 2.5 * len(variants) + 0.5)
    grid = figure.subplots(len(variants), columns, squeeze=False, sharey="row")
    for row, variant in zip(grid, variants, strict=True):
        layers = layer_numbers(run, variant)
        for k, axes in zip(layers, row, strict=False):
            for stage, (label, place) in _STAGES.items():
                _draw(axes, run, variant, f"dnc1_{stage}_{k}", label, place)
            finish(axes, f"Layer {k}", "epoch")
            _logarithmic(axes)
        for axes in row[len(layers) :]:
            axes.set_axis_off()
        row[0].set_ylabel(f"{variant}\n{_RATIO}" if len(variants) > 1 else _RATIO, fontsize=9)
    add_legend(figure)
    return figure


def _training(run: RunFigures, variants: list[str]) -> Figure:
    """Three parts side by side, each with a legend of its own, since colours differ in meaning."""
    figure = new_figure(12.4, 2.8 * len(variants) + 0.5)
    parts = figure.subfigures(1, 3, squeeze=False, width_ratios=(1, 1.35, 1))[0]
    columns = [part.subplots(len(variants), squeeze=False)[:, 0] for part in parts]
    for variant, *row in zip(variants, *columns, strict=True):
        _variability(row[0], run, variant)
        _correlations(row[1], run, variant)
        _objective(row[2], run, variant)
        if len(variants) > 1:
            row[0].set_ylabel(variant, fontsize=9)
    add_legend(*parts, fontsize=8)
    return figure


def _variability(axes: Axes, run: RunFigures, variant: str) -> None:
    last = layer_numbers(run, variant)[-1]
    ratio = run.curves.get(f"dnc1_output_{last}", {}).get(variant)
    if ratio:
        within = r"$\mathrm{tr}\,\Sigma_W\ /\ \mathrm{tr}\,\Sigma_T$"
        between = r"$\mathrm{tr}\,\Sigma_B\ /\ \mathrm{tr}\,\Sigma_T$"
        # Σ_T = Σ_W + Σ_B
        shares = {between: lambda r: 1 / (1 + r), within: lambda r: r / (1 + r)}
        for place, (label, share) in enumerate(shares.items()):
            draw_series(axes, ratio.epochs, _mapped(ratio, share), label, place, floor=_FLOOR)
        _logarithmic(axes)
    finish(axes, f"Variance after layer {last}", "epoch")


def _correlations(axes: Axes, run: RunFigures, variant: str) -> None:
    for k in layer_numbers(run, variant):
        _draw(axes, run, variant, f"nfa_{k}", f"Layer {k}", k - 1, floor=None)
    finish(axes, "Neural feature ansatz: correlation", "epoch")
    axes.set_ylim(min(0, axes.get_ylim()[0]), 1.02)


def _objective(axes: Axes, run: RunFigures, variant: str) -> None:
    _draw(axes, run, variant, "objective", "training samples", 6)
    finish(axes, "Loss that is minimised", "epoch")
    _logarithmic(axes)


def _draw(
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


def _logarithmic(axes: Axes) -> None:
    axes.set_yscale("log")
    plain_ticks(axes)


def _mapped(series: Series, function: Callable[[float], float]) -> Series:
    """A series of what a monotone function makes of each value."""
    ends = [list(map(function, values)) for values in (series.low, series.high)]
    return Series(
        series.epochs,
        series.steps,
        list(map(function, series.median)),
        *(list(map(choose, *ends)) for choose in (min, max)),
    )
