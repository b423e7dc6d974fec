"""Figures and tables of a run of the pipeline budget_price, from its ``summary.csv`` and ``prices.csv``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddnkit_collapse.panels import COLOURS, add_legend, draw_series, finish, new_figure, save
from ddnkit_collapse.run_figures import read_run, read_settings

from ddnkit import Table, read_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: What each job writes: the price of a budget, for a row of budgets.
PRICES = "prices.csv"
_FIGURES = ("budget", "price", "closed_form", "by_learned", "bought")
_LEAST = 1e-16
#: By the stem of the figure's file.
CAPTIONS = {
    "budget_price": "Above, λ of one household's budget against the budget: the node's, the closed form, "
    "and that of the tastes that were learned; at a dotted line one more good is bought, or enough of all. "
    "Below, how the tastes were learned from observed prices: mean squared error of λ, and relative error of "
    "the tastes, the median over the seeds.",
}


@dataclass(frozen=True)
class _Variant:
    """A variant with a finished job: its utility, and the prices of each seed, column by column."""

    name: str
    utility: str
    seeds: list[dict[str, list[float]]]

    @property
    def price_error(self) -> float:
        """The largest difference of the node's λ from the closed form, relative to the largest λ."""
        return max(
            abs(found - exact) / max(seed["closed_form"])
            for seed in self.seeds
            for found, exact in zip(seed["price"], seed["closed_form"], strict=True)
        )


def figures(folder: Path) -> list[Path]:
    """Draw the price against the budget, and the learning: a PNG file in ``figures/``."""
    variants = _read(folder)
    return [save(_draw(folder, variants), folder, "budget_price")] if variants else []


def tables(folder: Path) -> list[Table]:
    """How far prices and tastes are from the known ones, by variant."""
    variants = _read(folder)
    if not variants:
        return []
    curves = read_run(folder).curves
    rows = [
        (
            variant.name,
            f"{variant.price_error:.1e}",
            f"{curves['loss'][variant.name].median[-1]:.1e}",
            f"{100 * curves['taste_error'][variant.name].median[-1]:.2g} %",
            f"{curves['masked'][variant.name].high[-1]:.0f}",
        )
        for variant in variants
    ]
    head = ("", "λ − closed form", "loss at the end", "error of tastes", "masked")
    note = (
        "λ − closed form: the largest difference over budgets and seeds, relative to the largest λ. Error of "
        "tastes: ‖a − a*‖/‖a*‖, the median over the seeds. Masked: households at a kink of λ in the end."
    )
    return [Table("The price of a budget", (head, *rows), note)]


def _read(folder: Path) -> list[_Variant]:
    """The variants that have a finished job, in the recipe's order."""
    found = []
    for name in read_run(folder).variants:
        files = sorted((folder / "runs" / name).glob(f"seed-*/{PRICES}"))
        if files:
            utility = read_settings(folder, name).get("utility", name)
            found.append(_Variant(name, str(utility), [_columns(file) for file in files]))
    return found


def _columns(file: Path) -> dict[str, list[float]]:
    lines = read_table(file, dict.fromkeys(_FIGURES, "number"))
    return {column: [float(line[column]) for line in lines] for column in _FIGURES}


def _draw(folder: Path, variants: list[_Variant]) -> Figure:
    curves = read_run(folder).curves
    figure = new_figure(4.4 * len(variants), 6.2)
    grid = figure.subplots(2, len(variants), squeeze=False, sharey="row")
    for (above, below), variant in zip(grid.T, variants, strict=True):
        _draw_price(above, variant.seeds[0])
        for place, (metric, label) in enumerate(
            (("loss", "mean squared error of λ"), ("taste_error", "error of tastes"))
        ):
            series = curves[metric][variant.name]
            draw_series(below, series.steps, series, label, place + 3, floor=_LEAST)
        below.set_yscale("log")
        finish(above, f"{variant.utility} utility", "budget b")
        finish(below, "", "step")
    grid[0][0].set_ylabel("price λ of the budget", fontsize=9)
    grid[1][0].set_ylabel("error", fontsize=9)
    add_legend(figure, fontsize=9)
    return figure


def _draw_price(axes: Any, seed: dict[str, list[float]]) -> None:
    budget, bought, price = seed["budget"], seed["bought"], seed["price"]
    for i in range(1, len(budget)):
        if bought[i] != bought[i - 1] or (price[i] == 0) != (price[i - 1] == 0):
            axes.axvline((budget[i] + budget[i - 1]) / 2, color="0.7", linestyle=":", linewidth=1)
    # The closed form below the others, which lie on it.
    axes.plot(
        budget, seed["closed_form"], label="closed form", color=COLOURS[0], linewidth=4.5, alpha=0.4
    )
    axes.plot(
        budget,
        price,
        label="λ of the node",
        color=COLOURS[1],
        marker="o",
        markersize=2.8,
        linestyle="",
    )
    axes.plot(
        budget, seed["by_learned"], label="λ of the learned tastes", color=COLOURS[2], linewidth=1.2
    )
