"""What `LayerwiseCollapse` measures of a network at an evaluation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from ddnkit_train.samplers import stratified_subset
from torch import Tensor, nn

from ddnkit import InputError

from .decomposition import layer_collapse
from .layers import evaluating
from .neural_feature import nfa_correlations
from .settings.networks import LAYERS

if TYPE_CHECKING:
    from ddnkit_train import Data, Model

    from .settings import LayerwiseCollapse


def measure_layers(settings: LayerwiseCollapse, model: Model, data: Data) -> dict[str, float]:
    """The figures of `LayerwiseCollapse.measure`, by column; one that is not a number is left out.

    In the precision of the weights, without autocast and without compiling: figures of a layer are
    taken at the layer, which a compiled network passes by.
    """
    layers = fully_connected(model.backbone)
    network = nn.Sequential(model.backbone, model.head)
    inputs, labels = _samples(settings, model, data)
    few = stratified_subset(labels, settings.layers.nfa_samples)
    sections: Any = settings
    counts = torch.bincount(data.labels, minlength=data.classes)
    loss = sections.loss.build(counts=counts, head=model.head).to(labels.device).eval()
    batch = settings.train.evaluation_batch
    with torch.compiler.set_stance("force_eager"):
        figures = {"objective": float(loss(_logits(network, inputs, batch), labels))}
        collapse = layer_collapse(network, inputs, labels, layers, chunk=batch)
        for k, stages in enumerate(collapse.values(), 1):
            figures[f"dnc1_input_{k}"] = stages.inputs
            figures[f"dnc1_right_{k}"] = stages.right
            figures[f"dnc1_output_{k}"] = stages.outputs
        if settings.layers.nfa:
            chosen = inputs if few is None else inputs[few]
            for k, correlation in enumerate(nfa_correlations(network, chosen, layers).values(), 1):
                figures[f"nfa_{k}"] = float(correlation)
    return {column: value for column, value in figures.items() if not math.isnan(value)}


def fully_connected(backbone: nn.Module) -> list[nn.Module]:
    """The last five `Linear` layers of a backbone, or as many as there are.

    Raises:
        ddnkit.InputError: there is none.
    """
    layers: list[nn.Module] = [m for m in backbone.modules() if isinstance(m, nn.Linear)]
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
    with evaluating(network):
        return torch.cat([network(part) for part in inputs.split(batch)])
