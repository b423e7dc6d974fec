"""ClassifierHead: the contract of the classifiers at the end of a network."""

from __future__ import annotations

import abc

import torch
from torch import Tensor, nn


class ClassifierHead(nn.Module, abc.ABC):
    """logits = τ W (h/‖h‖ − h_G), with W (C×d) chosen by the head.

    h_G is the batch's mean while training and the running training mean in evaluation; heads that do
    not centre have h_G = 0, and heads that do not normalise use h as it is.

    Args:
        feature_dim: d.
        classes: C.
        temperature: τ.
        normalise: bring features to the unit sphere.
    """

    global_mean: Tensor
    mean_steps: Tensor

    def __init__(
        self, feature_dim: int, classes: int, *, temperature: float, normalise: bool = True
    ):
        super().__init__()
        self.feature_dim, self.classes = feature_dim, classes
        self.temperature = temperature
        self.normalise = normalise
        self.register_buffer("global_mean", torch.zeros(feature_dim))
        self.register_buffer("mean_steps", torch.zeros(()))

    @abc.abstractmethod
    def classifier(self) -> Tensor:
        """W in use, (C, d), detached."""

    @abc.abstractmethod
    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits (N, C) for features (N, d); labels (N,) are needed while training."""

    @property
    def class_means(self) -> Tensor | None:
        """(d, C) running class means; None for heads that keep none."""
        return None

    def embed(self, features: Tensor) -> Tensor:
        """The features as the classifier sees them, not centred; in float32 or wider."""
        if features.dtype in (torch.float16, torch.bfloat16):
            features = features.float()
        return nn.functional.normalize(features, dim=-1) if self.normalise else features

    def after_step(self) -> None:
        """To call after each optimiser step, and once before the first."""
        return None

    def _centre_on_batch(self, embedded: Tensor) -> Tensor:
        """The batch's mean, differentiable, which is also averaged into `global_mean`.

        The weight of the newest batch decays as that of the class means does (*GNC*, section 4).
        """
        mean = embedded.mean(dim=0)
        with torch.no_grad():
            newest = (2 / (self.mean_steps + 2)).clamp(min=1e-4)
            self.global_mean.lerp_(mean.to(self.global_mean.dtype), newest)
            self.mean_steps += 1
        return mean

    def _logits(self, embedded: Tensor, W: Tensor, mean: Tensor | None) -> Tensor:
        # In the features' own precision, whatever autocast would choose: τ amplifies rounding.
        with torch.autocast(embedded.device.type, enabled=False):
            centred = embedded if mean is None else embedded - mean
            return self.temperature * centred @ W.T
