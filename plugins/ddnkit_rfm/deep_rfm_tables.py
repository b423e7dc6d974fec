"""Tables of a deep_rfm run for its report; nothing here imports torch."""

from __future__ import annotations

import math
from pathlib import Path

from ddnkit_collapse.run_figures import read_settings, read_summary

from ddnkit import Table

_NONE = "–"
#: A figure of ``summary.csv`` by variant, metric and layer.
_Figures = dict[tuple[str, str, int], dict[str, str]]


def tables(folder: Path) -> list[Table]:
    """What each layer does to DNC1, and how well it predicts.

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
    return [_collapse(variants, figures), _accuracy(folder, variants, figures)]


def _collapse(variants: list[str], figures: _Figures) -> Table:
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
            rows.append((variant, str(layer), *map(_number, numbers)))
    note = (
        "Training samples, medians over seeds. “×”: what the step multiplies DNC1 by; below 1 it brings "
        "the classes together, above 1 it spreads them. The next layer's X are the features, each divided "
        "by its norm."
    )
    return Table("Deep neural collapse by layer", tuple(rows), note)


def _accuracy(folder: Path, variants: list[str], figures: _Figures) -> Table:
    rows = [("layer", *variants)]
    for layer in sorted({layer for variant in variants for layer in _layers(variant, figures)}):
        cells = (_over_seeds(figures.get((variant, "test_top1", layer))) for variant in variants)
        rows.append((f"{layer}: plain kernel regression" if layer == 1 else str(layer), *cells))
    notes = ["Top-1 in per cent; median [minimum, maximum] over seeds, where they differ."]
    for text in (_samples(folder, variants, figures), *_solves(variants, figures)):
        notes += [text] if text else []
    return Table("Test accuracy of each layer's predictor", tuple(rows), " ".join(notes))


def _samples(folder: Path, variants: list[str], figures: _Figures) -> str:
    """How many samples each variant was given; where variants agree, once."""
    told: dict[str, None] = {}
    for variant in variants:
        train, test = (
            int(_median(figures.get((variant, metric, 1))))
            for metric in ("samples", "test_samples")
        )
        asked = read_settings(folder, variant).get("samples", train)
        fewer = "" if train >= asked else f" (all there are; {asked:,} were asked for)"
        told[f"Trained on {train:,} samples{fewer}, tested on {test:,}."] = None
    return " ".join(told)


def _solves(variants: list[str], figures: _Figures) -> list[str]:
    """Layers whose kernel equations were solved by another way than Cholesky, or not solved."""
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


def _layers(variant: str, figures: _Figures) -> list[int]:
    return sorted(
        layer for name, metric, layer in figures if (name, metric) == (variant, "samples")
    )


def _median(row: dict[str, str] | None) -> float:
    return float(row["median"]) if row else math.nan


def _number(value: float) -> str:
    return _NONE if math.isnan(value) else f"{value:.3g}"


def _over_seeds(row: dict[str, str] | None) -> str:
    if row is None:
        return _NONE
    median, low, high = (float(row[key]) for key in ("median", "min", "max"))
    return f"{median:.2f}" + (f" [{low:.2f}, {high:.2f}]" if low < high else "")
