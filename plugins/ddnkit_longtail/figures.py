"""The figures of a long-tailed run: angles between the classes, and how well rare classes are learned.

They follow Fig. 3 to 5 of *Inducing Neural Collapse in Imbalanced Learning*; the accuracy by class and
the collapse of the rare classes are ours. Nothing here imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ddnkit_collapse.panels import (
    OVER_SEEDS,
    Panel,
    add_legend,
    draw_panel,
    draw_series,
    finish,
    new_figure,
    panel_grid,
    save,
)
from ddnkit_collapse.run_figures import RunFigures, Series, read_run

from .variants import Variant, class_number, etf_angle, etf_cosine, read_variants

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: By the prefix of its columns.
_SPLITS = {"": "Training", "test_": "Test"}
#: By label, from balanced to most imbalanced: the ratio, and the name of the variant.
_Groups = dict[str, dict[float, str]]
#: Up to so many classes are named on the axis.
_NAMED = 20
#: What a figure shows, by the stem of its file.
_SHOWN = {
    "cosines": "Cosines between the classes, on the training set and, where there is one, on the test "
    "set: mean and standard deviation over all pairs c ≠ k. h_c: mean of the features of class c; h_G: "
    "of all features; w_k: classifier vector. Dashed: the value at a simplex ETF, −1/(C−1), and 0 for a "
    "deviation.",
    "alignment": "Classifier and class means, on the training set and, where there is one, on the test "
    "set: mean over the classes of the cosine between class mean and own classifier vector, dashed: its "
    "value at a simplex ETF, 1; and squared distance of classifier and centred class means, each of "
    "Frobenius norm 1.",
    "class_accuracy": "Top-1 accuracy on each class at the end of the training, on the test set where "
    "there is one; a panel for each set of training samples. The classes are sorted by their training "
    "samples, largest first; grey: how many, logarithmic. Of more than 100 classes means of some that "
    "are next to each other are shown.",
    "minority": "Whether the rare classes collapse: the smallest angle between classifier vectors of the "
    "rarer half of the classes, and the smallest cosine between a feature and its own classifier vector; "
    "over the training and, where variants differ in nothing but the imbalance ratio, at its end from "
    "balanced to most imbalanced. Dashed: the value at a simplex ETF, arccos(−1/(C−1)) and 1.",
}


def draw_long_tail(folder: Path) -> list[Path]:
    """Draw the figures that compare long-tailed trainings, those that the run has data for.

    Args:
        folder: a run folder with ``summary.csv``, and for each variant ``settings.yaml`` and the
            jobs' ``classes.csv``.

    Returns:
        The PNG files written into ``figures/`` of ``folder``.

    Raises:
        ddnkit.InputError: the folder has no readable ``summary.csv``.
    """
    run = read_run(folder)
    variants = read_variants(folder, run.variants)
    figures = {
        "cosines": _cosines(run, variants),
        "alignment": _alignment(run),
        "class_accuracy": _class_accuracy(variants),
        "minority": _minority(run, variants),
    }
    return [save(figure, folder, stem) for stem, figure in figures.items() if figure]


def caption(stem: str) -> str | None:
    """The caption of the figure in the file ``stem``.png; None if it is not one of these."""
    return f"{_SHOWN[stem]} {OVER_SEEDS}" if stem in _SHOWN else None


def _cosines(run: RunFigures, variants: list[Variant]) -> Figure | None:
    between = etf_cosine(class_number(variants))
    shown = {
        "hh_cos_mean": (r"mean of $\cos(h_c - h_G,\ h_k - h_G)$", between),
        "hh_cos_std": (r"deviation of $\cos(h_c - h_G,\ h_k - h_G)$", 0.0),
        "hw_cos_mean": (r"mean of $\cos(h_c - h_G,\ w_k)$", between),
        "hw_cos_std": (r"deviation of $\cos(h_c - h_G,\ w_k)$", 0.0),
    }
    panels = [
        Panel(prefix + metric, f"{split}: {title}", prefix + metric, bound=bound)
        for prefix, split in _SPLITS.items()
        for metric, (title, bound) in shown.items()
    ]
    return _grid(panels, run, columns=4)


def _alignment(run: RunFigures) -> Figure | None:
    own = r"mean of $\cos(h_c - h_G,\ w_c)$"
    distance = r"$\|\tilde{W} - \tilde{H}\|_F^2$"
    panels = []
    for prefix, split in _SPLITS.items():
        cosine, apart = f"{prefix}hw_own_cos", f"{prefix}wh_distance"
        panels += [
            Panel(cosine, f"{split}: {own}", cosine, bound=1.0),
            # W and H are float32: this is what rounding leaves of a distance of zero.
            Panel(apart, f"{split}: {distance}", apart, logarithmic=True, floor=1e-14),
        ]
    return _grid(panels, run, columns=2)


def _grid(panels: Iterable[Panel], run: RunFigures, *, columns: int) -> Figure | None:
    measured = [panel for panel in panels if panel.metric in run.curves]
    return panel_grid(measured, run, columns=columns) if measured else None


def _class_accuracy(variants: list[Variant]) -> Figure | None:
    """A panel for each long tail that was trained on, so that its counts can stand behind the lines."""
    tails: dict[tuple[int, ...], list[tuple[int, Variant]]] = {}
    for place, variant in enumerate(variants):
        if variant.counts:
            tails.setdefault(variant.counts, []).append((place, variant))
    if not tails:
        return None
    tested = any(row["test_top1"] for variant in variants for job in variant.jobs for row in job)
    columns = min(len(tails), 3)
    rows = -(-len(tails) // columns)
    figure = new_figure(6.6 if columns == 1 else 4.4 * columns, 3.3 * rows + 0.5)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes, members in zip(grid, tails.values(), strict=False):
        for place, variant in members:
            series = variant.accuracies("test" if tested else "train")
            draw_series(axes, series.steps, series, variant.name, place)
        _classes_of(axes, members[0][1], largest=max(map(max, tails)))
    for axes in grid[::columns]:
        axes.set_ylabel("test top-1 (%)" if tested else "training top-1 (%)", fontsize=9)
    for axes in grid[len(tails) :]:
        axes.set_axis_off()
    grid[0].set_ylim(-3, 103)
    add_legend(figure)
    return figure


def _classes_of(axes: Axes, variant: Variant, *, largest: int) -> None:
    """The classes, the largest first: their training samples in grey, on an axis to the right."""
    counts = [variant.counts[c] for c in variant.ranked]
    ratio, total = variant.ratio or 0, sum(counts)
    finish(axes, f"Imbalance ratio {ratio:.3g}: {total:,} training samples", "class, largest first")
    axes.set_xlim(0.5, len(counts) + 0.5)
    if len(counts) <= _NAMED:
        names = [variant.jobs[0][c]["class"] for c in variant.ranked]
        axes.set_xticks(range(1, len(counts) + 1), names)
    behind = axes.twinx()
    edges = [place + 0.5 for place in range(len(counts) + 1)]
    label = "training samples (right axis)"
    behind.stairs(counts, edges, baseline=0.5, fill=True, color="0.93", label=label)
    behind.set_yscale("log")
    behind.set_ylim(0.5, 2 * largest)
    behind.tick_params(labelsize=8, which="both", colors="0.45")
    behind.spines[:].set_visible(False)
    axes.set_zorder(behind.get_zorder() + 1)
    axes.patch.set_visible(False)


def _minority(run: RunFigures, variants: list[Variant]) -> Figure | None:
    if "rare_angle" not in run.curves:
        return None
    angle = etf_angle(class_number(variants))
    panels = [
        Panel("rare_angle", "Smallest angle of rare classifiers (°)", "rare_angle", bound=angle),
        Panel("worst_cos", r"Smallest $\cos(h, w)$ to own classifier", "worst_cos", bound=1.0),
    ]
    panels = [panel for panel in panels if panel.metric in run.curves]
    groups = _by_ratio(variants)
    if not groups:
        return panel_grid(panels, run, columns=2)
    figure = new_figure(6.6 * len(panels), 3.9)
    # Two parts, since colours stand for variants on the left and for groups of them on the right.
    left, right = figure.subfigures(1, 2, squeeze=False)[0]
    for axes, panel in zip(left.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        draw_panel(axes, panel, run)
    for axes, panel in zip(right.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _over_ratio(axes, panel, run, groups)
    left.suptitle("Over the training", fontsize=11)
    right.suptitle("At its end, over the imbalance ratio", fontsize=11)
    add_legend(left, right)
    return figure


def _over_ratio(axes: Axes, panel: Panel, run: RunFigures, groups: _Groups) -> None:
    """The figures at the end of the training, a line for each group."""
    from matplotlib.ticker import NullLocator

    curves = run.curves[str(panel.metric)]
    for place, (label, members) in enumerate(groups.items()):
        series = Series()
        for ratio, name in members.items():
            if name in curves:
                end = curves[name]
                series.append(ratio, ratio, end.median[-1], end.low[-1], end.high[-1])
        draw_series(axes, series.steps, series, label, place)
    finish(axes, panel.title, "imbalance ratio", panel.bound)
    ratios = sorted({ratio for members in groups.values() for ratio in members})
    beside = (ratios[-1] / ratios[0]) ** 0.05
    axes.set_xscale("log")
    axes.set_xlim(ratios[-1] * beside, ratios[0] / beside)
    axes.set_xticks(ratios, [f"{ratio:.3g}" for ratio in ratios])
    axes.xaxis.set_minor_locator(NullLocator())


def _by_ratio(variants: list[Variant]) -> _Groups:
    """Variants that differ in nothing but the imbalance ratio.

    Labelled by what their names have in common, or by head and loss where that is nothing. Empty where
    no two variants differ so.
    """
    groups: dict[str, list[tuple[float, Variant]]] = {}
    for variant in variants:
        if variant.ratio is not None:
            imbalance = {**variant.section("imbalance"), "ratio": None}
            others = json.dumps({**variant.settings, "imbalance": imbalance}, sort_keys=True)
            groups.setdefault(others, []).append((variant.ratio, variant))
    labelled: _Groups = {}
    for members in groups.values():
        label = _common([variant for _, variant in members])
        if label in labelled:
            label += f" ({members[0][1].name})"
        descending = sorted(members, key=lambda member: -member[0])
        labelled[label] = {ratio: variant.name for ratio, variant in descending}
    return labelled if any(len(members) > 1 for members in labelled.values()) else {}


def _common(members: list[Variant]) -> str:
    """What the names of these variants have in common, such as ``method=etf``."""
    names = [variant.name.split(",") for variant in members]
    shared = [part for part in names[0] if all(part in name for name in names)]
    kinds = [str(members[0].section(kind).get("name")) for kind in ("head", "loss")]
    return ",".join(shared) or ", ".join(kinds)
