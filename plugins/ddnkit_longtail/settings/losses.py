"""Losses for classes of unequal size: the ``loss`` section of a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ddnkit import InputError, Settings

if TYPE_CHECKING:
    from torch import Tensor, nn


class DotRegression(Settings):
    """Squared difference of a feature's product with its class's ETF vector from the largest it can be."""

    lengths: Literal["balanced", "equal"] = Field(
        default="balanced",
        description="Lengths of the classifier vectors while training: 'balanced': √((N/C)/n_c) of "
        "the head's, so that rare classes pull as hard as frequent ones; 'equal'. In evaluation "
        "they are equal.",
    )

    def build(self, *, counts: Tensor, head: nn.Module) -> nn.Module:
        """A module ``(logits, labels) -> scalar``.

        Raises:
            ddnkit.InputError: the head's classifier is learned, or its features have no fixed length.
        """
        import torch

        from ..losses import DotRegression, balanced_lengths

        classifier: Any = head
        if any(parameter is getattr(head, "weight", None) for parameter in head.parameters()):
            raise InputError(
                "loss: dot_regression only pulls features and classifier vectors together. A learned "
                "classifier would put all of its vectors in one place; it needs one that is an ETF: "
                "head: batch_norm_etf, fixed_etf or nearest_etf"
            )
        if not getattr(classifier, "normalise", True):
            raise InputError(
                "loss: dot_regression needs features of fixed length; this head takes them as they are"
            )
        equal = torch.ones(len(counts), device=counts.device)
        lengths = balanced_lengths(counts) if self.lengths == "balanced" else equal
        return DotRegression(float(classifier.temperature), lengths)


class WeightedCrossEntropy(Settings):
    """Cross-entropy with the samples of class c weighted by N/(C n_c): each class counts the same."""

    def build(self, *, counts: Tensor, head: nn.Module) -> nn.Module:
        """A module ``(logits, labels) -> scalar``."""
        from ..losses import WeightedCrossEntropy, balanced_lengths

        return WeightedCrossEntropy(balanced_lengths(counts).square())
