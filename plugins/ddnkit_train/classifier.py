"""A trained classifier as plain torch: nothing of ddnkit is needed to run it once exported."""

from __future__ import annotations

import torch
from ddnkit_etf import unit_rows
from torch import Tensor, nn


class FinalHead(nn.Module):
    """logits = τ W (h'/‖h'‖ − h_G), h' = a∘h + b: what any head of the training comes to in the end.

    Args:
        weight: W ``(C, d)``.
        global_mean: h_G ``(d,)``; zeros where the head does not centre.
        temperature: τ.
        normalise: bring features to the unit sphere.
        batch_mean: h_G is the mean of the batch at hand instead.
        feature_map: (a, b) ``(d,)`` each; None: h' = h.
    """

    weight: Tensor
    global_mean: Tensor
    temperature: Tensor
    scale: Tensor | None
    shift: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        global_mean: Tensor,
        temperature: float,
        *,
        normalise: bool = True,
        batch_mean: bool = False,
        feature_map: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.normalise, self.batch_mean = normalise, batch_mean
        scale, shift = feature_map or (None, None)
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)
        self.register_buffer("weight", weight)
        self.register_buffer("global_mean", global_mean)
        self.register_buffer("temperature", torch.tensor(temperature, dtype=torch.float64))

    def embed(self, features: Tensor) -> Tensor:
        """The features as the classifier sees them, not centred; in float32 or wider."""
        if features.dtype in (torch.float16, torch.bfloat16):
            features = features.float()
        if self.scale is not None and self.shift is not None:
            features = features * self.scale + self.shift
        return unit_rows(features) if self.normalise else features

    def classifier(self) -> Tensor:
        """W ``(C, d)``."""
        return self.weight

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits ``(B, C)`` of features ``(B, d)``; labels are not needed."""
        embedded = self.embed(features)
        kind = embedded.device.type
        if torch.is_autocast_enabled(kind):  # τ amplifies the rounding of narrow types
            with torch.autocast(kind, enabled=False):
                return self._logits(embedded)
        return self._logits(embedded)

    def _logits(self, embedded: Tensor) -> Tensor:
        mean = embedded.mean(dim=0) if self.batch_mean else self.global_mean
        return self.temperature * (embedded - mean) @ self.weight.T


class Classifier(nn.Module):
    """Stored samples → logits: ``head(backbone(prepare(samples)))``.

    Args:
        prepare: stored samples ``(B, *stored_shape)`` → what the network sees.
        backbone: that → features ``(B, d)``.
        head: on the features.
    """

    def __init__(
        self,
        prepare: nn.Module,
        backbone: nn.Module,
        head: FinalHead,
    ) -> None:
        super().__init__()
        self.prepare, self.backbone, self.head = prepare, backbone, head
        floating = (p.dtype for p in backbone.parameters() if p.is_floating_point())
        self.dtype = next(floating, torch.float32)

    def forward(self, samples: Tensor) -> Tensor:
        """Logits ``(B, C)`` of samples ``(B, *stored_shape)``."""
        inputs: Tensor = self.prepare(samples)
        if inputs.is_floating_point():
            inputs = inputs.to(self.dtype)
        logits: Tensor = self.head(self.backbone(inputs))
        return logits
