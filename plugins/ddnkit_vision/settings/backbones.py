"""Feature extractors of images: the ``backbone`` section of a recipe."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pydantic
from ddnkit_train.settings import BackboneSettings
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from ddnkit import Doubt, import_object

if TYPE_CHECKING:
    from torch import nn


class NetworkSettings(BackboneSettings):
    """Base of the networks on images."""

    #: Its name, in torchvision where that has it.
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


class PretrainableSettings(NetworkSettings):
    """Base of the networks whose published weights torchvision has."""

    #: What the published networks have; ours may differ.
    as_published: ClassVar[dict[str, Any]]
    #: The layer of a file of weights that a classifier head takes the place of.
    last_layer: ClassVar[str]
    #: Our layers that have another name in the file, and that name.
    renamed_layers: ClassVar[dict[str, str]] = {}

    weights: Literal["random", "imagenet"] | Path = Field(
        default="random",
        description="Where the training starts: 'random'; 'imagenet', torchvision's weights "
        "(IMAGENET1K_V1), looked for in weights in $DDNKIT_DATA, then in ~/.cache/ddnkit, then "
        "among torch.hub's checkpoints, or fetched with --download; or a file of the same names, "
        ".pth, .pt or .safetensors. The last layer is left out. The weights expect images "
        "standardised by ImageNet's mean and deviation, as image_folder, imagenet_lt and cub200 are.",
    )

    @pydantic.model_validator(mode="after")
    def _as_the_weights_need(self) -> PretrainableSettings:
        if self.weights != "random":
            needed = {"affine": True, **self.as_published}
            differing = [key for key, value in needed.items() if getattr(self, key) != value]
            if differing:
                keys = ", ".join(f"{key}: {str(needed[key]).lower()}" for key in differing)
                raise ValueError(f"weights {self.weights} need {keys}, as the published network")
        return self

    @property
    def published_network(self) -> str:
        """The network of torchvision that has the weights."""
        return self.network

    def locate(self, *, download: bool = False) -> None:
        """See `BackboneSettings.locate`; the file is not opened."""
        if self.weights != "random":
            import_object("ddnkit_vision.pretrained:locate_weights")(self, download=download)

    def start(self, backbone: nn.Module, *, download: bool = False) -> None:
        """See `BackboneSettings.start`."""
        if self.weights != "random":
            load = import_object("ddnkit_vision.pretrained:load_weights")
            load(self, backbone, download=download)


class ResNetSettings(PretrainableSettings):
    """Base of torchvision's residual networks."""

    builder = "ddnkit_vision.backbones:build_resnet"
    as_published: ClassVar[dict[str, Any]] = {"stem": "imagenet"}
    last_layer: ClassVar[str] = "fc"

    stem: Literal["imagenet", "cifar"] = Field(
        default="imagenet",
        description="'imagenet': 7×7 convolution with stride 2, then a max-pool, at any image size "
        "(so the published code of Guiding Neural Collapse, at 32×32 too); 'cifar': 3×3 convolution "
        "with stride 1 and no pool, more accurate on small images at 16 times the cost.",
    )


class ResNet18(ResNetSettings):
    """ResNet-18 of torchvision without its last layer: 512 features."""

    network = "resnet18"


class ResNet34(ResNetSettings):
    """ResNet-34 of torchvision without its last layer: 512 features."""

    network = "resnet34"


class ResNet50(ResNetSettings):
    """ResNet-50 of torchvision without its last layer: 2048 features."""

    network = "resnet50"


class ResNet101(ResNetSettings):
    """ResNet-101 of torchvision without its last layer: 2048 features."""

    network = "resnet101"


class ResNet32(NetworkSettings):
    """ResNet-32 for small images such as CIFAR's, without its last layer: 64 features.

    A 3×3 stem, then three stages of five basic blocks with 16, 32 and 64 channels; shortcuts have
    no parameters (He et al. 2016, section 4.2).
    """

    builder = "ddnkit_vision.backbones:build_cifar_resnet"
    network = "resnet32"

    width: PositiveInt = Field(
        default=1,
        description="Multiplies all channels: 64·width features. A simplex ETF of C classes needs "
        "at least C − 1.",
    )


class DenseNetBC(NetworkSettings):
    """DenseNet-BC for small images, three blocks with compression 0.5, without its last layer.

    By default 342 features, as published for CIFAR with 0.8 million parameters (Huang et al. 2017).
    """

    builder = "ddnkit_vision.backbones:build_densenet"
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


class VGGSettings(PretrainableSettings):
    """Base of torchvision's VGGs with batch norm."""

    builder = "ddnkit_vision.backbones:build_vgg"
    as_published: ClassVar[dict[str, Any]] = {"bias": True, "neck": "mlp"}
    last_layer: ClassVar[str] = "classifier.6"
    renamed_layers: ClassVar[dict[str, str]] = {
        "neck.2": "classifier.0",
        "neck.4": "classifier.3",
    }

    bias: bool = Field(
        default=False, description="Convolutions and hidden layers add a bias, as the published."
    )
    neck: Literal["pooled", "mlp"] = Field(
        default="pooled",
        description="'pooled': the mean of each of the 512 last maps; 'mlp': the two hidden layers "
        "of 4096 units of the published network, without dropout.",
    )

    @property
    def published_network(self) -> str:
        """The network of torchvision that has the weights."""
        return f"{self.network}_bn"


class VGG11(VGGSettings):
    """VGG-11 with batch norm, up to its features: 512, or 4096 with neck 'mlp'."""

    network = "vgg11"


class VGG13(VGGSettings):
    """VGG-13 with batch norm, up to its features: 512, or 4096 with neck 'mlp'."""

    network = "vgg13"


class VGG16(VGGSettings):
    """VGG-16 with batch norm, up to its features: 512, or 4096 with neck 'mlp'."""

    network = "vgg16"
