"""Loss functions: the ``loss`` section of a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from ddnkit import Settings

if TYPE_CHECKING:
    from torch import nn


class CrossEntropy(Settings):
    """Mean cross-entropy of the logits against the labels."""

    label_smoothing: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Weight of the uniform distribution in the targets. The columns train_loss "
        "and ce_gap are of the plain cross-entropy in any case.",
    )

    def build(self) -> nn.Module:
        """A module ``(logits, labels) -> scalar``."""
        from torch import nn

        return nn.CrossEntropyLoss(label_smoothing=self.label_smoothing)
