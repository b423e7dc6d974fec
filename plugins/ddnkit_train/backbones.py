"""Feature extractors: modules with an attribute ``feature_dim``, from samples to ``(N, d)``."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from ddnkit import InputError

from . import settings


def free_features(
    given: settings.FreeFeatures, *, sample_shape: tuple[int, ...], samples: int
) -> FreeFeatures:
    """A table of ``samples`` feature vectors, looked up by index."""
    if sample_shape != ():
        raise InputError(
            f"backbone: free_features looks features up by a sample's index; samples of shape "
            f"{sample_shape} are no indices. Use it with data: free_features."
        )
    return FreeFeatures(samples, **dict(given))


def mlp(given: settings.MLP, *, sample_shape: tuple[int, ...], samples: int) -> MLP:
    """A perceptron on the flattened sample."""
    if sample_shape == ():
        raise InputError("backbone: mlp needs vectors or images, not the indices of the data.")
    return MLP(sample_shape, **dict(given))


def cnn(given: settings.CNN, *, sample_shape: tuple[int, ...], samples: int) -> CNN:
    """A network on images ``(channels, height, width)``."""
    if len(sample_shape) != 3:
        raise InputError(
            f"backbone: cnn needs images (channels, height, width); the samples of the data "
            f"have shape {sample_shape}."
        )
    return CNN(sample_shape[0], **dict(given))


class FreeFeatures(nn.Module):
    """h_i = row i of a trainable N×d table: the unconstrained-feature model.

    A sample is its index, as if it were a one-hot vector and the table the weight of a layer on
    it. The table is N×d, that is, d_out = N and d_in = d in AGD's scale σ = √(d_out/d_in): its
    orthogonal start then has rows of norm √(N/d)·√(d/N) = 1 on average where N ≥ d, on the sphere
    where the heads put them. Under a head that normalises, the transposed layout trains the same:
    start, gradient and step all change by the same factor.

    Args:
        samples: number of samples N.
        dimension: feature dimension d.
    """

    def __init__(self, samples: int, dimension: int) -> None:
        super().__init__()
        self.feature_dim = dimension
        self.table = nn.Parameter(torch.randn(samples, dimension) / math.sqrt(dimension))

    def forward(self, indices: Tensor) -> Tensor:
        """Features ``(B, d)`` of the samples with these ``indices`` ``(B,)``."""
        return self.table[indices]


class MLP(nn.Module):
    """h = W_L relu(W_{L−1} … relu(W_1 x)), with x the flattened sample.

    The features are not rectified by default: on a fixed simplex ETF in canonical direction each class
    would own one non-negative unit, and a class whose unit dies could not be learned again.

    Args:
        sample_shape: shape of one sample.
        width: units of each layer and dimension of the features.
        depth: number L of weight matrices.
        bias: whether each layer adds a bias.
        rectify: relu(h) is the features: L hidden layers, of which the classifier reads the last.
        init_scale: gain g of Xavier's start, uniform in ±g√(6/(d_in + d_out)); None: torch's own,
            uniform in ±√(1/d_in), which for a square matrix is g = 1/√3.
    """

    def __init__(
        self,
        sample_shape: tuple[int, ...],
        width: int,
        depth: int,
        *,
        bias: bool = False,
        rectify: bool = False,
        init_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.feature_dim = width
        widths = [math.prod(sample_shape)] + [width] * depth
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in, fan_out in pairwise(widths):
            linear = nn.Linear(fan_in, fan_out, bias=bias)
            if init_scale is not None:
                nn.init.xavier_uniform_(linear.weight, gain=init_scale)
            layers += [linear, nn.ReLU()]
        self.layers = nn.Sequential(*(layers if rectify else layers[:-1]))

    def forward(self, inputs: Tensor) -> Tensor:
        """Features ``(B, width)`` of ``(B, *sample_shape)``."""
        return self.layers(inputs)


class CNN(nn.Module):
    """Stages of 3×3 convolution, batch norm and ReLU, then the mean over all positions.

    Neither convolutions nor batch norms have vectors to train, which AGD could not.

    Args:
        in_channels: channels of the images.
        channels: channels of each stage; each starts with stride 2.
        blocks: convolutions in each stage.
    """

    def __init__(self, in_channels: int, channels: tuple[int, ...], blocks: int = 1) -> None:
        super().__init__()
        self.feature_dim = channels[-1]
        layers: list[nn.Module] = []
        for width in channels:
            for block in range(blocks):
                stride = 2 if block == 0 else 1
                layers += [
                    nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False),
                    nn.BatchNorm2d(width, affine=False),
                    nn.ReLU(),
                ]
                in_channels = width
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Features ``(B, channels[-1])`` of images ``(B, in_channels, height, width)``."""
        return self.layers(images).mean(dim=(2, 3))
