"""Figures and tables of a deep_rfm run; nothing here imports torch.

The figures are those of Fig. 1 and 3–6 of *Average gradient outer product as a mechanism for deep neural
collapse* (NeurIPS 2024), and the accuracies.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from ddnkit_collapse.panels import (
    COLOURS,
    OVER_SEEDS,
    add_legend,
    draw_series,
    finish,
    new_figure,
    save,
)
from ddnkit_collapse.run_figures import RunFigures, read_run, read_settings, read_summary

from ddnkit import DamagedFileError, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Label and place among the colours of each stage; the paper's green, orange and blue.
_STAGES = {
    "input": (r"$X$", 2),
    "agop": (r"$M^{1/2}X$", 1),
    "features": (r"$\Phi(M^{1/2}X)$", 0),
}
_MEASURES = {
    "dnc1": r"DNC1: $\mathrm{tr}\,\Sigma_W\ /\ \mathrm{tr}\,\Sigma_B$",
    "dnc2": r"DNC2: $\|\bar\mu^{\top}\bar\mu - \Sigma_{\mathrm{ETF}}\|$",
}
#: Smaller values, which are rounding for float32 samples, are drawn as this one.
_FLOOR = 1e-14
#: Range of the inner products that colours show; most pairs of classes lie above the lowest.
_LOWEST, _HIGHEST = -0.4, 1.0

_NONE = "–"
#: The rows of ``summary.csv`` by variant, metric and layer.
_Rows: TypeAlias = dict[tuple[str, str, int], dict[str, str]]

CAPTIONS = {
    "collapse": "DNC1 = tr Σ_W / tr Σ_B (logarithmic) and DNC2 = ‖μ̄ᵀμ̄ − Σ_ETF‖ of the training samples "
    "in each layer: of its input X, after the root of the AGOP, M^{1/2}X, and after the feature map, "
    "Φ(M^{1/2}X). Both are 0 at collapse. After Fig. 3 and 4 of the Deep RFM paper (NeurIPS 2024). "
    + OVER_SEEDS,
    "gram": "Inner products of at most 500 training samples, ordered by class, less the global mean and "
    "divided by their norm: of the data, and of the previous layer's input times the root of its "
    "AGOP; one seed. At collapse the diagonal blocks are 1 and all else is −1/(K−1). After Fig. 1, 5 "
    "and 6 of the Deep RFM paper (NeurIPS 2024).",
    "accuracy": "Top-1 accuracy on the test set of the kernel predictor in each layer. That of the first "
    "layer is plain kernel regression, dashed. " + OVER_SEEDS,
}


def draw_deep_rfm(folder: Path) -> list[Path]:
    """Draw DNC1, DNC2, Gram matrices and accuracies of a run by layer.

    Args:
        folder: a run folder with ``summary.csv``, and the jobs' ``gram-*.npz``.

    Returns:
        The PNG files written into ``figures/`` of ``folder``.

    Raises:
        ddnkit.InputError: the folder has no readable ``summary.csv``.
    """
    run = read_run(folder)
    figures = {
        "collapse": _draw_collapse(run),
        "gram": _draw_grams(folder, run.variants),
        "accuracy": _draw_accuracy(run),
    }
    return [save(figure, folder, stem) for stem, figure in figures.items() if figure]


def _draw_collapse(run: RunFigures) -> Figure | None:
    """A column of panels for each variant."""
    if not run.curves.get("dnc1_input"):
        return None
    figure = new_figure(max(3.4 * len(run.variants), 4.6) + 0.3, 6.0)
    grid = figure.subplots(2, len(run.variants), squeeze=False, sharey="row")
    for column, variant in zip(grid.T, run.variants, strict=True):
        for axes, measure in zip(column, _MEASURES, strict=True):
            _draw_stages(axes, run, variant, measure)
            finish(axes, "", "layer")
            _number_layers(axes)
        column[0].set_title(variant, fontsize=10)
    for axes, label in zip(grid[:, 0], _MEASURES.values(), strict=True):
        axes.set_ylabel(label, fontsize=9)
    grid[0, 0].set_yscale("log")
    grid[1, 0].set_ylim(bottom=0)
    add_legend(figure)
    return figure


def _draw_stages(axes: Axes, run: RunFigures, variant: str, measure: str) -> None:
    floor = _FLOOR if measure == "dnc1" else None
    for stage, (label, place) in _STAGES.items():
        series = run.curves.get(f"{measure}_{stage}", {}).get(variant)
        if series:
            draw_series(axes, series.steps, series, label, place, floor=floor)


def _draw_accuracy(run: RunFigures) -> Figure | None:
    curves = run.curves.get("test_top1")
    if not curves:
        return None
    figure = new_figure(5.6, 4.1)
    axes = figure.subplots()
    dashed: dict[str, Any] = {"linestyle": (0, (4, 3)), "linewidth": 1.1}
    # Grey if it is the same for all variants, whose lines would hide each other.
    common = len({series.median[0] for series in curves.values()}) == 1
    for variant, series in curves.items():
        place = run.variants.index(variant)
        draw_series(axes, series.steps, series, variant, place)
        colour = "0.35" if common else COLOURS[place % len(COLOURS)]
        axes.axhline(series.median[0], color=colour, zorder=1, **dashed)
    axes.plot([], color="0.35", label="plain kernel regression", **dashed)
    finish(axes, "Predictor of each layer", "layer")
    axes.set_ylabel("test top-1 (%)", fontsize=9)
    _number_layers(axes)
    add_legend(figure, fontsize=9)
    return figure


def _number_layers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_grams(folder: Path, variants: list[str]) -> Figure | None:
    """A row for each variant: its first seed's pictures, by layer."""
    pictures = {variant: _read_grams(folder / "runs" / variant) for variant in variants}
    pictures = {variant: found for variant, found in pictures.items() if found}
    if not pictures:
        return None
    layers = sorted(set().union(*pictures.values()))
    figure = new_figure(2.1 * len(layers) + 0.9, 2.05 * len(pictures) + 0.3)
    grid = figure.subplots(len(pictures), len(layers), squeeze=False)
    for axes, layer in zip(grid[0], layers, strict=True):
        axes.set_title("Input data" if layer == 1 else f"Layer {layer}", fontsize=10)
    for row, (variant, found) in zip(grid, pictures.items(), strict=True):
        for axes, layer in zip(row, layers, strict=True):
            axes.set_xticks([])
            axes.set_yticks([])
            if layer in found:
                image = axes.imshow(
                    found[layer], vmin=_LOWEST, vmax=_HIGHEST, interpolation="nearest"
                )
        row[0].set_ylabel(variant, fontsize=9)
    bar = figure.colorbar(image, ax=grid, shrink=0.8, aspect=30, extend="min")
    bar.ax.tick_params(labelsize=8)
    return figure


def _read_grams(folder: Path) -> dict[int, np.ndarray]:
    """Gram matrices by layer, of the first seed that has some."""
    by_job: dict[Path, dict[int, np.ndarray]] = {}
    for file in folder.glob("seed-*/gram-*.npz"):
        try:
            with np.load(file) as content:
                gram = content["gram"].astype(np.float32)
        except Exception as error:  # numpy raises exceptions of many kinds
            raise DamagedFileError(
                f"{file}: is damaged: {type(error).__name__}: {error}"
            ) from error
        layer = int(file.stem.removeprefix("gram-"))
        by_job.setdefault(file.parent, {})[layer] = gram
    seeds = {int(job.name.removeprefix("seed-")): found for job, found in by_job.items()}
    return seeds[min(seeds)] if seeds else {}


def tables(folder: Path) -> list[Table]:
    """Tables of DNC1 through each layer and of each layer's test accuracy.

    Args:
        folder: a run folder with ``summary.csv``, and for each variant ``settings.yaml``.
    """
    rows = read_summary(folder)
    figures = {
        (row["variant"], row["metric"], int(float(row["step"]))): row
        for row in rows
        if row["median"]
    }
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    return [_collapse_table(variants, figures), _accuracy_table(folder, variants, figures)]


def _collapse_table(variants: list[str], figures: _Rows) -> Table:
    head = ("", "layer", "DNC1 of X", "× by AGOP", "of M^{1/2}X", "× by feature map",
            "of Φ(M^{1/2}X)", "DNC2 of X")  # fmt: skip
    rows: list[tuple[str, ...]] = [head]
    for variant in variants:
        for layer in _layers(variant, figures):
            X, projected, features, dnc2 = (
                _median(figures.get((variant, metric, layer)))
                for metric in ("dnc1_input", "dnc1_agop", "dnc1_features", "dnc2_input")
            )
            numbers = (X, projected / X, projected, features / projected, features, dnc2)
            rows.append((variant, str(layer), *map(_format, numbers)))
    note = (
        "Training samples, medians over seeds. “×”: the factor by which the step changes DNC1; below 1 it "
        "collapses the classes, above 1 it spreads them. The next layer's X are the features, each divided "
        "by its norm."
    )
    return Table("Deep neural collapse by layer", tuple(rows), note)


def _accuracy_table(folder: Path, variants: list[str], figures: _Rows) -> Table:
    rows = [("layer", *variants)]
    for layer in sorted({layer for variant in variants for layer in _layers(variant, figures)}):
        cells = (_format_spread(figures.get((variant, "test_top1", layer))) for variant in variants)
        rows.append((f"{layer}: plain kernel regression" if layer == 1 else str(layer), *cells))
    notes = ["Top-1 in per cent; median [minimum, maximum] over seeds, where they differ."]
    for text in (_sample_note(folder, variants, figures), *_solver_notes(variants, figures)):
        notes += [text] if text else []
    return Table("Test accuracy of each layer's predictor", tuple(rows), " ".join(notes))


def _sample_note(folder: Path, variants: list[str], figures: _Rows) -> str:
    """How many samples each variant used; only once if all agree."""
    notes: dict[str, None] = {}
    for variant in variants:
        train, test = (
            int(_median(figures.get((variant, metric, 1))))
            for metric in ("samples", "test_samples")
        )
        asked = read_settings(folder, variant).get("samples", train)
        fewer = "" if train >= asked else f" (all there are; {asked:,} were asked for)"
        notes[f"Trained on {train:,} samples{fewer}, tested on {test:,}."] = None
    return " ".join(notes)


def _solver_notes(variants: list[str], figures: _Rows) -> list[str]:
    """Layers whose kernel equations were not solved by Cholesky's factorisation, or not solved."""
    notes = []
    for variant in variants:
        layers = _layers(variant, figures)
        found = {
            "were solved by eigenvalues, K being singular": [
                f"{layer} (rank {_median(figures[variant, 'rank', layer]):.0f})"
                for layer in layers
                if (variant, "rank", layer) in figures
            ],
            "were solved by conjugate gradients": [
                str(layer) for layer in layers if (variant, "iterations", layer) in figures
            ],
            "were NOT solved to the solver's tolerance": [
                str(layer)
                for layer in layers
                if float(figures[variant, "solved", layer]["min"] or 0) < 1
            ],
        }
        notes += [f"{variant}: layers {', '.join(of)} {how}." for how, of in found.items() if of]
    return notes


def _layers(variant: str, figures: _Rows) -> list[int]:
    return sorted(
        layer for name, metric, layer in figures if (name, metric) == (variant, "samples")
    )


def _median(row: dict[str, str] | None) -> float:
    return float(row["median"]) if row else math.nan


def _format(value: float) -> str:
    return _NONE if math.isnan(value) else f"{value:.3g}"


def _format_spread(row: dict[str, str] | None) -> str:
    if row is None:
        return _NONE
    median, low, high = (float(row[key]) for key in ("median", "min", "max"))
    return f"{median:.2f}" + (f" [{low:.2f}, {high:.2f}]" if low < high else "")
