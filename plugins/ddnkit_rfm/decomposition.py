"""Where a linear layer collapses its classes: in the right singular structure of W, or after it.

With the thin singular value decomposition W = USVᵀ a layer Φ(X) ↦ σ(WΦ(X) + b) is SVᵀ, then U, b and the
non-linearity σ. *Average gradient outer product as a mechanism for deep neural collapse* (NeurIPS 2024),
section 6, measures DNC1 = tr Σ_W / tr Σ_B before, between and after the two.

U and b change nothing: U has orthonormal columns, so that tr UΣUᵀ = tr Σ for both covariances, and b moves
all points alike. DNC1 of SVᵀΦ(X) is that of WΦ(X) + b, and nothing but SVᵀ, or σ, which does see b, can
change it. (SVᵀ)ᵀSVᵀ = WᵀW: what SVᵀ does follows from the neural feature matrix, and where the neural feature
ansatz holds, from the AGOP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ddnkit import InputError

from .checks import check_finite, check_labels
from .collapse import dnc1
from .layers import Inputs, Layer, arguments, chunks, evaluating, named_layers


@dataclass(frozen=True)
class LayerCollapse:
    """DNC1 = tr Σ_W / tr Σ_B through one linear layer.

    Attributes:
        inputs: of Φ(X), what the layer is given.
        right: of SVᵀΦ(X), which is that of WΦ(X) + b.
        outputs: of σ(WΦ(X) + b).
    """

    inputs: float
    right: float
    outputs: float


def decompose(
    layer: nn.Module,
    X: Tensor,
    labels: Tensor,
    activation: Callable[[Tensor], Tensor] = torch.relu,
) -> LayerCollapse:
    """DNC1 of Φ(X), SVᵀΦ(X) and σ(WΦ(X) + b), W = USVᵀ.

    Args:
        layer: a `Linear`, W ``(out, in)`` and b.
        X: the layer's inputs Φ(X) ``(N, in)``, one sample a row.
        labels: classes ``(N,)``, int64.
        activation: σ.

    Raises:
        ddnkit.InputError: the layer is not linear, shapes do not match, or a number is not finite.
    """
    if not isinstance(layer, nn.Linear):
        raise InputError(
            f"{layer} is not a Linear, whose singular value decomposition is asked for"
        )
    inputs = dnc1(X, labels)
    check_finite(layer.weight, f"the weight of {layer}")
    if X.shape[1] != layer.in_features:
        raise InputError(f"X has {X.shape[1]} columns, {layer} takes {layer.in_features}")
    with torch.no_grad():
        _, S, Vh = torch.linalg.svd(layer.weight.to(torch.float64), full_matrices=False)
        right = X @ (S[:, None] * Vh).T.to(X.dtype)
        outputs = activation(layer(X))
    return LayerCollapse(float(inputs), float(dnc1(right, labels)), float(dnc1(outputs, labels)))


def layer_collapse(
    module: nn.Module,
    inputs: Inputs,
    labels: Tensor,
    layers: Sequence[Layer] | None = None,
    *,
    activation: Callable[[Tensor], Tensor] = torch.relu,
    chunk: int = 1024,
) -> dict[str, LayerCollapse]:
    """`decompose` of linear layers of a network, at what each is given in evaluation mode.

    Args:
        module: the network; every module of it is set back to its own mode.
        inputs: ``(N, …)``, or a tuple of them where the network takes several arguments.
        labels: classes ``(N,)``, int64.
        layers: dotted names, or the modules themselves; by default every `Linear`. Each is called once,
            on one vector a sample.
        activation: the non-linearity σ after each of them.
        chunk: samples that pass through the network at a time.

    Returns:
        By dotted name.

    Raises:
        ddnkit.InputError: there is no such layer, it is not called just once with ``(B, in)``, the
            labels are not one a sample, or a number is not finite.
    """
    given = arguments(inputs)
    check_labels(labels, len(given[0]))
    if layers is None:
        layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    watched = named_layers(module, layers)
    features = _layer_inputs(module, given, watched, chunk)
    return {
        name: decompose(layer, features[name], labels, activation)
        for name, layer in watched.items()
    }


def _layer_inputs(
    network: nn.Module, given: tuple[Tensor, ...], layers: dict[str, nn.Module], chunk: int
) -> dict[str, Tensor]:
    """Φ(X) ``(N, in)`` of each layer."""
    found: dict[str, list[Tensor]] = {name: [] for name in layers}
    passes = 0
    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.enter_context(layer.register_forward_pre_hook(_keeper(found[name])))
        stack.enter_context(evaluating(network))
        stack.enter_context(torch.no_grad())
        for block in chunks(len(given[0]), chunk):
            network(*(argument[block] for argument in given))
            passes += 1
    for name, parts in found.items():
        if len(parts) != passes or any(part.ndim != 2 for part in parts):
            raise InputError(
                f"layer '{name}' was called {len(parts)} times in {passes} passes"
                + (f", on {tuple(parts[0].shape)}" if parts else "")
                + ": DNC1 is of one vector (B, in) a sample"
            )
    return {name: torch.cat(parts) for name, parts in found.items()}


def _keeper(parts: list[Tensor]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    # A copy: what follows may work in place.
    return lambda _, given: parts.append(given[0].detach().clone())
