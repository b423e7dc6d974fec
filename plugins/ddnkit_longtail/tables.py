"""Tables of a long-tailed run for its report: accuracy by class size, and layer-peeled models.

Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

from ddnkit_collapse.run_figures import read_summary

from ddnkit import Table, published_figures

from .variants import Variant, class_number, etf_angle, read_variants

_NONE = "–"
_GROUPS = ("many", "medium", "few")
#: The figures at the end of the training, by variant and metric: rows of ``summary.csv``.
_Ends = dict[tuple[str, str], dict[str, str]]


def tables(folder: Path) -> list[Table]:
    """The tables that a run folder has figures for.

    Args:
        folder: with ``summary.csv``, and for each variant ``settings.yaml`` and the jobs'
            ``classes.csv``.
    """
    rows = read_summary(folder)
    ends = {(row["variant"], row["metric"]): row for row in rows}
    variants = read_variants(folder, dict.fromkeys(row["variant"] for row in rows))
    tested = [variant for variant in variants if (variant.name, "test_balanced") in ends]
    peeled = [
        variant
        for variant in variants
        if variant.section("backbone").get("name") == "free_features"
        and (variant.name, "rare_angle") in ends
    ]
    return [
        *([_by_class_size(tested, ends)] if tested else []),
        *([_layer_peeled(peeled, ends)] if peeled else []),
    ]


def _by_class_size(variants: list[Variant], ends: _Ends) -> Table:
    metrics = {"test top-1": "test_top1", **{group: f"test_{group}" for group in _GROUPS}}
    balanced = all(_same(variant, ends) for variant in variants)
    if not balanced:
        metrics["class average"] = "test_balanced"
    printed = [published_figures(variant.settings, "train_samples") for variant in variants]
    compared = ["published"] * any(printed)
    rows = [("", *metrics, "seeds", "training samples", *compared)]
    for variant, figures in zip(variants, printed, strict=True):
        cells = [_over_seeds(ends.get((variant.name, metric))) for metric in metrics.values()]
        seeds = ends[variant.name, "test_balanced"]["n"]
        beside = [figures[0].text if figures else _NONE for _ in compared]
        rows.append((variant.name, *cells, seeds, _samples(variant), *beside))
    note = "Median [minimum, maximum] over seeds at the end of the training, in per cent. "
    note += f"{_groups(variants)} “{_NONE}”: there is no class in the group."
    if balanced:
        note += " The average over the classes is the same as the top-1."
    if compared:
        sources = dict.fromkeys(figure.source for figures in printed for figure in figures)
        note += f" Published training samples: {'; '.join(sources)}."
    return Table("Accuracy by class size", tuple(rows), note)


def _same(variant: Variant, ends: _Ends) -> bool:
    """Whether all classes count the same in the accuracy, to the digits that are shown."""
    top1, balanced = (ends[variant.name, f"test_{name}"] for name in ("top1", "balanced"))
    return all(abs(float(top1[k]) - float(balanced[k])) < 0.005 for k in ("median", "min", "max"))


def _groups(variants: list[Variant]) -> str:
    """What the groups are, and how many classes are in each: where variants agree, once."""
    sizes: dict[str, list[str]] = {}
    for variant in variants:
        given = variant.section("metrics")
        if "many_above" in given and variant.counts:
            above, below = given["many_above"], given["few_below"]
            definition = (
                f"Many: classes of more than {above} training samples; few: of fewer than {below}; "
                "medium: those between"
            )
            classes = Counter(
                "many" if n > above else "few" if n < below else "medium" for n in variant.counts
            )
            numbers = ", ".join(f"{classes[group]} {group}" for group in _GROUPS)
            told = sizes.setdefault(definition, [])
            if (size := f"{numbers} in {_samples(variant)} samples") not in told:
                told.append(size)
    return " ".join(
        f"{definition}. Classes: {'; '.join(told)}." for definition, told in sizes.items()
    )


def _layer_peeled(variants: list[Variant], ends: _Ends) -> Table:
    metrics = {
        "smallest angle between rare classifiers (°)": "rare_angle",
        "smallest cos(h, w)": "worst_cos",
    }
    rows = [("", "imbalance ratio", "training samples", *metrics, "training top-1 (%)", "seeds")]
    for variant in variants:
        top1 = ends.get((variant.name, "train_top1"))
        rows.append(
            (
                variant.name,
                _NONE if variant.ratio is None else f"{variant.ratio:.3g}",
                _samples(variant),
                *(_over_seeds(ends.get((variant.name, m)), ".4g") for m in metrics.values()),
                _over_seeds(top1),
                top1["n"] if top1 else _NONE,
            )
        )
    angle = etf_angle(class_number(variants))
    note = (
        "Median [minimum, maximum] over seeds. The features are free: there is no test set. Rare: the "
        "rarer half of the classes; their classifier vectors coincide where minority collapse is "
        "complete, at 0°. cos(h, w): of a feature and its own classifier vector. "
    )
    if angle is not None:
        note += f"At a simplex ETF the angle is {angle:.2f}° and the cosine 1."
    return Table("Layer-peeled model at the end", tuple(rows), note.strip())


def _samples(variant: Variant) -> str:
    return f"{sum(variant.counts):,}" if variant.counts else _NONE


def _over_seeds(row: dict[str, str] | None, form: str = ".2f") -> str:
    """``median [minimum, maximum]``, or the median alone of a single seed."""
    if row is None:
        return _NONE
    median, low, high = (float(row[key] or math.nan) for key in ("median", "min", "max"))
    if math.isnan(median):
        return _NONE
    return f"{median:{form}}" + (f" [{low:{form}}, {high:{form}}]" if int(row["n"]) > 1 else "")
