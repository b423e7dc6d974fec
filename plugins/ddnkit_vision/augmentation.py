"""Random flips, rotations and crops of images, each sample for itself, a batch at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

#: In pixels, far outside of any image whichever way it is rotated.
_FAR = 1e6


@dataclass(frozen=True)
class FlipCropRotate:
    """Mirror each image left to right, rotate it about its centre, and shift its window.

    In this order, as torchvision would with ``hflip``, ``rotate``, ``pad`` and ``crop``; what lies
    outside of an image is 0. Without rotation the pixels are only moved: uint8 stays uint8.

    Attributes:
        flip: mirror every other image, at random.
        crop: pixels of padding on each side of which a window of the image's size is cut.
        rotation: the angle is uniform from −rotation to rotation, in degrees.
        interpolation: of the rotation.
    """

    flip: bool = True
    crop: int = 0
    rotation: float = 0.0
    interpolation: Literal["nearest", "bilinear"] = "bilinear"

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Rows ``(flip 0 or 1, pixels down, pixels right, degrees counter-clockwise)``, float32.

        The window moves by the pixels, from −crop to crop; the image moves the other way.
        """
        uniform = torch.rand(count, 4, generator=generator, device=generator.device)
        mirrored = (uniform[:, :1] < 0.5) & self.flip
        # The largest uniform number times 2·crop + 1 may be rounded up to it.
        shift = (uniform[:, 1:3] * (2 * self.crop + 1)).floor().clamp(max=2 * self.crop) - self.crop
        angle = (2 * uniform[:, 3:] - 1) * self.rotation
        return torch.cat([mirrored.to(uniform.dtype), shift, angle], dim=1)

    def apply(self, samples: Tensor, drawn: Tensor) -> Tensor:
        """The images ``(B, C, H, W)`` changed by their rows of ``drawn``, in the same scale.

        With rotation float images, also of uint8 ones; else of the type they have.
        """
        if self.rotation:
            return self._resample(samples, drawn)
        return self._move(samples, drawn) if self.flip or self.crop else samples

    def _move(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Flip and crop: every pixel is one pixel of the padded image, or 0."""
        count, channels, height, width = images.shape
        padded = F.pad(images, (self.crop,) * 4).flatten(2)
        stride = width + 2 * self.crop
        flip, down, right, _ = drawn.to(torch.int64).unsqueeze(-1).unbind(1)
        rows = torch.arange(height, device=images.device) + self.crop + down
        columns = torch.arange(width, device=images.device) + self.crop + right
        columns = torch.where(flip > 0, stride - 1 - columns, columns)
        index = (rows[:, :, None] * stride + columns[:, None, :]).view(count, 1, -1)
        return padded.gather(2, index.expand(count, channels, -1)).view(images.shape)

    def _resample(self, images: Tensor, drawn: Tensor) -> Tensor:
        """All three at once: where in the image each pixel of the window comes from."""
        images = images if images.is_floating_point() else images.to(torch.float32)
        height, width = images.shape[-2:]
        flip, down, right, angle = drawn.to(images.dtype).unsqueeze(-1).unbind(1)
        y, x = _places(height, down), _places(width, right)
        cosine, sine = torch.cos(angle * (math.pi / 180)), torch.sin(angle * (math.pi / 180))
        mirror = (1 - 2 * flip) * (2 / width)
        source_x = (mirror * cosine * x)[:, None, :] - (mirror * sine * y)[:, :, None]
        source_y = (sine * x * (2 / height))[:, None, :] + (cosine * y * (2 / height))[:, :, None]
        grid = torch.stack([source_x, source_y], dim=-1)
        return F.grid_sample(images, grid, mode=self.interpolation, align_corners=False)


def _places(size: int, shift: Tensor) -> Tensor:
    """Where the window's pixels ``(B, size)`` lie from the centre of the rotated image.

    Far away where they lie in the padding, which the crop makes after the rotation.
    """
    places = torch.arange(size, device=shift.device, dtype=shift.dtype) - (size - 1) / 2 + shift
    return torch.where(places.abs() < size / 2, places, _FAR)
