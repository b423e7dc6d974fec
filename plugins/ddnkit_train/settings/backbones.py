"""Feature extractors: the ``backbone`` section of a recipe."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, PositiveFloat, PositiveInt

from ddnkit import InputError, Settings

if TYPE_CHECKING:
    from torch import nn


class BackboneSettings(Settings, abc.ABC):
    """Base of all feature extractors."""

    #: Keys that scale the start of weights; AGD, which gives all weights its own, refuses them.
    start_scales: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def build(self, *, sample_shape: tuple[int, ...], samples: int) -> nn.Module:
        """A module with an attribute ``feature_dim``, from samples to features ``(B, feature_dim)``.

        Args:
            sample_shape: of one sample as the network sees it.
            samples: number of training samples.
        """

    def locate(self, *, download: bool = False) -> None:
        """Check, before anything else is done, that the files the network starts from exist.

        Args:
            download: files that can be fetched may be missing.

        Raises:
            ddnkit.InputError: files are missing; the text says which, where they were looked for,
                and what to do.
        """
        return None

    def start(self, backbone: nn.Module, *, download: bool = False) -> None:
        """Give a network that was built its weights from files, where it has such; not in a smoke run.

        Raises:
            ddnkit.InputError: files are missing, damaged, or do not fit the network.
        """
        return None


class FreeFeatures(BackboneSettings):
    """Features that are parameters themselves, one vector a sample (unconstrained features)."""

    dimension: PositiveInt = Field(default=512, description="Feature dimension d.")

    def build(self, *, sample_shape: tuple[int, ...], samples: int) -> nn.Module:
        """A table of ``samples`` feature vectors, looked up by index."""
        from ..backbones import FreeFeatures

        if sample_shape != ():
            raise InputError(
                f"backbone: free_features looks features up by a sample's index; samples of shape "
                f"{sample_shape} are no indices. Use it with data: free_features."
            )
        return FreeFeatures(samples, self.dimension)


class MLP(BackboneSettings):
    """A perceptron of layers of equal width with ReLU between them; the last gives the features."""

    start_scales = ("init_scale",)

    width: PositiveInt = Field(default=512, description="Units of each layer; feature dimension.")
    depth: PositiveInt = Field(default=4, description="Number of hidden weight matrices.")
    bias: bool = Field(
        default=False, description="Add a bias in each layer. AGD is defined for matrices alone."
    )
    rectify: bool = Field(
        default=False,
        description="ReLU after the last layer too: `depth` hidden layers below the classifier.",
    )
    init_scale: PositiveFloat | None = Field(
        default=None,
        description="Gain of Xavier's uniform start of the weights; small: feature learning. Default: "
        "torch's own start, which for a square matrix is a gain of 0.58. Not with AGD.",
    )

    def build(self, *, sample_shape: tuple[int, ...], samples: int) -> nn.Module:
        """A perceptron on the flattened sample."""
        from ..backbones import MLP

        if sample_shape == ():
            raise InputError("backbone: mlp needs vectors or images, not the indices of the data.")
        return MLP(
            sample_shape,
            self.width,
            self.depth,
            bias=self.bias,
            rectify=self.rectify,
            init_scale=self.init_scale,
        )


class CNN(BackboneSettings):
    """A small convolutional network: 3×3 convolution, batch norm, ReLU; then average pooling.

    Bias-free, its batch norm without affine parameters, so that AGD applies.
    """

    channels: tuple[PositiveInt, ...] = Field(
        default=(32, 64, 128),
        min_length=1,
        description="Channels of each stage; every stage halves the resolution. The last is the "
        "feature dimension.",
    )
    blocks: PositiveInt = Field(default=1, description="Convolutions in each stage.")

    def build(self, *, sample_shape: tuple[int, ...], samples: int) -> nn.Module:
        """A network on images ``(channels, height, width)``."""
        from ..backbones import CNN

        if len(sample_shape) != 3:
            raise InputError(
                f"backbone: cnn needs images (channels, height, width); the samples of the data "
                f"have shape {sample_shape}."
            )
        return CNN(sample_shape[0], self.channels, self.blocks)
