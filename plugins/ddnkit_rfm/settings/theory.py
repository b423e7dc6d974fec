"""The pipeline of Theorems 5.3 and 5.4: a rate of collapse simulated, and an optimum tried."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import pydantic
from pydantic import Field, PositiveFloat, PositiveInt

from ddnkit import Doubt, Job, Pipeline, Table

_SMOKE_LAYERS, _SMOKE_DRAWS, _SMOKE_DESCENTS = 4, 50, 1
#: A descent projects kernels of so many samples tens of thousands of times.
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
        default=None, description="μ: try the optimum of Theorem 5.4. Either this or ratio."
    )
    classes: int = Field(default=5, ge=2, description="K.")
    samples: PositiveInt = Field(default=20, description="n, of each class.")
    feature_map: PositiveFloat = Field(
        default=0.1, description="λ_map, by which the feature map differs from a linear one."
    )
    dimension: PositiveInt = Field(
        default=200, description="d of the data, at least K·n (assumption 5.1)."
    )
    noise: PositiveFloat = Field(
        default=2.0,
        description="Deviation of the data from their class means, whose own deviation is 1, before "
        "each sample is divided by its norm.",
    )
    layers: int = Field(default=12, ge=2, description="How often to apply AGOP and feature map.")
    draws: PositiveInt = Field(
        default=1000, description="Random kernels that the optimum is compared with."
    )
    descents: PositiveInt = Field(
        default=3, description="Of these, how many a projected gradient descent starts from."
    )

    @pydantic.model_validator(mode="after")
    def _is_one_theorem(self) -> RFMTheory:
        if (self.ratio is None) == (self.ridge is None):
            given = "neither" if self.ratio is None else "both"
            raise ValueError(f"give either ratio or ridge; {given} is given")
        N = self.classes * self.samples
        if self.ratio is not None and self.dimension < N:
            raise ValueError(
                f"dimension {self.dimension} is below the {N} samples: they would be of no full rank"
            )
        if self.ridge is not None and N > _LARGEST_KERNEL:
            raise ValueError(
                f"{N} samples are more than the {_LARGEST_KERNEL} that descents can cope with"
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
        """A row for each layer l of 2…L+1 (Theorem 5.3), or one row (Theorem 5.4)."""
        from ..theory import optimum, recursion

        if self.ratio is not None:
            layers = min(self.layers, _SMOKE_LAYERS) if job.smoke else self.layers
            rows = recursion(self, self.ratio, layers, job.seed)
        elif self.ridge is not None:
            draws = min(self.draws, _SMOKE_DRAWS) if job.smoke else self.draws
            descents = min(self.descents, _SMOKE_DESCENTS) if job.smoke else self.descents
            rows = [optimum(self, self.ridge, draws, descents, job.seed)]
        for row in rows:
            job.record(row)

    def figures(self, folder: Path) -> list[Path]:
        """The distance to the collapsed Gram matrix by layer, where it was simulated."""
        from ..theory_report import figures

        return figures(folder)

    def caption(self, figure: Path) -> str:
        """What the figure shows."""
        from ..theory_report import CAPTION

        return CAPTION

    def tables(self, folder: Path) -> list[Table]:
        """The derived rates beside those seen, and the optimum beside what was tried."""
        from ..theory_report import tables

        return tables(folder)
