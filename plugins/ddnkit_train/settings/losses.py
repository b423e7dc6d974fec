"""Loss functions: the ``loss`` section of a recipe.

``build`` is given the training samples of each class, ``counts`` (C,), and the head whose logits the
loss will see. The module takes logits ``(B, C)`` and either labels ``(B,)`` or shares ``(B, C)``, and
gives a mean over the batch in which every sample counts for itself: with a batch split over several
processes, their means, weighted by their samples, average to that of the whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from ddnkit import Settings

if TYPE_CHECKING:
    from torch import Tensor, nn


class CrossEntropy(Settings):
    """Mean cross-entropy of the logits against the labels."""

    label_smoothing: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Weight of the uniform distribution in the targets. The columns train_loss "
        "and ce_gap are of the plain cross-entropy in any case.",
    )

    def build(self, *, counts: Tensor, head: nn.Module) -> nn.Module:
        """A module ``(logits, labels) -> scalar``."""
        from torch import nn

        return nn.CrossEntropyLoss(label_smoothing=self.label_smoothing)


class MeanSquaredError(Settings):
    """Squared difference of the logits from their targets, its mean over samples and classes."""

    off_target: float = Field(
        default=0.0,
        lt=1,
        description="Target of the classes that a sample is not of; that of its own is 1. 0: one-hot "
        "targets; −1: the ±1 of the Deep RFM paper.",
    )

    def build(self, *, counts: Tensor, head: nn.Module) -> nn.Module:
        """A module ``(logits, labels) -> scalar``."""
        from ..losses import MeanSquaredError

        return MeanSquaredError(self.off_target)
