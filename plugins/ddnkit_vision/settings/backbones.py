"""Feature extractors of images: the ``backbone`` section of a recipe."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from ddnkit import InputError, Settings

if TYPE_CHECKING:
    from torch import nn


class _Network(Settings, abc.ABC):
    name_in_torchvision: ClassVar[str]

    affine: bool = Field(
        default=False,
        description="Batch norms learn a scale and a shift, which AGD could not train.",
    )

    def _channels(self, sample_shape: tuple[int, ...]) -> int:
        if len(sample_shape) != 3:
            raise InputError(
                f"backbone: {self.name_in_torchvision} needs images (channels, height, width); "
                f"the samples of the data have shape {sample_shape}."
            )
        return sample_shape[0]


class _ResNet(_Network):
    stem: Literal["imagenet", "cifar"] = Field(
        default="imagenet",
        description="'imagenet': 7×7 convolution with stride 2, then a max-pool, at any image size "
        "(so the published code of Guiding Neural Collapse, at 32×32 too); 'cifar': 3×3 convolution "
        "with stride 1 and no pool, more accurate on small images at 16 times the cost.",
    )

    def build(self, *, sample_shape: tuple[int, ...], samples: int) -> nn.Module:
        """A network on images ``(channels, height, width)``; needs torchvision."""
        from ..backbones import resnet

        channels = self._channels(sample_shape)
        return resnet(self.name_in_torchvision, channels, stem=self.stem, affine=self.affine)


class ResNet18(_ResNet):
    """ResNet-18 of torchvision without its last layer: 512 features."""

    name_in_torchvision = "resnet18"


class ResNet34(_ResNet):
    """ResNet-34 of torchvision without its last layer: 512 features."""

    name_in_torchvision = "resnet34"


class ResNet50(_ResNet):
    """ResNet-50 of torchvision without its last layer: 2048 features."""

    name_in_torchvision = "resnet50"


class _VGG(_Network):
    bias: bool = Field(
        default=False, description="Convolutions and hidden layers add a bias, as the published."
    )
    neck: Literal["pooled", "mlp"] = Field(
        default="pooled",
        description="'pooled': the mean of each of the 512 last maps; 'mlp': the two hidden layers "
        "of 4096 units of the published network, without dropout.",
    )

    def build(self, *, sample_shape: tuple[int, ...], samples: int) -> nn.Module:
        """A network on images ``(channels, height, width)``.

        Below 32×32 its five pools round up where torchvision's round down to nothing.
        """
        from ..backbones import VGG, VGG_LAYOUTS

        return VGG(
            VGG_LAYOUTS[self.name_in_torchvision],
            self._channels(sample_shape),
            neck=self.neck,
            bias=self.bias,
            affine=self.affine,
            ceil_mode=min(sample_shape[1:]) < 32,
        )


class VGG11(_VGG):
    """VGG-11 with batch norm, up to its features: 512, or 4096 with neck 'mlp'."""

    name_in_torchvision = "vgg11"


class VGG13(_VGG):
    """VGG-13 with batch norm, up to its features: 512, or 4096 with neck 'mlp'."""

    name_in_torchvision = "vgg13"


class VGG16(_VGG):
    """VGG-16 with batch norm, up to its features: 512, or 4096 with neck 'mlp'."""

    name_in_torchvision = "vgg16"
