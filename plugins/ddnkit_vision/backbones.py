"""ResNets, VGGs and DenseNets: ``(N, channels, height, width)`` → features ``(N, feature_dim)``.

The networks of torchvision without their last layer, which a classifier head takes the place of. By
default they have matrices and kernels alone to train (no bias, batch norms without affine
parameters), so that AGD applies.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from ddnkit_train import MLP
from torch import Tensor, nn
from torch.nn import functional as F

from ddnkit import InputError

from .settings import backbones as settings

#: Channels of each convolution, "M" a max-pool: the published configurations A, B and D.
VGG_LAYOUTS: dict[str, tuple[int | str, ...]] = {
    "vgg11": (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    "vgg13": (64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    "vgg16": (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"),
}  # fmt: skip
_HIDDEN = 4096


def build_resnet(
    given: settings.ResNetSettings, *, sample_shape: tuple[int, ...], samples: int
) -> nn.Module:
    """A network on images ``(channels, height, width)``."""
    channels = _channels(given, sample_shape)
    network = resnet(given.network, channels, stem=given.stem, affine=given.affine)
    return _with_mlp(network, given)


def build_cifar_resnet(
    given: settings.ResNet32, *, sample_shape: tuple[int, ...], samples: int
) -> nn.Module:
    """A network on images ``(channels, height, width)``."""
    channels = _channels(given, sample_shape)
    return _with_mlp(CifarResNet(5, channels, width=given.width, affine=given.affine), given)


def build_densenet(
    given: settings.DenseNetBC, *, sample_shape: tuple[int, ...], samples: int
) -> nn.Module:
    """A network on images ``(channels, height, width)``."""
    channels = _channels(given, sample_shape)
    # Of less than that two halvings leave nothing.
    least = {"cifar": 4, "imagenet": 13}[given.stem]
    if min(sample_shape[1:]) < least:
        raise InputError(
            f"backbone: densenet_bc with stem: {given.stem} needs images of at least "
            f"{least}×{least}; the samples of the data have shape {sample_shape}."
        )
    network = densenet_bc(
        channels, depth=given.depth, growth=given.growth, stem=given.stem, affine=given.affine
    )
    return _with_mlp(network, given)


def build_vgg(
    given: settings.VGGSettings, *, sample_shape: tuple[int, ...], samples: int
) -> nn.Module:
    """A network on images ``(channels, height, width)``.

    Below 32×32 its five pools round up where torchvision's round down to nothing.
    """
    network = VGG(
        VGG_LAYOUTS[given.network],
        _channels(given, sample_shape),
        neck=given.neck,
        bias=given.bias,
        affine=given.affine,
        ceil_mode=min(sample_shape[1:]) < 32,
    )
    return _with_mlp(network, given)


def _channels(given: settings.NetworkSettings, sample_shape: tuple[int, ...]) -> int:
    if len(sample_shape) != 3:
        raise InputError(
            f"backbone: {given.network} needs images (channels, height, width); "
            f"the samples of the data have shape {sample_shape}."
        )
    channels = sample_shape[0]
    weights = given.weights if isinstance(given, settings.PretrainableSettings) else "random"
    if weights != "random" and channels != 3:
        raise InputError(
            f"backbone: weights {weights} are of a network for images of 3 channels; "
            f"those of the data have {channels}."
        )
    return channels


def _with_mlp(network: nn.Module, given: settings.NetworkSettings) -> nn.Module:
    if not given.mlp_depth:
        return network
    return WithMLP(network, given.mlp_depth, given.mlp_width, init_scale=given.mlp_scale)


def resnet(
    name: str, in_channels: int = 3, *, stem: str = "imagenet", affine: bool = False
) -> nn.Module:
    """torchvision's ``name``, a residual network, up to the average pooling of its last maps.

    Args:
        in_channels: channels of the images.
        stem: "imagenet", 7×7 with stride 2 and a max-pool: a quarter of the resolution; "cifar",
            3×3 with neither: all of it, at 16 times the cost on the same image.
        affine: batch norms learn a scale and a shift.

    Raises:
        ddnkit.InputError: torchvision is not installed.
    """
    network: Any = getattr(_torchvision_models(name), name)(weights=None)
    network.feature_dim = network.fc.in_features
    network.fc = nn.Identity()
    if stem == "cifar":
        network.conv1 = _stem(in_channels, 64, kernel_size=3, stride=1, padding=1)
        network.maxpool = nn.Identity()
    elif in_channels != 3:
        network.conv1 = _stem(in_channels, 64, kernel_size=7, stride=2, padding=3)
    if not affine:
        _drop_affine(network)
    return network


class WithMLP(nn.Module):
    """h = relu(W_L relu(… relu(W_1 f(x)))): hidden layers without biases on the features of a network.

    As the fully connected layers of *Average gradient outer product as a mechanism for deep neural
    collapse* (NeurIPS 2024), appendix D: a ReLU follows each of them, the last included.

    Args:
        network: f, with an attribute ``feature_dim``; its features are vectors.
        depth: number L of hidden layers.
        width: units of each.
        init_scale: as of `ddnkit_train.MLP`.
    """

    def __init__(
        self, network: nn.Module, depth: int, width: int, *, init_scale: float | None = None
    ) -> None:
        super().__init__()
        self.network = network
        features: Any = network.feature_dim
        self.mlp = MLP((features,), width, depth, rectify=True, init_scale=init_scale)
        self.feature_dim = width

    def forward(self, images: Tensor) -> Tensor:
        """Features ``(B, width)`` of images ``(B, channels, height, width)``."""
        features: Tensor = self.mlp(self.network(images))
        return features


def densenet_bc(
    in_channels: int = 3,
    *,
    depth: int = 100,
    growth: int = 12,
    stem: str = "cifar",
    affine: bool = False,
) -> nn.Module:
    """torchvision's DenseNet with bottlenecks and compression 0.5, in three blocks of equal length.

    Source: G. Huang et al., "Densely Connected Convolutional Networks", CVPR 2017, section 4.2.

    Args:
        in_channels: channels of the images.
        depth: layers with weights, the classifier among them: 6n + 4, n in a block.
        growth: maps that each layer adds; the stem has twice as many.
        stem: "cifar", 3×3 at full resolution, as published for small images; "imagenet", 7×7 with
            stride 2 and a max-pool: a quarter of it.
        affine: batch norms learn a scale and a shift.

    Raises:
        ddnkit.InputError: torchvision is not installed.
    """
    width = 2 * growth
    network: Any = _torchvision_models("densenet_bc").DenseNet(
        growth_rate=growth,
        block_config=((depth - 4) // 6,) * 3,
        num_init_features=width,
        num_classes=1,
    )
    network.feature_dim = network.classifier.in_features
    network.classifier = nn.Identity()
    if stem == "cifar":
        network.features.conv0 = _stem(in_channels, width, kernel_size=3, stride=1, padding=1)
        # Every layer of a block starts with a batch norm and a ReLU of its own.
        for layer in ("norm0", "relu0", "pool0"):
            delattr(network.features, layer)
    elif in_channels != 3:
        network.features.conv0 = _stem(in_channels, width, kernel_size=7, stride=2, padding=3)
    if not affine:
        _drop_affine(network)
    return network


class CifarResNet(nn.Module):
    """A residual network for small images, of three stages and few channels, without its last layer.

    A stem, 3×3 with 16 channels at full resolution; stages of basic blocks with 16, 32 and 64
    channels, each after the first at half the resolution of the one before; the mean of each of the
    last maps. Shortcuts have no parameters: they take every other pixel and are 0 in the channels
    that a stage adds (option A). There are 6·blocks + 2 layers with weights, the classifier's among
    them.

    Source: K. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2;
    the start: He et al., "Delving Deep into Rectifiers", ICCV 2015.

    Args:
        blocks: of each stage; 5 for ResNet-32.
        in_channels: channels of the images.
        width: multiplies all channels; there are 64·width features.
        affine: batch norms learn a scale and a shift.
    """

    def __init__(
        self, blocks: int = 5, in_channels: int = 3, *, width: int = 1, affine: bool = False
    ) -> None:
        super().__init__()
        channels = [16 * width * 2**stage for stage in range(3) for _ in range(blocks)]
        self.stem = _Convolution(in_channels, channels[0], 1, affine)
        pairs = pairwise([channels[0], *channels])
        self.blocks = nn.Sequential(*(_Block(before, after, affine) for before, after in pairs))
        self.feature_dim = channels[-1]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Features ``(B, feature_dim)`` of images ``(B, in_channels, height, width)``."""
        return self.blocks(F.relu(self.stem(images))).mean(dim=(2, 3))


class _Convolution(nn.Sequential):
    """3×3 and a batch norm."""

    def __init__(self, channels: int, out_channels: int, stride: int, affine: bool) -> None:
        super().__init__(
            nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(out_channels, affine=affine),
        )


class _Block(nn.Module):
    """Two convolutions beside a shortcut; where the channels become more, at half the resolution."""

    def __init__(self, channels: int, out_channels: int, affine: bool) -> None:
        super().__init__()
        self.added = out_channels - channels
        self.first = _Convolution(channels, out_channels, 2 if self.added else 1, affine)
        self.second = _Convolution(out_channels, out_channels, 1, affine)

    def forward(self, maps: Tensor) -> Tensor:
        residual = self.second(F.relu(self.first(maps)))
        if self.added:
            maps = F.pad(maps[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.added))
        return F.relu(residual + maps)


class VGG(nn.Module):
    """torchvision's VGG with batch norm, up to the features that its classifier would see.

    Args:
        layout: as the entries of `VGG_LAYOUTS`.
        in_channels: channels of the images.
        neck: "pooled", the mean of each of the last 512 maps; "mlp", the two hidden layers of 4096
            units of the published network, on 7×7 maps, without dropout.
        bias: convolutions and hidden layers add a bias.
        affine: batch norms learn a scale and a shift.
        ceil_mode: a pool keeps the odd last row and column, as a window of their own. Without it
            an image below 32×32 is gone before the last of the five pools; of multiples of 32
            nothing is left over and it changes nothing.
    """

    def __init__(
        self,
        layout: tuple[int | str, ...],
        in_channels: int = 3,
        *,
        neck: str = "pooled",
        bias: bool = False,
        affine: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for width in layout:
            if isinstance(width, str):
                layers.append(nn.MaxPool2d(2, ceil_mode=ceil_mode))
                continue
            layers += [
                nn.Conv2d(channels, width, 3, padding=1, bias=bias),
                nn.BatchNorm2d(width, affine=affine),
                nn.ReLU(inplace=True),
            ]
            channels = width
        self.features = nn.Sequential(*layers)
        self.neck, self.feature_dim = _neck(neck, channels, bias=bias)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Features ``(B, feature_dim)`` of images ``(B, in_channels, height, width)``."""
        return self.neck(self.features(images))


def _neck(kind: str, channels: int, *, bias: bool) -> tuple[nn.Module, int]:
    if kind == "pooled":
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), channels
    side = 7
    hidden = (
        nn.Linear(channels * side**2, _HIDDEN, bias=bias),
        nn.ReLU(inplace=True),
        nn.Linear(_HIDDEN, _HIDDEN, bias=bias),
        nn.ReLU(inplace=True),
    )
    return nn.Sequential(nn.AdaptiveAvgPool2d(side), nn.Flatten(), *hidden), _HIDDEN


def _initialise(module: nn.Module) -> None:
    """The published start; an optimiser such as AGD gives the weights its own."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0, 0.01)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def _stem(
    in_channels: int, channels: int, *, kernel_size: int, stride: int, padding: int
) -> nn.Conv2d:
    stem = nn.Conv2d(in_channels, channels, kernel_size, stride, padding, bias=False)
    _initialise(stem)
    return stem


def _drop_affine(network: nn.Module) -> None:
    # torchvision initialises the parameters of its batch norms, and so cannot be built without.
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.affine = False
            module.register_parameter("weight", None)
            module.register_parameter("bias", None)


def _torchvision_models(name: str) -> Any:
    try:
        from torchvision import models
    except ImportError as error:
        raise InputError(
            f"backbone: {name} needs torchvision: pip install 'ddnkit[vision]'"
        ) from error
    return models
