"""Figure and table of a run of the pipeline orthogonal_layers, from its ``summary.csv`` and the singular
values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddnkit_collapse.panels import COLOURS, finish, new_figure, plain_ticks, save
from ddnkit_collapse.run_figures import RunFigures, read_run, read_settings

from ddnkit import Table, read_table

from .settings import OrthogonalLayers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: What each job writes: the singular values of the product of the layers, over the steps.
VALUES = "singular_values.csv"
_LEARNED = 1e-3
#: Losses and singular values below are rounding.
_LEAST = 1e-13
#: Of two names beside an axis, as a part of its height.
_APART = 0.12
_NAMES = {
    "gaussian": "free, Gaussian start",
    "orthogonal_start": "free, orthogonal start",
    "stiefel": "all orthogonal",
    "stiefel_but_last": "all but the last orthogonal",
}
_TARGETS = {
    "isometry": "teacher an isometry: singular values 1",
    "spread": "teacher with singular values 0.25 to 2.5",
}
#: By the stem of the figure's file.
CAPTIONS = {
    "orthogonal_layers": "Above, the loss over the steps, by teacher, for the best of each kind's learning "
    "rates: median over the seeds and their range; dotted, the least loss that is possible with all layers "
    "orthogonal. Below, the singular values of the product of all layers over the steps of one seed; at the "
    "right edge, dots are those of the teacher. Note the other scale for Gaussian layers.",
}


@dataclass(frozen=True)
class _Variant:
    """A variant with a finished job: its settings, and the singular values (by place) of the first seed."""

    name: str
    settings: OrthogonalLayers
    steps: list[float]
    values: list[list[float]]


def figures(folder: Path) -> list[Path]:
    """Draw losses and singular values: a PNG file in ``figures/``."""
    variants = _read(folder)
    return (
        [save(_draw(read_run(folder), variants), folder, "orthogonal_layers")] if variants else []
    )


def tables(folder: Path) -> list[Table]:
    """Steps, losses and singular values, by variant."""
    variants = _read(folder)
    if not variants:
        return []
    curves = read_run(folder).curves
    rows = []
    for variant in variants:
        loss = curves["loss"][variant.name]
        learned = [
            f"{step:.0f}"
            for step, value in zip(loss.steps, loss.median, strict=True)
            if value < _LEARNED
        ]
        floor = variant.settings.floor if variant.settings.layers == "stiefel" else 0.0
        ends = (
            f"{curves[name][variant.name].median[at]:.2g}"
            for at in (0, -1)
            for name in ("least", "largest")
        )
        rows.append(
            (
                variant.settings.target,
                _NAMES[variant.settings.layers],
                f"{curves['rate'][variant.name].median[-1]:g}",
                learned[0] if learned else "not reached",
                f"{loss.median[-1]:.1e}",
                f"{floor:.1e}" if floor else "0",
                *ends,
            )
        )
    head = (
        *("teacher", "layers", "rate", f"steps to a loss of {_LEARNED:g}", "loss at the end"),
        *(
            "least possible",
            "least σ before",
            "largest σ before",
            "least σ after",
            "largest σ after",
        ),
    )
    note = "Medians over the seeds. σ: singular values of the product of all layers."
    return [Table("Orthogonal layers", (head, *rows), note)]


def _read(folder: Path) -> list[_Variant]:
    """The variants that have a finished job, in the recipe's order."""
    found = []
    for name in read_run(folder).variants:
        files = sorted((folder / "runs" / name).glob(f"seed-*/{VALUES}"))
        if files:
            given = read_settings(folder, name)
            settings = OrthogonalLayers(
                **{key: given[key] for key in ("layers", "target", "outputs") if key in given}
            )
            found.append(_Variant(name, settings, *_values(files[0])))
    return found


def _values(file: Path) -> tuple[list[float], list[list[float]]]:
    lines = read_table(file, dict.fromkeys(("step", "place", "value"), "number"))
    steps = sorted({float(line["step"]) for line in lines})
    places = sorted({float(line["place"]) for line in lines})
    return steps, [
        [float(line["value"]) for line in lines if float(line["place"]) == place]
        for place in places
    ]


def _draw(run: RunFigures, variants: list[_Variant]) -> Figure:
    targets = [t for t in _TARGETS if any(v.settings.target == t for v in variants)]
    # Where there are both, the singular values for the teacher that asks for unlike ones.
    shown = {v.settings.layers: v for v in variants if v.settings.target == targets[-1]}
    figure = new_figure(11.0, 7.0)
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.2, 1)).ravel()
    for axes, target in zip(
        above.subplots(1, len(targets), squeeze=False)[0], targets, strict=True
    ):
        _draw_losses(axes, run, [v for v in variants if v.settings.target == target])
        finish(axes, _TARGETS[target], "step of gradient descent")
        axes.set_ylabel("loss  ‖P − T‖² / 2C", fontsize=9)
    scale = None
    grid = below.add_gridspec(1, len(shown))
    for i, kind in enumerate(kind for kind in _NAMES if kind in shown):
        # Those of Gaussian layers are many decades below the others: a scale of their own.
        own = kind == "gaussian" or scale is None
        axes = below.add_subplot(grid[i], sharey=None if own else scale)
        scale = scale if kind == "gaussian" else axes
        _draw_values(axes, shown[kind])
        finish(axes, _NAMES[kind], "step of gradient descent")
        axes.title.set_color(_colour(kind))
        axes.set_yscale("log")
        if i == 0:
            axes.set_ylabel("singular values of W_L ⋯ W_1", fontsize=9)
    if scale is not None:
        plain_ticks(scale)
    return figure


def _draw_losses(axes: Any, run: RunFigures, variants: list[_Variant]) -> None:
    ends: dict[str, float] = {}
    for variant in variants:
        series, kind = run.curves["loss"][variant.name], variant.settings.layers
        median, low, high = (
            [max(value, _LEAST) for value in values]
            for values in (series.median, series.low, series.high)
        )
        axes.plot(series.steps, median, color=_colour(kind), linewidth=1.8)
        axes.fill_between(series.steps, low, high, color=_colour(kind), alpha=0.2, linewidth=0)
        ends[kind] = median[-1]
    floor = variants[0].settings.floor
    if floor > 0:
        axes.axhline(floor, color="0.35", linestyle=":", linewidth=1.2)
    axes.set_yscale("log")
    _name_ends(axes, ends)


def _name_ends(axes: Any, ends: Mapping[str, float]) -> None:
    """The names of lines right of their ends, as far apart as two lines of text are high."""
    low, high = (math.log(limit) for limit in axes.get_ylim())
    at = -_APART
    for kind, end in sorted(ends.items(), key=lambda one: one[1]):
        at = max((math.log(end) - low) / (high - low), at + _APART)
        axes.text(
            1.02,
            at,
            _NAMES[kind].replace(", ", ",\n").replace("last ", "last\n"),
            transform=axes.transAxes,
            color=_colour(kind),
            fontsize=9,
            va="center",
        )


def _draw_values(axes: Any, variant: _Variant) -> None:
    for values in variant.values:
        axes.plot(
            variant.steps,
            [max(value, _LEAST) for value in values],
            color=_colour(variant.settings.layers),
            linewidth=1,
            alpha=0.75,
        )
    taught = variant.settings.singular_values
    axes.plot(
        [variant.steps[-1]] * len(taught),
        taught,
        color="0.1",
        marker="o",
        markersize=3,
        linestyle="",
        clip_on=False,
        zorder=5,
    )


def _colour(kind: str) -> str:
    return COLOURS[list(_NAMES).index(kind)]
