"""A backbone and the classifier head on its features, as one module."""

from __future__ import annotations

from typing import overload

from torch import Tensor, nn


class Model(nn.Module):
    """A backbone and the classifier head on its features.

    Args:
        backbone: ``(B, *sample_shape)`` → features ``(B, d)``.
        head: a `ddnkit_etf.ClassifierHead` on d features.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    @overload
    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor: ...
    @overload
    def forward(
        self, inputs: Tensor, labels: Tensor, *, embedded: bool
    ) -> tuple[Tensor, Tensor]: ...
    def forward(
        self, inputs: Tensor, labels: Tensor, *, embedded: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits ``(B, C)``; in training mode the labels update the head's statistics.

        With ``embedded`` also the features as the classifier sees them, ``(B, d)``.
        """
        features = self.backbone(inputs)
        logits: Tensor = self.head(features, labels)
        return (logits, self.head.embed(features)) if embedded else logits  # type: ignore[operator]
