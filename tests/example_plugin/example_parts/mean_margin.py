"""A metric with a column of its own. What names it is read without torch; what it builds needs none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from ddnkit import Settings


class MeanMargin(Settings):
    """The mean cosine margin of the training samples."""

    columns: ClassVar[tuple[str, ...]] = ("mean_margin",)

    def build(self) -> Callable[[Any], dict[str, float]]:
        """What is asked of an evaluation."""
        return lambda evaluation: {"mean_margin": float(evaluation.margins.mean())}
