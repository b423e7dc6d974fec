"""The classifier head for long-tailed data: the ``head`` section of a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ddnkit import Settings

if TYPE_CHECKING:
    from ddnkit_etf import ClassifierHead


class BatchNormETFHead(Settings):
    """A random simplex ETF that is never trained, on features after a batch norm, of fixed length."""

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

    def build(self, *, feature_dim: int, classes: int) -> ClassifierHead:
        """The head as a module."""
        from ..head import BatchNormETFClassifier

        return BatchNormETFClassifier(
            feature_dim,
            classes,
            e_w=self.e_w,
            e_h=self.e_h,
            batch_norm=self.batch_norm,
            direction=self.direction,
        )
