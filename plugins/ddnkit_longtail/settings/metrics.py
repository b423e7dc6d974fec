"""Figures of a training on classes of unequal size: the ``metrics`` section of a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import pydantic
from pydantic import Field, PositiveInt

from ddnkit import Settings

if TYPE_CHECKING:
    from ..metrics import LongTailMetrics

#: What `LongTail` measures beyond the neural-collapse metrics.
COLUMNS = (
    "test_many",
    "test_medium",
    "test_few",
    "test_balanced",
    "hh_cos_mean",
    "hh_cos_std",
    "hw_cos_mean",
    "hw_cos_std",
    "hw_own_cos",
    "wh_distance",
    "test_hh_cos_mean",
    "test_hh_cos_std",
    "test_hw_cos_mean",
    "test_hw_cos_std",
    "test_hw_own_cos",
    "test_wh_distance",
    "worst_cos",
    "rare_angle",
)


class LongTail(Settings):
    """The neural-collapse metrics; accuracy on frequent and rare classes; cosines between classes."""

    columns: ClassVar[tuple[str, ...]] = COLUMNS

    many_above: PositiveInt = Field(
        default=100, description="Classes with more training samples than this are 'many'."
    )
    few_below: PositiveInt = Field(
        default=20, description="Classes with fewer training samples than this are 'few'."
    )

    @pydantic.model_validator(mode="after")
    def _groups_are_apart(self) -> LongTail:
        if self.few_below > self.many_above + 1:
            raise ValueError(
                f"few_below {self.few_below} and many_above {self.many_above} overlap: a class of "
                f"{self.many_above + 1} samples would be in both groups"
            )
        return self

    def build(self) -> LongTailMetrics:
        """A function of a `ddnkit_collapse.Evaluation`."""
        from ..metrics import LongTailMetrics

        return LongTailMetrics(self.many_above, self.few_below)
