"""The fixed-ETF head: a simplex ETF chosen once, never trained."""

from __future__ import annotations

from torch import Tensor

from ..simplex import simplex_etf
from .base import ClassifierHead


class FixedETFClassifier(ClassifierHead):
    """logits = τ W (h/‖h‖ − h_G), W a fixed simplex ETF (*GNC*, section 4, "fixed ETF").

    Args:
        direction: "canonical", or "haar" for a random one (Fig. 18), from torch's generator.
        centre: subtract the mean feature h_G; else h_G = 0.
        batch_norm, evaluation_mean: see `ClassifierHead`.
    """

    weight: Tensor

    def __init__(
        self,
        feature_dim: int,
        classes: int,
        *,
        temperature: float = 5.0,
        direction: str = "canonical",
        centre: bool = True,
        batch_norm: str = "none",
        evaluation_mean: str = "running",
    ):
        super().__init__(
            feature_dim,
            classes,
            temperature=temperature,
            batch_norm=batch_norm,
            evaluation_mean=evaluation_mean,
        )
        self.centre = centre
        etf = simplex_etf(classes, feature_dim, direction=direction)
        self.register_buffer("weight", etf.T.contiguous())

    def classifier(self) -> Tensor:
        """W, (C, d)."""
        return self.weight

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """See `ClassifierHead.forward`."""
        embedded = self.embed(features)
        mean = self._mean(embedded) if self.centre else None
        return self._logits(embedded, self.weight, mean)
