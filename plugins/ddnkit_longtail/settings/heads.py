"""The classifier head for long-tailed data: the ``head`` section of a recipe."""

from __future__ import annotations

from typing import Literal

from ddnkit_etf.settings import FixedETFHead
from pydantic import Field

from ddnkit import Component


class BatchNormETFHead(Component):
    """A random simplex ETF that is never trained, on features after a batch norm, of fixed length."""

    builder = "ddnkit_longtail:BatchNormETFClassifier.with_lengths"

    e_w: float = Field(default=1.0, gt=0, description="E_W, squared length of classifier vectors.")
    e_h: float = Field(default=1.0, gt=0, description="E_H, squared length of features.")
    batch_norm: Literal["affine", "plain", "none"] = Field(
        default="affine",
        description="Batch norm of the features, before all else; 'affine': with a learned scale and "
        "shift, which AGD could not train.",
    )
    direction: Literal["haar", "canonical"] = Field(
        default="haar", description="A random frame, from the seed, or the first C axes."
    )

    def as_fixed(self) -> FixedETFHead:
        """The same in the terms of a fixed ETF on unit features."""
        return FixedETFHead(
            temperature=(self.e_w * self.e_h) ** 0.5,
            direction=self.direction,
            centre=False,
            batch_norm=self.batch_norm,
        )
