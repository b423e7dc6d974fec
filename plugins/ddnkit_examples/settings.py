"""Settings of the pipelines of worked examples."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from ddnkit import Job, Pipeline, Table, import_object


class BudgetPrice(Pipeline):
    """The price of a budget as an output: tastes of buyers, learned from what more money is worth to them."""

    columns: ClassVar[tuple[str, ...]] = (
        "epoch",
        "step",
        "loss",
        "taste_error",
        "price_error",
        "masked",
    )

    utility: Literal["quadratic", "logarithmic"] = Field(
        default="logarithmic",
        description="Of an amount y of a good: a·y − y²/2, or a·log(1 + y).",
    )
    goods: int = Field(default=4, ge=1, le=50, description="n, kinds of goods.")
    households: int = Field(
        default=32, ge=1, description="Buyers, alike in tastes and not in prices and budgets."
    )
    steps: int = Field(default=80, ge=1, description="Steps of Adam.")
    rate: float = Field(default=0.2, gt=0, description="Learning rate of the logarithms of tastes.")

    def run(self, job: Job) -> None:
        """Learn the tastes, with a row for each tenth of the steps; then the price over budgets."""
        import_object("ddnkit_examples.budget_price:learn_tastes")(self, job)

    def figures(self, folder: Path) -> list[Path]:
        """The price against the budget, and the learning of tastes."""
        files: list[Path] = import_object("ddnkit_examples.budget_price_report:figures")(folder)
        return files

    def caption(self, figure: Path) -> str:
        """What a figure shows."""
        captions: dict[str, str] = import_object("ddnkit_examples.budget_price_report:CAPTIONS")
        return captions[figure.stem]

    def tables(self, folder: Path) -> list[Table]:
        """How far the prices of the node are from the closed form, by variant."""
        found: list[Table] = import_object("ddnkit_examples.budget_price_report:tables")(folder)
        return found
