"""Which samples a long-tailed recipe trains on, and how they are mixed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from ddnkit import Doubt, Settings


class ImbalanceSettings(Settings):
    """An imbalanced subset of the training samples; all of them by default."""

    ratio: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="μ, samples of the smallest class over those of the largest; 1: equally many of "
        "each. Default: the data as they are.",
    )
    profile: Literal["exponential", "step"] = Field(
        default="exponential",
        description="'exponential': n_k = ⌊n_max μ^{k/(C−1)}⌋; 'step': n_max for the first classes, "
        "⌊n_max μ⌋ for the others. At least one sample each.",
    )
    minority: float = Field(
        default=0.5, gt=0, lt=1, description="Share of the classes that are small, of 'step' alone."
    )
    largest: PositiveInt | None = Field(
        default=None,
        description="n_max, samples of the largest class. Default: as many as all classes can give.",
    )
    order: Literal["label", "random"] = Field(
        default="label",
        description="Which class is the largest: class 0 and so on down, or random.",
    )
    seed: NonNegativeInt = Field(
        default=0,
        description="Of the choice of samples: the data are the same for all seeds of the recipe.",
    )

    def doubts(self) -> Iterable[Doubt]:
        """See `Settings.doubts`."""
        if self.ratio is None:
            for key in ("profile", "minority", "largest", "order", "seed"):
                text = "does nothing: without a ratio all samples are kept"
                yield Doubt(key, text, idle=True)
        elif self.ratio == 1:
            for key in ("profile", "minority", "order"):
                text = "does nothing: with ratio 1 all classes have equally many samples"
                yield Doubt(key, text, idle=True)
        elif self.profile != "step":
            yield Doubt("minority", f"does nothing with profile {self.profile}", idle=True)


class MixupSettings(Settings):
    """Training samples mixed in pairs, their labels with them."""

    alpha: NonNegativeFloat = Field(
        default=0.0,
        description="α of the Beta(α, α) that a batch's λ is drawn from; 0: nothing is mixed.",
    )
