"""What the settings in `prototypes` name."""

from __future__ import annotations

import torch
from ddnkit_etf import ClassifierHead, unit_rows
from torch import Tensor, nn

from .prototypes import Prototypes


class PrototypeClassifier(ClassifierHead):
    """logits = τ cos(h, p_c) for prototypes p (C, d); a `ddnkit_etf.ClassifierHead`."""

    def __init__(self, feature_dim: int, classes: int, settings: Prototypes):
        super().__init__(feature_dim, classes, settings)
        self.prototypes = nn.Parameter(torch.randn(classes, feature_dim))

    def classifier(self) -> Tensor:
        """The prototypes at unit length, (C, d)."""
        return unit_rows(self.prototypes.detach())

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits (N, C)."""
        return self.temperature * self.embed(features) @ unit_rows(self.prototypes).mT
