"""The pipeline of Theorems 5.3 and 5.4: simulates a rate of collapse, and tests an optimum."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import pydantic
from pydantic import Field, PositiveFloat, PositiveInt

from ddnkit import Doubt, Job, Pipeline, Table, import_object

#: The most samples of a kernel that a descent, which projects it tens of thousands of times, can take.
_LARGEST_KERNEL = 50


class RFMTheory(Pipeline):
    """Why Deep RFM collapses: the rate of Theorem 5.3, or the optimum of Theorem 5.4, in numbers."""

    columns: ClassVar[tuple[str, ...]] = (
        "epoch",
        "step",
        "distance",
        "published_distance",
        "factor",
        "rate",
        "bound",
        "value",
        "least",
        "increase",
        "descent_distance",
    )

    ratio: PositiveFloat | None = Field(
        default=None, description="λ_k/λ_map: simulate the recursion of Theorem 5.3."
    )
    ridge: PositiveFloat | None = Field(
        default=None, description="μ: test the optimum of Theorem 5.4. Give either this or ratio."
    )
    classes: int = Field(default=5, ge=2, description="K, the number of classes.")
    samples: PositiveInt = Field(default=20, description="n, the samples of each class.")
    feature_map: PositiveFloat = Field(
        default=0.1, description="λ_map: the feature map's kernel is linear plus λ_map I."
    )
    dimension: PositiveInt = Field(
        default=200, description="d of the data, at least K·n (assumption 5.1)."
    )
    noise: PositiveFloat = Field(
        default=2.0,
        description="Standard deviation of the data around their class means, whose own is 1, before "
        "each sample is divided by its norm.",
    )
    layers: int = Field(
        default=12, ge=2, description="L, how often AGOP and feature map are applied."
    )
    draws: PositiveInt = Field(
        default=1000, description="Number of random kernels that the optimum is compared with."
    )
    descents: PositiveInt = Field(
        default=3, description="How many of them a projected gradient descent starts from."
    )

    @pydantic.model_validator(mode="after")
    def _is_one_theorem(self) -> RFMTheory:
        if (self.ratio is None) == (self.ridge is None):
            given = "neither" if self.ratio is None else "both"
            raise ValueError(f"give either ratio or ridge; {given} is given")
        N = self.classes * self.samples
        if self.ratio is not None and self.dimension < N:
            raise ValueError(
                f"dimension {self.dimension} is below the {N} samples, which could not have full rank"
            )
        if self.ridge is not None and N > _LARGEST_KERNEL:
            raise ValueError(
                f"{N} samples are more than the {_LARGEST_KERNEL} that descents can take"
            )
        if self.descents > self.draws:
            raise ValueError(f"{self.descents} descents cannot start from {self.draws} draws")
        return self

    def doubts(self) -> Iterable[Doubt]:
        """See `Settings.doubts`."""
        simulated = self.ratio is not None
        other = (
            ("draws", "descents") if simulated else ("feature_map", "dimension", "noise", "layers")
        )
        for key in other:
            text = f"does nothing with {'ratio' if simulated else 'ridge'}"
            yield Doubt(key, f"{text}: it is of the other theorem", idle=True)

    def run(self, job: Job) -> None:
        """Record a row for each layer l of 2…L+1 (Theorem 5.3), or one row (Theorem 5.4)."""
        import_object("ddnkit_rfm.theory_run:run_theorem")(self, job)

    def figures(self, folder: Path) -> list[Path]:
        """The distance to the collapsed Gram matrix by layer, if it was simulated."""
        return import_object("ddnkit_rfm.theory_report:figures")(folder)

    def caption(self, figure: Path) -> str:
        """What the figure shows."""
        return import_object("ddnkit_rfm.theory_report:CAPTION")

    def tables(self, folder: Path) -> list[Table]:
        """The derived rates beside the measured ones, and the optimum beside what was tried."""
        return import_object("ddnkit_rfm.theory_report:tables")(folder)
