"""The regularity pipeline: Theorem 2 of INC measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

import pydantic
from pydantic import Field

from ddnkit import Job, Pipeline, Table, import_object

#: The draws are measured in so many parts, from the nearest to the farthest.
PARTS = 10
#: Above it p_k may underflow, as small as exp(−C/(C−1) √(E_W E_H)) is.
_LARGEST_LOGIT = 300

Rate = Annotated[float, Field(gt=0)]


class Regularity(Pipeline):
    """How much nearer to its optimum one gradient step takes a feature: cross-entropy, dot regression."""

    columns: ClassVar[tuple[str, ...]] = (
        "epoch",
        "step",
        "violations",
        "angle",
        "draws",
        "bound",
        "eta_dr",
        "eta_dr_error",
        "eta_ce_best",
        "ce_fixed_least_excess",
        "eta_dr_projected",
        "ce_nearer_projected",
    )

    classes: int = Field(default=10, ge=2, description="C, vectors of the simplex ETF.")
    dimension: int = Field(default=32, description="d, of the features; C or more.")
    draws: int = Field(default=10_000, ge=PARTS, description="Features drawn near their optimum.")
    delta: float = Field(
        default=0.5,
        ge=1e-6,
        le=2,
        description="Largest distance of a feature from its optimum, as a share of √E_H.",
    )
    e_w: float = Field(default=1.0, gt=0, description="E_W, squared length of classifier vectors.")
    e_h: float = Field(default=1.0, gt=0, description="E_H, squared length of features.")
    rates: tuple[Rate, ...] = Field(
        default=(0.01, 0.1, 1.0, 10.0),
        min_length=1,
        description="Fixed learning rates of cross-entropy, besides the best for each feature.",
    )
    condition: bool = Field(
        default=True,
        description="Only features whose p_k are equal for all classes but their own, as the theorem "
        "assumes; false: in any direction.",
    )

    @pydantic.model_validator(mode="after")
    def _is_possible(self) -> Regularity:
        if self.dimension < self.classes:
            raise ValueError(
                f"dimension {self.dimension} is below classes {self.classes}: a simplex ETF spans C − 1 "
                "dimensions, and a feature with equal p_k needs one more"
            )
        if (self.e_w * self.e_h) ** 0.5 > _LARGEST_LOGIT:
            raise ValueError(
                f"√(e_w·e_h) of e_w {self.e_w:g} and e_h {self.e_h:g} is above {_LARGEST_LOGIT}, "
                "where the probabilities of cross-entropy underflow"
            )
        return self

    def run(self, job: Job) -> None:
        """Measure η of every draw; a row for each tenth of them, from the nearest to the farthest."""
        import_object("ddnkit_longtail.regularity:measure_regularity")(self, job)

    def figures(self, folder: Path) -> list[Path]:
        """η, and the share of draws below the bound, against the angle."""
        files: list[Path] = import_object("ddnkit_longtail.regularity_report:figures")(folder)
        return files

    def caption(self, figure: Path) -> str:
        """What a figure shows."""
        captions: dict[str, str] = import_object("ddnkit_longtail.regularity_report:CAPTIONS")
        return captions[figure.stem]

    def tables(self, folder: Path) -> list[Table]:
        """How many draws are below the bound, by variant and rate."""
        found: list[Table] = import_object("ddnkit_longtail.regularity_report:tables")(folder)
        return found
