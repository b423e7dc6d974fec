"""Standardisation: shift and scale the samples by the statistics of the training set."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

How = Literal["global", "channel", "pixel", "none"]
#: Samples whose statistics are taken at a time, in float64.
_CHUNK = 8192


class Standardise(nn.Module):
    """``(x − mean) / std``, in float32, for samples stored as floats or as uint8.

    Args:
        mean: broadcasts against a sample.
        std: likewise; above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.to(torch.float32))
        self.register_buffer("std", std.to(torch.float32))

    def forward(self, samples: Tensor) -> Tensor:
        """Standardised samples ``(B, *shape)`` of ``(B, *shape)``."""
        return (samples.to(torch.float32) - self.mean) / self.std

    @classmethod
    def fit(cls, train: Tensor, how: How) -> nn.Module:
        """With mean and standard deviation of the training samples ``(N, ...)``.

        Args:
            train: the training samples, as they are stored.
            how: one mean and deviation of all values (``"global"``), of each of the ``"channel"``s
                ``(N, channels, ...)``, or of each ``"pixel"``; a value that never varies is only
                shifted. ``"none"`` changes nothing but the type: floats as they are, uint8 to 0…1.
        """
        if how == "none":
            return cls(torch.zeros(()), torch.tensor(1.0 if train.is_floating_point() else 255.0))
        dims = {
            "global": tuple(range(train.ndim)),
            "channel": (0, *range(2, train.ndim)),
            "pixel": (0,),
        }[how]
        values = math.prod(train.shape[dim] for dim in dims)
        chunks = train.split(_CHUNK)
        mean = sum(c.to(torch.float64).sum(dims, keepdim=True) for c in chunks) / values
        squares = (((c.to(torch.float64) - mean) ** 2).sum(dims, keepdim=True) for c in chunks)
        std = torch.as_tensor(sum(squares) / values).sqrt()
        # The mean of equal numbers may be off by a rounding, and their deviation with it.
        rounding = torch.finfo(torch.float64).eps * values**0.5 * torch.as_tensor(mean).abs()
        std = torch.where(std > rounding, std, torch.ones_like(std))
        return cls(torch.as_tensor(mean)[0], std[0])
