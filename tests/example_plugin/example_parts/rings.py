"""A data set. What describes it is read without torch; what makes it is named."""

from __future__ import annotations

from ddnkit_train.settings import DataSettings
from pydantic import Field


class Rings(DataSettings):
    """Points of the plane on rings around 0, a ring for each class."""

    builder = "example_parts.ring_points:draw_rings"

    classes: int = Field(3, ge=2, description="number of rings")
    per_class: int = Field(
        60, gt=0, description="training points on each; a third as many for testing"
    )
