"""Figure and tables of an rfm_theory run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddnkit_collapse.panels import (
    OVER_SEEDS,
    add_legend,
    draw_series,
    finish,
    new_figure,
    save,
)
from ddnkit_collapse.run_figures import RunFigures, Series, read_run, read_settings

from ddnkit import Table

from .asymptotics import published_kappa

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NONE = "–"
#: Smaller distances are drawn as this one.
_FLOOR = 1e-15
#: Style of the derived rate: drawn above the measured lines, which would otherwise hide it.
_DERIVED: dict[str, Any] = {"color": "0.1", "linestyle": (0, (3, 3)), "linewidth": 0.9, "zorder": 3}
_KAPPAS = {
    "distance": r"$\kappa^{*} = (1 + \lambda_k/(n + \lambda_{map}))^{-2}$",
    "published_distance": r"the paper's $\kappa = 1 - 2\lambda_k(1 + \lambda_{map}^{-1})$",
}
CAPTION = (
    "‖X̃_lᵀX̃_l − YᵀY‖ in the spectral norm, simulated by equations 3 and 4 of the Deep RFM paper (NeurIPS "
    "2024), for several λ_k/λ_map. Left: with the κ that makes YᵀY a fixed point; dashed is the derived "
    "rate, λ_k/(λ_k + λ_map) · n/(n + λ_map) (plugins/ddnkit_rfm/asymptotics.py); float64 ends at 1e-14. "
    "Right: with the paper's κ, where it is above 0; the distance does not go to 0. " + OVER_SEEDS
)


@dataclass(frozen=True)
class _Variant:
    """One variant of a run, and its settings."""

    name: str
    settings: dict[str, Any]
    run: RunFigures

    def series(self, metric: str) -> Series:
        """A metric by layer; without points if it was not recorded."""
        return self.run.curves.get(metric, {}).get(self.name, Series())

    @property
    def label(self) -> str:
        """The ratio, for the legend."""
        return rf"$\lambda_k/\lambda_{{map}}$ = {self.settings['ratio']:g}"

    @property
    def rate(self) -> float:
        """The derived rate of collapse."""
        return self.series("rate").median[0]


def figures(folder: Path) -> list[Path]:
    """Draw the distance to YᵀY by layer, with both κ: a PNG file in ``figures/``."""
    simulated, _ = _read(folder)
    if not simulated:
        return []
    figure = new_figure(8.6, 4.0)
    for axes, (metric, title) in zip(
        figure.subplots(1, 2, sharey=True), _KAPPAS.items(), strict=True
    ):
        _draw(axes, simulated, metric)
        finish(axes, title, r"layer $l$")
        axes.set_yscale("log")
    for variant in simulated:
        _draw_rate(figure.axes[0], variant)
    figure.axes[0].set_ylim(bottom=_FLOOR)
    figure.axes[0].set_ylabel(r"$\|\tilde{X}_l^{\top}\tilde{X}_l - Y^{\top}Y\|$", fontsize=9)
    add_legend(figure, fontsize=9)
    return [save(figure, folder, "collapse_rate")]


def _draw(axes: Axes, variants: Sequence[_Variant], metric: str) -> None:
    for place, variant in enumerate(variants):
        series = variant.series(metric)
        if series.steps:
            draw_series(axes, series.steps, series, variant.label, place, floor=_FLOOR)


def _draw_rate(axes: Axes, variant: _Variant) -> None:
    """The derived rate, from the second point on, since it is the rate near YᵀY."""
    series = variant.series("distance")
    layers, start = series.steps[1:], series.median[:2][-1]
    derived = [start * variant.rate**k for k in range(len(layers))]
    axes.plot(layers, derived, label="derived rate", **_DERIVED)


def tables(folder: Path) -> list[Table]:
    """The derived rates beside the measured ones; the optimum beside what was tried."""
    simulated, tested = _read(folder)
    return [
        *([_rate_table(simulated)] if simulated else []),
        *([_optimum_table(tested)] if tested else []),
    ]


def _rate_table(variants: Sequence[_Variant]) -> Table:
    head = ("λ_k/λ_map", "derived rate", "factor seen", "in layer", "last distance",
            "with the paper's κ", "its derived limit")  # fmt: skip
    rows: list[tuple[str, ...]] = [head]
    for variant in variants:
        factor, published = variant.series("factor"), variant.series("published_distance")
        cells = (
            f"{variant.settings['ratio']:g}",
            f"{variant.rate:.4f}",
            _format_spread(factor, -1, ".4f"),
            f"{factor.steps[-1]:.0f}" if factor.steps else _NONE,
            _format_spread(variant.series("distance"), -1, ".2g"),
            _format_spread(published, -1, ".3g"),
            f"{_published_limit(variant.settings):.3g}" if published.steps else _NONE,
        )
        rows.append(cells)
    note = (
        "Distances ‖X̃_lᵀX̃_l − YᵀY‖, the norm of YᵀY being n; the factor between two layers is that of the "
        "last one above rounding. The rate is derived for κ* = (1 + λ_k/(n + λ_map))⁻²; the theorem says "
        "that there is a rate below 1 for small λ_k/λ_map. With the paper's κ = 1 − 2λ_k(1 + λ_map⁻¹), which "
        "must be above 0, YᵀY is no fixed point: the recursion ends at sYᵀY, (s − 1)n from it, with "
        "s = ((sn + λ_map)/(sn + λ_map + λ_k))²/κ. Median [minimum, maximum] over seeds."
    )
    return Table("Theorem 5.3: the rate of collapse", tuple(rows), note)


def _published_limit(settings: dict[str, Any]) -> float:
    """|s − 1|n of the multiple sYᵀY that the recursion with the paper's κ ends at."""
    n, of_map = settings["samples"], settings["feature_map"]
    of_predictor = settings["ratio"] * of_map
    kappa, s = published_kappa(of_predictor, of_map), 1.0
    for _ in range(1000):
        s = ((s * n + of_map) / (s * n + of_map + of_predictor)) ** 2 / kappa
    return abs(s - 1) * n


def _optimum_table(variants: Sequence[_Variant]) -> Table:
    head = ("μ", "K × n", "proved minimum", "g(YᵀY)", "least g of random kernels",
            "least growth along lines", "farthest end of a descent")  # fmt: skip
    rows: list[tuple[str, ...]] = [head]
    for variant in variants:
        of = variant.settings
        cells = (
            _format_spread(variant.series(metric), 0, form)
            for metric, form in (("bound", ".8f"), ("value", ".8f"), ("least", ".4g"),
                                 ("increase", ".3g"), ("descent_distance", ".1e"))
        )  # fmt: skip
        rows.append((f"{of['ridge']:g}", f"{of['classes']} × {of['samples']}", *cells))
    drawn = ", ".join(dict.fromkeys(f"{v.settings['draws']:,}" for v in variants))
    descents = ", ".join(dict.fromkeys(str(v.settings["descents"]) for v in variants))
    note = (
        "g(k) = μ tr Y(k + μI)⁻¹Yᵀ, problem 7 at its best A. The minimum μ Σ_c n_c/(n_c + μ) at YᵀY alone is "
        f"proved in plugins/ddnkit_rfm/kernel_optimum.py. Tried: {drawn} feasible kernels drawn at random; "
        "(g(YᵀY + t(k − YᵀY)) − g(YᵀY))/t² on the lines to them, above 0 if YᵀY is least; and ‖k − YᵀY‖_F "
        f"where {descents} projected gradient descents end, slow for small μ. "
        "Median [minimum, maximum] over seeds."
    )
    return Table("Theorem 5.4: the optimum of the kernel", tuple(rows), note)


def _format_spread(series: Series, k: int, form: str) -> str:
    if not series.steps:
        return _NONE
    shown = [f"{values[k]:{form}}" for values in (series.median, series.low, series.high)]
    return shown[0] if shown[1] == shown[2] else f"{shown[0]} [{shown[1]}, {shown[2]}]"


def _read(folder: Path) -> tuple[list[_Variant], list[_Variant]]:
    """The variants of Theorem 5.3 and those of Theorem 5.4, in the recipe's order."""
    run = read_run(folder)
    variants = [_Variant(name, read_settings(folder, name), run) for name in run.variants]
    return (
        [variant for variant in variants if variant.series("distance").steps],
        [variant for variant in variants if variant.series("bound").steps],
    )
