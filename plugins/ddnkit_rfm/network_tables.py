"""Tables of a network's fully connected layers at the end of the training; nothing here imports torch."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddnkit_collapse.run_figures import read_settings, read_summary

from ddnkit import Table, read_table

from .settings.networks import LAYERS, STAGES

_NONE = "–"
#: NFA correlation at the end, over all layers and seeds, by data set and network.
PUBLISHED = {("mnist", "mlp"): "0.74 ± 0.13", ("cifar10", "resnet18"): "0.74 ± 0.17"}


@dataclass(frozen=True)
class _Variant:
    """One variant of a run folder: its settings, and the last evaluation of each of its jobs."""

    name: str
    settings: dict[str, Any]
    ends: tuple[dict[str, str], ...]

    def values(self, column: str) -> list[float]:
        """A figure of all jobs that have it."""
        return [float(end[column]) for end in self.ends if end.get(column)]

    @property
    def layers(self) -> list[int]:
        """Its layers, numbered from 1."""
        return [k for k in range(1, LAYERS + 1) if self.values(f"dnc1_input_{k}")]

    @property
    def published(self) -> str:
        """The paper's NFA correlation, of five hidden layers of width 512 trained by SGD."""
        backbone = self.settings["backbone"]
        data, network, loss, optimizer = (
            self.settings[section]["name"] for section in ("data", "backbone", "loss", "optimizer")
        )
        prefix = "" if network == "mlp" else "mlp_"
        layers = backbone.get(f"{prefix}depth"), backbone.get(f"{prefix}width")
        if (*layers, loss, optimizer) != (5, 512, "mean_squared_error", "sgd"):
            return _NONE
        return PUBLISHED.get((data, network), _NONE)


def tables(folder: Path) -> list[Table]:
    """The tables that a run folder has figures for.

    Args:
        folder: with ``summary.csv``, and for each variant ``settings.yaml`` and the jobs' ``metrics.csv``.
    """
    names = dict.fromkeys(row["variant"] for row in read_summary(folder))
    variants = [_read(folder, name) for name in names]
    made = [
        _correlations([variant for variant in variants if variant.values("nfa_1")]),
        _falls([variant for variant in variants if variant.layers]),
    ]
    return [table for table in made if len(table.rows) > 1]


def _correlations(variants: list[_Variant]) -> Table:
    numbers = [f"layer {k}" for k in range(1, LAYERS + 1)]
    rows = [("", *numbers, "all layers and seeds", "published", "seeds")]
    for variant in variants:
        layers = [variant.values(f"nfa_{k}") for k in range(1, LAYERS + 1)]
        together = [value for layer in layers for value in layer]
        cells = [*map(_mean, layers), _mean(together), variant.published, str(len(variant.ends))]
        rows.append((variant.name, *cells))
    note = (
        "Pearson correlation of WᵀW with the square root of the AGOP of the layer's input; mean ± "
        "standard deviation. Published: section 6 of “Average gradient outer product as a mechanism for "
        f"deep neural collapse” (NeurIPS 2024), over all layers and three seeds; “{_NONE}”: it states "
        "none for this data set, network, loss and optimiser. Start, length and rates of the training "
        "are not compared."
    )
    return Table("NFA correlation at the end", tuple(rows), note)


def _falls(variants: list[_Variant]) -> Table:
    stages = ("DNC1 of Φ(X)", "of SVᵀΦ(X)", "after U and ReLU")
    head = ("", "layer", *stages, "share of SVᵀ", "share of U and ReLU")
    rows: list[tuple[str, ...]] = [head]
    for variant in variants:
        through: list[tuple[float, float]] = []
        for k in variant.layers:
            falls = [fall for end in variant.ends if (fall := _fall(end, k))]
            through += falls
            ratios = (variant.values(f"dnc1_{stage}_{k}") for stage in STAGES)
            rows.append((variant.name, str(k), *map(_median, ratios), *_shares(falls)))
        rows.append((variant.name, "all", _NONE, _NONE, _NONE, *_shares(through)))
    note = (
        "DNC1 = tr Σ_W / tr Σ_B at the end of the training, W = USVᵀ; medians over seeds. Shares: of the "
        "fall of log DNC1 through the layer, its mean over seeds, or through all layers. Where one of the "
        "two steps raises DNC1 its share is below 0 %, and the other's above 100 %. "
        f"“{_NONE}”: DNC1 does not fall there."
    )
    return Table("Where DNC1 falls", tuple(rows), note)


def _fall(end: dict[str, str], k: int) -> tuple[float, float] | None:
    """How far log DNC1 falls by SVᵀ, and by U and the non-linearity; None where it was not measured."""
    ratios = [float(end.get(f"dnc1_{stage}_{k}") or 0) for stage in STAGES]
    if min(ratios) <= 0:
        return None
    given, right, output = map(math.log, ratios)
    return given - right, right - output


def _shares(falls: list[tuple[float, float]]) -> tuple[str, str]:
    """Of SVᵀ, and of U and the non-linearity, in what these falls come to together."""
    right, output = (sum(parts) for parts in zip(*falls, strict=True)) if falls else (0, 0)
    if right + output <= 0:
        return _NONE, _NONE
    share = round(100 * right / (right + output))
    return f"{share} %", f"{100 - share} %"


def _median(values: list[float]) -> str:
    return f"{statistics.median(values):.3g}" if values else _NONE


def _mean(values: list[float]) -> str:
    return f"{statistics.fmean(values):.2f} ± {statistics.pstdev(values):.2f}" if values else _NONE


def _read(folder: Path, name: str) -> _Variant:
    ends = (_last(path) for path in sorted(folder.glob(f"runs/{name}/seed-*/metrics.csv")))
    return _Variant(name, read_settings(folder, name), tuple(end for end in ends if end))


def _last(path: Path) -> dict[str, str]:
    return next(reversed(read_table(path, {}, others="figure", growing=True)), {})
