"""The small residual networks that were published for CIFAR's images."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F


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


__all__ = ["CifarResNet"]
