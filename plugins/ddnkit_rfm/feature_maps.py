"""Random feature maps Φ(x) = σ(Wx + b), whose weights are drawn at random and not trained.

Each is scaled so that ⟨Φ(x), Φ(z)⟩ is a kernel on average. The scale makes no difference to Deep RFM, which
divides each sample's features by their norm.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ddnkit import InputError

from .kernels import Kernel

if TYPE_CHECKING:
    from .settings import FeatureMapSettings

#: Features at most in a smoke run.
_SMOKE_WIDTH = 256


class FeatureMap(abc.ABC):
    """A distribution of maps Φ of samples ``(n, d)`` to features ``(n, width)``."""

    @abc.abstractmethod
    def draw(self, dimension: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """Draw one map for samples of this dimension.

        The weights are drawn on the CPU in float64 and rounded to the dtype of the samples, so that models
        that differ in device or precision get the same map.
        """


@dataclass(frozen=True)
class RandomLayer:
    """Φ(x) = scale σ(Wx + b) of rows x.

    Attributes:
        weight: W ``(width, d)``, float64.
        bias: b ``(width,)``, float64, or None.
        scale: the factor.
        activation: σ, applied in place.
    """

    weight: Tensor
    bias: Tensor | None
    scale: float
    activation: Callable[[Tensor], Tensor]

    def __call__(self, X: Tensor) -> Tensor:
        """Features ``(n, width)`` of samples ``(n, d)``."""
        bias = None if self.bias is None else self.bias.to(X)
        features = torch.nn.functional.linear(X, self.weight.to(X), bias)
        return self.activation(features).mul_(self.scale)


class ReLUFeatures(FeatureMap):
    """Φ(x) = max(Wx, 0), W_ij independent N(0, 2/width), without a bias.

    On average ⟨Φ(x), Φ(z)⟩ = ‖x‖‖z‖ (sin θ + (π − θ) cos θ)/π, θ = ∠(x, z) (proposition A.1).

    Args:
        width: of the features; 1024 in the paper's experiments (appendix D).
    """

    def __init__(self, width: int = 1024) -> None:
        self.width = _check_width(width)

    def __repr__(self) -> str:
        return f"ReLUFeatures(width={self.width})"

    def draw(self, dimension: int, generator: torch.Generator) -> RandomLayer:
        """See `FeatureMap.draw`."""
        W = torch.randn(self.width, dimension, generator=generator, dtype=torch.float64)
        return RandomLayer(W, None, math.sqrt(2 / self.width), torch.relu_)


class FourierFeatures(FeatureMap):
    """Φ(x) = √(2/width) cos(Wx + b), rows of W from the kernel's spectral density, b uniform in 0…2π.

    On average ⟨Φ(x), Φ(z)⟩ = k(x, z) (Rahimi and Recht, *Random Features for Large-Scale Kernel Machines*,
    2007). The paper's are of “the ℓ1-Laplacian kernel with bandwidth σ = 0.05”: `L1Laplace(20.0)`, with σ
    read as a rate, collapses; with σ read as a length, the features of Fashion-MNIST are noise (DNC1 of
    220).

    Args:
        kernel: k, which must implement `Kernel.frequencies`.
        width: of the features; 4096 in the paper's experiments (appendix D).
    """

    def __init__(self, kernel: Kernel, width: int = 4096) -> None:
        self.kernel, self.width = kernel, _check_width(width)

    def __repr__(self) -> str:
        return f"FourierFeatures({self.kernel}, width={self.width})"

    def draw(self, dimension: int, generator: torch.Generator) -> RandomLayer:
        """See `FeatureMap.draw`."""
        W = self.kernel.frequencies(self.width, dimension, generator)
        b = torch.rand(self.width, generator=generator, dtype=torch.float64) * (2 * math.pi)
        return RandomLayer(W, b, math.sqrt(2 / self.width), torch.cos_)


class IdentityMap(FeatureMap):
    """Φ(x) = x: layers that only project on the AGOP."""

    def __repr__(self) -> str:
        return "IdentityMap()"

    def draw(self, dimension: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """See `FeatureMap.draw`."""
        return _identity


def _identity(X: Tensor) -> Tensor:
    return X


def _check_width(width: int) -> int:
    if width < 1:
        raise InputError(f"a feature map's width is at least 1, not {width}")
    return width


def build_feature_map(settings: FeatureMapSettings, *, smoke: bool = False) -> FeatureMap:
    """The feature map that a recipe describes; ``smoke`` makes it narrow."""
    if settings.name == "identity":
        return IdentityMap()
    width = settings.width or {"relu": 1024, "cosine": 4096}[settings.name]
    width = min(width, _SMOKE_WIDTH) if smoke else width
    if settings.name == "relu":
        return ReLUFeatures(width)
    return FourierFeatures(settings.kernel.build(), width)
