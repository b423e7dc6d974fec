"""The figures that `LayerwiseCollapse` adds to an evaluation of a network."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from ddnkit_train.samplers import stratified_subset
from torch import Tensor, nn

from ddnkit import InputError

from .collapse import layer_collapse
from .layers import evaluation_mode
from .network_agop import nfa_correlations
from .network_columns import LAYERS, dnc1_column, nfa_column

if TYPE_CHECKING:
    from ddnkit_train import Data, Model

    from .settings import LayerwiseCollapse


def measure_layers(settings: LayerwiseCollapse, model: Model, data: Data) -> dict[str, float]:
    """The figures of `LayerwiseCollapse.measure`, by column; those that are NaN are left out.

    In the precision of the weights, without autocast and without compilation, because a compiled network
    does not call its layers one by one.
    """
    layers = fully_connected_layers(model.backbone)
    network = nn.Sequential(*model.children())
    inputs, labels = _samples(settings, model, data)
    few = stratified_subset(labels, settings.layers.nfa_samples)
    counts = torch.bincount(data.labels, minlength=data.classes)
    loss = settings.loss.build(counts=counts, head=model.head).to(labels.device).eval()
    batch = settings.train.evaluation_batch
    with torch.compiler.set_stance("force_eager"):
        figures = {"objective": float(loss(_logits(network, inputs, batch), labels))}
        collapse = layer_collapse(network, inputs, labels, layers, chunk=batch)
        for k, stages in enumerate(collapse.values(), 1):
            figures[dnc1_column("input", k)] = stages.inputs
            figures[dnc1_column("right", k)] = stages.right
            figures[dnc1_column("output", k)] = stages.outputs
        if settings.layers.nfa:
            chosen = inputs if few is None else inputs[few]
            for k, correlation in enumerate(nfa_correlations(network, chosen, layers).values(), 1):
                figures[nfa_column(k)] = float(correlation)
    return {column: value for column, value in figures.items() if not math.isnan(value)}


def fully_connected_layers(backbone: nn.Module) -> list[nn.Module]:
    """The last five `Linear` layers of a backbone, or as many as it has.

    Raises:
        ddnkit.InputError: there is none.
    """
    layers: list[nn.Module] = [
        layer for layer in backbone.modules() if isinstance(layer, nn.Linear)
    ]
    if not layers:
        raise InputError(
            f"the backbone {type(backbone).__name__} has no fully connected layer to measure: choose "
            "mlp, or give a network some with backbone.mlp_depth: 5"
        )
    return layers[-LAYERS:]


def _samples(settings: LayerwiseCollapse, model: Model, data: Data) -> tuple[Tensor, Tensor]:
    """Inputs ``(n, *sample_shape)`` in the type of the weights, and labels ``(n,)``."""
    index = stratified_subset(data.labels, settings.layers.samples)
    batches = list(data.evaluation("train", settings.train.evaluation_batch, index=index))
    inputs = torch.cat([batch for batch, _ in batches])
    dtype = next(model.backbone.parameters()).dtype
    return inputs.to(dtype), torch.cat([labels for _, labels in batches])


@torch.no_grad()
def _logits(network: nn.Module, inputs: Tensor, batch: int) -> Tensor:
    with evaluation_mode(network):
        return torch.cat([network(part) for part in inputs.split(batch)])
