"""Feature extractors of images: the ``backbone`` section of a recipe."""

from __future__ import annotations

import abc
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pydantic
from ddnkit_train.settings import BackboneSettings
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from ddnkit import Doubt, InputError

from ..pretrained import Published

if TYPE_CHECKING:
    from torch import nn


class _Network(BackboneSettings, abc.ABC):
    network: ClassVar[str]
    start_scales = ("mlp_scale",)

    affine: bool = Field(
        default=False,
        description="Batch norms learn a scale and a shift, which AGD could not train.",
    )
    mlp_depth: NonNegativeInt = Field(
        default=0,
        description="Hidden layers on the network's features, bias-free and each with a ReLU; the "
        "last of them gives the features. 0: none.",
    )
    mlp_width: PositiveInt = Field(default=512, description="Units of each of these layers.")
    mlp_scale: PositiveFloat | None = Field(
        default=None,
        description="Gain of Xavier's uniform start of these layers; small: feature learning. Default: "
        "torch's own start, which for a square matrix is a gain of 0.58. Not with AGD.",
    )

    def doubts(self) -> Iterable[Doubt]:
        """See `Settings.doubts`."""
        if not self.mlp_depth:
            for key in ("mlp_width", "mlp_scale"):
                yield Doubt(key, "does nothing: mlp_depth is 0", idle=True)

    def build(self, *, sample_shape: tuple[int, ...], samples: int) -> nn.Module:
        """A network on images ``(channels, height, width)``."""
        network = self._build(sample_shape)
        if not self.mlp_depth:
            return network
        from ..backbones import WithMLP

        return WithMLP(network, self.mlp_depth, self.mlp_width, init_scale=self.mlp_scale)

    @abc.abstractmethod
    def _build(self, sample_shape: tuple[int, ...]) -> nn.Module:
        """The network without the layers of ``mlp_depth``."""

    def _channels(self, sample_shape: tuple[int, ...]) -> int:
        if len(sample_shape) != 3:
            raise InputError(
                f"backbone: {self.network} needs images (channels, height, width); "
                f"the samples of the data have shape {sample_shape}."
            )
        return sample_shape[0]


class _Pretrainable(_Network, abc.ABC):
    """Base of the networks whose published weights torchvision has."""

    #: What the published networks have; ours may differ.
    as_published: ClassVar[dict[str, Any]]

    weights: Literal["random", "imagenet"] | Path = Field(
        default="random",
        description="Where the training starts: 'random'; 'imagenet', torchvision's weights "
        "(IMAGENET1K_V1), looked for in weights in $DDNKIT_DATA, then in ~/.cache/ddnkit, then "
        "among torch.hub's checkpoints, or fetched with --download; or a file of the same names, "
        ".pth, .pt or .safetensors. The last layer is left out. The weights expect images "
        "standardised by ImageNet's mean and deviation, as image_folder, imagenet_lt and cub200 are.",
    )

    @pydantic.model_validator(mode="after")
    def _as_the_weights_need(self) -> _Pretrainable:
        if self.weights != "random":
            needed = {"affine": True, **self.as_published}
            differing = [key for key, value in needed.items() if getattr(self, key) != value]
            if differing:
                keys = ", ".join(f"{key}: {str(needed[key]).lower()}" for key in differing)
                raise ValueError(f"weights {self.weights} need {keys}, as the published network")
        return self

    @property
    @abc.abstractmethod
    def published(self) -> Published:
        """The network of torchvision that has the weights."""

    def locate(self, *, download: bool = False) -> None:
        """See `BackboneSettings.locate`; the file is not opened."""
        if self.weights != "random":
            self.published.locate(self.weights, download=download)

    def start(self, backbone: nn.Module, *, download: bool = False) -> None:
        """See `BackboneSettings.start`."""
        if self.weights != "random":
            network: Any = backbone.network if self.mlp_depth else backbone
            self.published.load(network, self.weights, download=download)

    def _channels(self, sample_shape: tuple[int, ...]) -> int:
        channels = super()._channels(sample_shape)
        if self.weights != "random" and channels != 3:
            raise InputError(
                f"backbone: weights {self.weights} are of a network for images of 3 channels; "
                f"those of the data have {channels}."
            )
        return channels


class _ResNet(_Pretrainable):
    as_published: ClassVar[dict[str, Any]] = {"stem": "imagenet"}

    stem: Literal["imagenet", "cifar"] = Field(
        default="imagenet",
        description="'imagenet': 7×7 convolution with stride 2, then a max-pool, at any image size "
        "(so the published code of Guiding Neural Collapse, at 32×32 too); 'cifar': 3×3 convolution "
        "with stride 1 and no pool, more accurate on small images at 16 times the cost.",
    )

    @property
    def published(self) -> Published:
        """The network of torchvision that has the weights."""
        return Published(self.network, "fc", {})

    def _build(self, sample_shape: tuple[int, ...]) -> nn.Module:
        from ..backbones import resnet

        channels = self._channels(sample_shape)
        return resnet(self.network, channels, stem=self.stem, affine=self.affine)


class ResNet18(_ResNet):
    """ResNet-18 of torchvision without its last layer: 512 features."""

    network = "resnet18"


class ResNet34(_ResNet):
    """ResNet-34 of torchvision without its last layer: 512 features."""

    network = "resnet34"


class ResNet50(_ResNet):
    """ResNet-50 of torchvision without its last layer: 2048 features."""

    network = "resnet50"


class ResNet101(_ResNet):
    """ResNet-101 of torchvision without its last layer: 2048 features."""

    network = "resnet101"


class ResNet32(_Network):
    """ResNet-32 for small images such as CIFAR's, without its last layer: 64 features.

    A 3×3 stem, then three stages of five basic blocks with 16, 32 and 64 channels; shortcuts have
    no parameters (He et al. 2016, section 4.2).
    """

    network = "resnet32"

    width: PositiveInt = Field(
        default=1,
        description="Multiplies all channels: 64·width features. A simplex ETF of C classes needs "
        "at least C − 1.",
    )

    def _build(self, sample_shape: tuple[int, ...]) -> nn.Module:
        from ..cifar_resnet import CifarResNet

        return CifarResNet(5, self._channels(sample_shape), width=self.width, affine=self.affine)


class DenseNetBC(_Network):
    """DenseNet-BC for small images, three blocks with compression 0.5, without its last layer.

    By default 342 features, as published for CIFAR with 0.8 million parameters (Huang et al. 2017).
    """

    network = "densenet_bc"

    depth: int = Field(
        default=100,
        ge=10,
        description="Layers with weights, the classifier among them: 6n + 4, n in each block.",
    )
    growth: PositiveInt = Field(
        default=12, description="Maps that each layer adds; the stem has twice as many."
    )
    stem: Literal["imagenet", "cifar"] = Field(
        default="cifar",
        description="'cifar': 3×3 convolution with stride 1 and no pool, as published for small "
        "images; 'imagenet': 7×7 with stride 2, then a max-pool, as for STL-10's 96×96 images at a "
        "sixteenth of the cost.",
    )

    @pydantic.field_validator("depth")
    @classmethod
    def _has_equal_blocks(cls, depth: int) -> int:
        if (depth - 4) % 6:
            below = depth - (depth - 4) % 6
            raise ValueError(f"depth is 6n + 4, such as {below} or {below + 6}, not {depth}")
        return depth

    def _build(self, sample_shape: tuple[int, ...]) -> nn.Module:
        from ..backbones import densenet_bc

        channels = self._channels(sample_shape)
        # Of less than that two halvings leave nothing.
        least = {"cifar": 4, "imagenet": 13}[self.stem]
        if min(sample_shape[1:]) < least:
            raise InputError(
                f"backbone: densenet_bc with stem: {self.stem} needs images of at least "
                f"{least}×{least}; the samples of the data have shape {sample_shape}."
            )
        return densenet_bc(
            channels, depth=self.depth, growth=self.growth, stem=self.stem, affine=self.affine
        )


class _VGG(_Pretrainable):
    as_published: ClassVar[dict[str, Any]] = {"bias": True, "neck": "mlp"}

    bias: bool = Field(
        default=False, description="Convolutions and hidden layers add a bias, as the published."
    )
    neck: Literal["pooled", "mlp"] = Field(
        default="pooled",
        description="'pooled': the mean of each of the 512 last maps; 'mlp': the two hidden layers "
        "of 4096 units of the published network, without dropout.",
    )

    @property
    def published(self) -> Published:
        """The network of torchvision that has the weights."""
        layers = {"neck.2": "classifier.0", "neck.4": "classifier.3"}
        return Published(f"{self.network}_bn", "classifier.6", layers)

    def _build(self, sample_shape: tuple[int, ...]) -> nn.Module:
        """Below 32×32 its five pools round up where torchvision's round down to nothing."""
        from ..backbones import VGG, VGG_LAYOUTS

        return VGG(
            VGG_LAYOUTS[self.network],
            self._channels(sample_shape),
            neck=self.neck,
            bias=self.bias,
            affine=self.affine,
            ceil_mode=min(sample_shape[1:]) < 32,
        )


class VGG11(_VGG):
    """VGG-11 with batch norm, up to its features: 512, or 4096 with neck 'mlp'."""

    network = "vgg11"


class VGG13(_VGG):
    """VGG-13 with batch norm, up to its features: 512, or 4096 with neck 'mlp'."""

    network = "vgg13"


class VGG16(_VGG):
    """VGG-16 with batch norm, up to its features: 512, or 4096 with neck 'mlp'."""

    network = "vgg16"
