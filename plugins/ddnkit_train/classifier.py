"""A trained classifier as plain torch: nothing of ddnkit is needed to run it once exported."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FinalHead(nn.Module):
    """logits = τ W (h/‖h‖ − h_G): what any head of the training comes to in the end.

    Args:
        weight: W ``(C, d)``.
        global_mean: h_G ``(d,)``; zeros where the head does not centre.
        temperature: τ.
        normalise: bring features to the unit sphere.
        batch_mean: h_G is the mean of the batch at hand instead.
    """

    weight: Tensor
    global_mean: Tensor
    temperature: Tensor

    def __init__(
        self,
        weight: Tensor,
        global_mean: Tensor,
        temperature: float,
        *,
        normalise: bool = True,
        batch_mean: bool = False,
    ) -> None:
        super().__init__()
        self.normalise, self.batch_mean = normalise, batch_mean
        self.register_buffer("weight", weight)
        self.register_buffer("global_mean", global_mean)
        self.register_buffer("temperature", torch.tensor(temperature, dtype=torch.float64))

    def embed(self, features: Tensor) -> Tensor:
        """The features as the classifier sees them, not centred; in float32 or wider."""
        if features.dtype in (torch.float16, torch.bfloat16):
            features = features.float()
        return nn.functional.normalize(features, dim=-1) if self.normalise else features

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
        weight, mean, temperature, normalise, batch_mean: of the `FinalHead`.
    """

    def __init__(
        self,
        prepare: nn.Module,
        backbone: nn.Module,
        weight: Tensor,
        mean: Tensor,
        temperature: float,
        *,
        normalise: bool = True,
        batch_mean: bool = False,
    ) -> None:
        super().__init__()
        self.prepare, self.backbone = prepare, backbone
        self.head = FinalHead(weight, mean, temperature, normalise=normalise, batch_mean=batch_mean)
        floating = (p.dtype for p in backbone.parameters() if p.is_floating_point())
        self.dtype = next(floating, torch.float32)

    def forward(self, samples: Tensor) -> Tensor:
        """Logits ``(B, C)`` of samples ``(B, *stored_shape)``."""
        inputs: Tensor = self.prepare(samples)
        if inputs.is_floating_point():
            inputs = inputs.to(self.dtype)
        logits: Tensor = self.head(self.backbone(inputs))
        return logits
