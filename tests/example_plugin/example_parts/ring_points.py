"""What the settings in `rings` name."""

from __future__ import annotations

import torch
from ddnkit_train import Dataset
from torch import Tensor

from .rings import Rings


def draw_rings(settings: Rings, *, seed: int, smoke: bool, download: bool = False) -> Dataset:
    """Points (N, 2); they need no files, and are few enough for a smoke run as they are."""
    generator = torch.Generator().manual_seed(0)  # the same data for every seed of a recipe
    train = _points(settings.classes, settings.per_class, generator)
    test = _points(settings.classes, max(settings.per_class // 3, 1), generator)
    return Dataset(*train, settings.classes, *test)


def _points(classes: int, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    labels = torch.arange(classes).repeat_interleave(count)
    angle = 2 * torch.pi * torch.rand(len(labels), generator=generator)
    radius = 1 + labels + 0.1 * torch.randn(len(labels), generator=generator)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1), labels
