"""Layers of a network: looked up by name, their matrices, and the network in evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ddnkit import InputError, nearest_choice

#: A layer's dotted name, the module itself, or None for the whole network.
Layer: TypeAlias = str | nn.Module | None
#: The positional arguments of a network, each with one row for each of N samples.
Inputs: TypeAlias = Tensor | tuple[Tensor, ...]


def find_layer(network: nn.Module, layer: Layer) -> tuple[str, nn.Module]:
    """A layer's dotted name, "" for the network itself, and its module.

    Raises:
        ddnkit.InputError: the network has no such layer.
    """
    # A module with several names is found under each.
    modules = dict(network.named_modules(remove_duplicate=False))
    if layer is None:
        return "", network
    if isinstance(layer, nn.Module):
        for name, module in modules.items():
            if module is layer:
                return name, module
        raise InputError(f"the layer {layer} is not part of the network: give its dotted name")
    if layer not in modules:
        hint = nearest_choice(layer, (name for name in modules if name))
        raise InputError(f"the network has no layer '{layer}'.{hint}")
    return layer, modules[layer]


def find_layers(network: nn.Module, layers: Sequence[Layer]) -> dict[str, nn.Module]:
    """`find_layer` for each of them, by name."""
    if isinstance(layers, str):
        raise InputError(f"layers is a list of layers: write ['{layers}']")
    return dict(find_layer(network, layer) for layer in layers)


def has_matrix(layer: nn.Module) -> bool:
    """Whether a layer is u ↦ Wu + b on vectors u of its input, with one W.

    A subclass with a `forward` of its own may do more, and a grouped convolution has a W for each group.
    """
    forward = type(layer).forward
    return forward is nn.Linear.forward or (
        forward is nn.Conv2d.forward and getattr(layer, "groups", None) == 1
    )


def matrix_layers(network: nn.Module) -> list[nn.Module]:
    """The layers of a network for which `has_matrix` holds."""
    return [layer for layer in network.modules() if has_matrix(layer)]


def layer_matrix(layer: nn.Module) -> Tensor:
    """W ``(out, q)`` in float64: a `Linear`'s weight, a `Conv2d`'s with q = in·kh·kw.

    Raises:
        ddnkit.InputError: the layer is neither, or a convolution in groups.
    """
    if not isinstance(layer, nn.Linear | nn.Conv2d) or getattr(layer, "groups", 1) != 1:
        raise InputError(f"{layer} has no single matrix: give a Linear, or a Conv2d of one group")
    return layer.weight.detach().flatten(1).to(torch.float64)


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Put a network in evaluation mode; afterwards each of its modules is set back to its own mode."""
    training = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


def arguments(inputs: Inputs) -> tuple[Tensor, ...]:
    """The network's arguments as a tuple, detached.

    Raises:
        ddnkit.InputError: there is no sample, or the arguments differ in their number.
    """
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    samples = {len(argument) if argument.ndim else 0 for argument in given}
    if len(samples) != 1 or 0 in samples:
        shapes = ", ".join(str(tuple(argument.shape)) for argument in given)
        raise InputError(f"inputs need the same N ≥ 1 samples in their first dimension: {shapes}")
    return tuple(argument.detach() for argument in given)


def chunks(samples: int, size: int) -> Iterator[slice]:
    """Slices of at most ``size`` samples that cover all of them.

    Raises:
        ddnkit.InputError: the size is below 1.
    """
    if size < 1:
        raise InputError(f"chunk is {size}: give at least one sample at a time")
    return (slice(start, start + size) for start in range(0, samples, size))
