"""The standard head: a learned classifier, its rows normalised after each step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..directions import unit_rows
from .base import ClassifierHead


class StandardClassifier(ClassifierHead):
    """logits = τ W h with W learned, without bias (*GNC*, section 4, "standard").

    Args:
        normalise: features on the unit sphere, and rows of W brought to unit length after each step;
            False is the paper's "no-norm" ablation (Fig. 17).
        centre: subtract the mean feature, as the ETF heads do.
        evaluation_mean: see `ClassifierHead`; of use where it centres.
    """

    def __init__(
        self,
        feature_dim: int,
        classes: int,
        *,
        temperature: float = 5.0,
        normalise: bool = True,
        centre: bool = False,
        evaluation_mean: str = "running",
    ):
        super().__init__(
            feature_dim,
            classes,
            temperature=temperature,
            normalise=normalise,
            evaluation_mean=evaluation_mean,
        )
        self.centre = centre
        self.weight = nn.Parameter(torch.empty(classes, feature_dim))
        nn.init.orthogonal_(self.weight)
        self.after_step()

    def classifier(self) -> Tensor:
        """W, (C, d)."""
        return self.weight.detach()

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """See `ClassifierHead.forward`."""
        embedded = self.embed(features)
        mean = self._mean(embedded) if self.centre else None
        return self._logits(embedded, self.weight, mean)

    @torch.no_grad()
    def after_step(self) -> None:
        """Brings the rows of W to unit length, where the head normalises."""
        if self.normalise:
            self.weight.copy_(unit_rows(self.weight))
