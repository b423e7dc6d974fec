"""Deep neural collapse of features, by DNC1 and DNC2, and where a linear layer causes it.

DNC1 and DNC2 are both 0 at collapse (Definition 3.2). The paper writes them for classes of equal size. Where
sizes differ, every class has the same weight here: with 1/(K n_c) for its samples, instead of 1/N,

    Σ_W = (1/K) Σ_c (1/n_c) Σ_i (x_ci − μ_c)(x_ci − μ_c)ᵀ,   μ_G = (1/K) Σ_c μ_c,
    Σ_B = (1/K) Σ_c (μ_c − μ_G)(μ_c − μ_G)ᵀ

are still the two parts of one covariance, and neither changes if a class is sampled more often. Σ_B and μ_G
are then as in the paper's formula, where μ_G is not the mean of all samples. Classes without a sample are
left out, and K is the number of the others.

Through a linear layer. With the thin singular value decomposition W = USVᵀ a layer Φ(X) ↦ σ(WΦ(X) + b)
applies SVᵀ, then U, b and the non-linearity σ. *Average gradient outer product as a mechanism for deep
neural collapse* (NeurIPS 2024), section 6, measures DNC1 = tr Σ_W / tr Σ_B before, between and after the two.

U and b change nothing: U has orthonormal columns, so that tr UΣUᵀ = tr Σ for both covariances, and b moves
all points alike. DNC1 of SVᵀΦ(X) is therefore that of WΦ(X) + b, and only SVᵀ or σ (which does depend on b)
can change DNC1. (SVᵀ)ᵀSVᵀ = WᵀW: the effect of SVᵀ follows from the neural feature matrix, and where the
neural feature ansatz holds, from the AGOP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from ddnkit_collapse import ClassStatistics, class_statistics
from torch import Tensor, nn

from ddnkit import InputError

from .layers import Inputs, Layer, arguments, chunks, evaluation_mode, find_layers
from .samples import check_finite, check_labels, check_samples

#: Samples that are converted to float64 at a time.
_CHUNK = 4096


def dnc1(X: Tensor, labels: Tensor) -> Tensor:
    """tr Σ_W / tr Σ_B: variability within the classes relative to that between them.

    Args:
        X: features ``(n, d)``.
        labels: classes ``(n,)``, int64.

    Returns:
        ``()``, float64; NaN where all class means coincide, as those of a single class do.

    Raises:
        ddnkit.InputError: features are not finite, or labels do not match.
    """
    statistics = _statistics(X, labels)
    within = X.new_zeros((), dtype=torch.float64)
    for x, c in zip(X.split(_CHUNK), labels.split(_CHUNK), strict=True):
        squares = (x - statistics.means[c]).square().sum(dim=1)
        within += (squares / statistics.counts[c]).sum()
    deviations = _centred_means(statistics)
    between = deviations.square().sum()
    rounding = torch.finfo(torch.float64).eps * X.shape[1] * statistics.scale
    distinct = (between / len(deviations)).sqrt() > rounding
    return torch.where(distinct, within / between, torch.nan)


def dnc2(X: Tensor, labels: Tensor) -> Tensor:
    """‖μ̄ᵀμ̄ − Σ_ETF‖_F of the class means, centred and normalised: μ̄_c = (μ_c − μ_G)/‖μ_c − μ_G‖.

    Σ_ETF = (1 + 1/(K−1)) I − 11ᵀ/(K−1), the inner products of the vertices of a regular simplex.

    Args:
        X: features ``(n, d)``.
        labels: classes ``(n,)``, int64.

    Returns:
        ``()``, float64; NaN where the mean of a class is that of all, as of a single class.

    Raises:
        ddnkit.InputError: features are not finite, or labels do not match.
    """
    statistics = _statistics(X, labels)
    deviations = _centred_means(statistics)
    norms = torch.linalg.vector_norm(deviations, dim=1, keepdim=True)
    rounding = torch.finfo(torch.float64).eps * X.shape[1] * statistics.scale
    mu = deviations / torch.where(norms > rounding, norms, torch.nan)
    K = len(mu)
    # A single class has no deviation: the result is NaN whatever the divisor.
    etf = (K * torch.eye(K, dtype=mu.dtype, device=mu.device) - 1) / max(K - 1, 1)
    return torch.linalg.matrix_norm(mu @ mu.T - etf)


def _statistics(X: Tensor, labels: Tensor) -> ClassStatistics:
    check_samples(X)
    check_labels(labels, len(X))
    return class_statistics(X, labels, int(labels.max()) + 1)


def _centred_means(statistics: ClassStatistics) -> Tensor:
    """μ_c − μ_G ``(K, d)`` of the classes that have samples."""
    means = statistics.means[statistics.present]
    return means - means.mean(dim=0)


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
    """`decompose` of linear layers of a network, at the inputs that each has in evaluation mode.

    Args:
        module: the network; afterwards each of its modules is set back to its own mode.
        inputs: ``(N, …)``, or a tuple of them where the network takes several arguments.
        labels: classes ``(N,)``, int64.
        layers: dotted names, or the modules themselves; by default every `Linear`. Each is called once,
            on one vector a sample.
        activation: the non-linearity σ after each of them.
        chunk: samples that pass through the network at a time.

    Returns:
        By dotted name.

    Raises:
        ddnkit.InputError: there is no such layer, it is not called exactly once with ``(B, in)``, there is
            not one label a sample, or a number is not finite.
    """
    given = arguments(inputs)
    check_labels(labels, len(given[0]))
    if layers is None:
        layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    watched = find_layers(module, layers)
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
            stack.enter_context(layer.register_forward_pre_hook(_input_hook(found[name])))
        stack.enter_context(evaluation_mode(network))
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


def _input_hook(parts: list[Tensor]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    # A copy, since later layers may work in place.
    return lambda _, given: parts.append(given[0].detach().clone())
