"""Settings of the pipelines of worked examples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from ddnkit import Job, Pipeline, Table, import_object

#: Of a deep linear network: which layers start orthogonal, and which stay so.
Layers = Literal["gaussian", "orthogonal_start", "stiefel", "stiefel_but_last"]
#: Singular values of the spread teacher, least and largest.
_SPREAD = (0.25, 2.5)


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


class OrthogonalLayers(Pipeline):
    """Layers that stay orthogonal in a deep linear network: loss and singular values against free layers."""

    columns: ClassVar[tuple[str, ...]] = ("epoch", "step", "loss", "least", "largest", "rate")

    layers: Layers = Field(
        default="stiefel",
        description="How the layers start, and which stay orthogonal by ddnkit.parametrize: none of gaussian "
        "ones, none after an orthogonal_start, all (stiefel), or all but the last.",
    )
    target: Literal["isometry", "spread"] = Field(
        default="isometry",
        description="The teacher's singular values: all one, or from 0.25 to 2.5, which orthogonal layers "
        "cannot have.",
    )
    depth: int = Field(default=40, ge=2, description="L, layers.")
    width: int = Field(default=32, ge=1, description="n, inputs and units of a layer.")
    outputs: int = Field(default=16, ge=1, description="C, at most the width.")
    rates: list[Annotated[float, Field(gt=0)]] = Field(
        default=[0.03, 0.1, 0.3],
        min_length=1,
        description="Learning rates of gradient descent; the one with the lowest curve is shown.",
    )
    steps: int = Field(default=150, ge=1, description="Steps of gradient descent on all the data.")

    @model_validator(mode="after")
    def _has_an_isometry(self) -> OrthogonalLayers:
        if self.outputs > self.width:
            raise ValueError(f"outputs {self.outputs} are more than the width {self.width}")
        return self

    @property
    def singular_values(self) -> list[float]:
        """Of the teacher, (C,)."""
        if self.target == "isometry":
            return [1.0] * self.outputs
        low, high = _SPREAD
        places = max(self.outputs - 1, 1)
        return [float(low * (high / low) ** (i / places)) for i in range(self.outputs)]

    @property
    def floor(self) -> float:
        """What the loss cannot fall below with all layers orthogonal."""
        return sum((s - 1) ** 2 for s in self.singular_values) / (2 * self.outputs)

    def run(self, job: Job) -> None:
        """Train a network for each rate; rows are those of the best one."""
        import_object("ddnkit_examples.orthogonal_layers:train_layers")(self, job)

    def figures(self, folder: Path) -> list[Path]:
        """Loss over steps by target, and the singular values of the product of the layers."""
        files: list[Path] = import_object("ddnkit_examples.orthogonal_layers_report:figures")(
            folder
        )
        return files

    def caption(self, figure: Path) -> str:
        """What a figure shows."""
        captions: dict[str, str] = import_object(
            "ddnkit_examples.orthogonal_layers_report:CAPTIONS"
        )
        return captions[figure.stem]

    def tables(self, folder: Path) -> list[Table]:
        """Steps, losses and singular values, by variant."""
        found: list[Table] = import_object("ddnkit_examples.orthogonal_layers_report:tables")(
            folder
        )
        return found


class LowRankCompletion(Pipeline):
    """Completion on matrices of fixed rank: recovery by share of entries, and weights learned through it."""

    columns: ClassVar[tuple[str, ...]] = (
        "epoch",
        "step",
        "held_out",
        "test",
        "ridge",
        "masked",
        "of_ridge",
        "at",
    )

    rank: int = Field(default=2, ge=1, description="r, of all matrices.")
    size: int = Field(default=30, ge=2, description="Rows and columns of a matrix to recover.")
    shares: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        default=[0.2, 0.25, 0.3, 0.35, 0.4, 0.5],
        min_length=1,
        description="Parts of the entries that are known, for recovery.",
    )
    draws: int = Field(
        default=10, ge=1, description="Matrices to recover, for each share and seed."
    )
    descent: int = Field(
        default=5000,
        ge=1,
        description="Steps of gradient descent on unconstrained factors, to compare with.",
    )
    sensors: int = Field(
        default=24, ge=2, description="m, rows (and columns) of a matrix with noise."
    )
    matrices: int = Field(default=10, ge=1, description="Measured by the same sensors.")
    observed: float = Field(default=0.5, gt=0, lt=1, description="Part of entries that X is from.")
    held_out: float = Field(
        default=0.2, gt=0, lt=1, description="Part of entries to learn weights from."
    )
    steps: int = Field(default=20, ge=1, description="Steps of Adam.")
    rate: float = Field(default=0.2, gt=0, description="Learning rate of the logarithms.")

    @model_validator(mode="after")
    def _has_unseen_entries(self) -> LowRankCompletion:
        if self.observed + self.held_out >= 1:
            raise ValueError(
                f"observed {self.observed:g} and held_out {self.held_out:g} leave no entries to measure the "
                "error on"
            )
        return self

    def run(self, job: Job) -> None:
        """Recover matrices; then learn the ridge, and the ridge with a weight for each sensor."""
        import_object("ddnkit_examples.low_rank_completion:complete")(self, job)

    def figures(self, folder: Path) -> list[Path]:
        """Recovery over the share of entries; errors and weights of the learning."""
        files: list[Path] = import_object("ddnkit_examples.low_rank_completion_report:figures")(
            folder
        )
        return files

    def caption(self, figure: Path) -> str:
        """What a figure shows."""
        text: str = import_object("ddnkit_examples.low_rank_completion_report:CAPTION")
        return text

    def tables(self, folder: Path) -> list[Table]:
        """Shares recovered, and errors of what was learned."""
        found: list[Table] = import_object("ddnkit_examples.low_rank_completion_report:tables")(
            folder
        )
        return found
