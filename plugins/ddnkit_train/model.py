"""A backbone with the classifier head on its features, while it trains and as plain torch after."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, overload

import torch
from ddnkit_etf import unit_rows
from torch import Tensor, nn


class Head(Protocol):
    """What a training uses of a classifier, which is a module; see `ddnkit_etf.ClassifierHead`."""

    @property
    def temperature(self) -> float | Tensor:
        """τ, the factor of the logits."""

    @property
    def global_mean(self) -> Tensor:
        """The mean ``(d,)`` that is subtracted from embedded features; zeros where none is."""

    def embed(self, features: Tensor) -> Tensor:
        """The features ``(B, d)`` as the classifier sees them, not centred."""

    def classifier(self) -> Tensor:
        """W in use ``(C, d)``, detached."""

    def after_step(self) -> None:
        """Called after each step of the optimiser, and once before the first."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """What of it is trained."""

    def __call__(self, features: Tensor, labels: Tensor | None = None, /) -> Tensor:
        """Logits ``(B, C)``; labels are needed while training."""


class Model(nn.Module):
    """A backbone and the classifier head on its features.

    Args:
        backbone: ``(B, *sample_shape)`` → features ``(B, d)``.
        head: a `ddnkit_etf.ClassifierHead` on d features, or a module that has the same members.
    """

    head: Head

    def __init__(self, backbone: nn.Module, head: Head) -> None:
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
        logits = self.head(features, labels)
        return (logits, self.head.embed(features)) if embedded else logits


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

    def after_step(self) -> None:
        """Nothing of it is trained."""

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
