"""The parts of a training, built from a recipe's sections and checked.

Settings are checked before anything runs (`settings.sections`); what `build` returns can be checked only
when the job begins. Without these checks a wrong part would fail steps later with an error of torch's,
or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from ddnkit_collapse import Evaluation
from torch import Tensor, nn

from ddnkit import DdnkitError, InputError, Job

from .data import Data
from .model import Head
from .settings import Classification
from .settings.pipeline import MEASURED


def build_data(settings: Classification, job: Job) -> Data:
    """The samples of a job: the same ones whenever it goes on, and when its model is measured again."""
    torch.manual_seed(job.seed)
    data = settings.data.build(seed=job.seed, smoke=job.smoke, download=job.download)
    _require("data", settings, data, isinstance(data, Data), "a ddnkit_train.Data")
    right = _is_count(data.classes)
    _require("data", settings, data.classes, right, "a number of classes from 1", of="classes of ")
    return data


def build_backbone(settings: Classification, data: Data) -> nn.Module:
    """The network below the classifier."""
    backbone = settings.backbone.build(sample_shape=data.sample_shape, samples=data.samples)
    _require("backbone", settings, backbone, isinstance(backbone, nn.Module), "a torch.nn.Module")
    dimension = getattr(backbone, "feature_dim", None)
    expected = "a whole number from 1, that of its features"
    _require("backbone", settings, dimension, _is_count(dimension), expected, of="feature_dim of ")
    return backbone


def build_head(settings: Classification, feature_dim: int, classes: int) -> Head:
    """The classifier."""
    head = settings.head.build(feature_dim=feature_dim, classes=classes)
    members = [name for name in vars(Head) if not name.startswith("_")]
    missing = [name for name in members if not hasattr(head, name)]
    expected = "a ddnkit_etf.ClassifierHead, or a torch.nn.Module with the same members"
    expected += f" (it lacks {', '.join(missing)})" if isinstance(head, nn.Module) else ""
    _require("head", settings, head, isinstance(head, nn.Module) and not missing, expected)
    return head


def build_loss(settings: Classification, counts: Tensor, head: Head) -> nn.Module:
    """What is minimised."""
    loss = settings.loss.build(counts=counts, head=head)
    _require("loss", settings, loss, isinstance(loss, nn.Module), "a torch.nn.Module")
    return loss


def build_optimizer(settings: Classification, model: nn.Module) -> torch.optim.Optimizer:
    """How it is minimised."""
    optimizer = settings.optimizer.build(model)
    right = isinstance(optimizer, torch.optim.Optimizer)
    _require("optimizer", settings, optimizer, right, "a torch.optim.Optimizer")
    weights = {id(weight) for weight in model.parameters()}
    held = (id(weight) for group in optimizer.param_groups for weight in group["params"])
    if weights and weights.isdisjoint(held):
        raise InputError(
            f"optimizer: {type(settings.optimizer).__name__} has none of the model's weights: "
            "nothing would be trained"
        )
    return optimizer


def build_metrics(settings: Classification) -> Callable[[Evaluation], dict[str, float]]:
    """What gives further figures of an evaluation."""
    metrics = settings.metrics.build()
    _require("metrics", settings, metrics, callable(metrics), "what can be called on an Evaluation")
    return metrics


def check_inputs(inputs: Tensor, precision: str) -> None:
    """Refuse samples in a floating-point type that the network does not compute in.

    Args:
        inputs: of a batch, as the network sees them.
        precision: of the engine; under bf16 and float64 it converts what is narrower.
    """
    if not inputs.is_floating_point() or inputs.dtype == torch.float32:
        return
    fits = inputs.dtype == torch.float64 if precision == "float64" else inputs.dtype.itemsize == 2
    if precision == "float32" or not fits:
        raise InputError(
            f"data: the samples are {_name(inputs.dtype)} as the network sees them, and engine.precision "
            f"is {precision}: have build return them in float32"
        )


def check_loss(loss: object, module: nn.Module) -> Tensor:
    """The loss of a batch, which must be one number with a gradient."""
    if isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad:
        return loss
    kind = type(loss).__name__
    if isinstance(loss, Tensor):
        kind = f"a tensor of shape {tuple(loss.shape)}"
        kind += "" if loss.requires_grad else " without a gradient"
    raise InputError(
        f"loss: {type(module).__name__} gave {kind}; expected one number with a gradient, ()"
    )


def check_figures(figures: object, metrics: object) -> dict[str, float | None]:
    """What ``metrics`` gave, each a number or None; of no column that an evaluation measures itself."""
    who = f"metrics: {getattr(metrics, '__qualname__', type(metrics).__name__)}"
    if not isinstance(figures, Mapping):
        raise DdnkitError(f"{who} gave {type(figures).__name__}; expected a dict of numbers")
    found: dict[str, float | None] = {}
    for name, value in figures.items():
        if name in MEASURED or not isinstance(name, str):
            raise DdnkitError(
                f"{who} gave {name!r}; expected a column of its own: the evaluation measures "
                f"{', '.join(MEASURED)} itself"
            )
        try:
            found[name] = None if value is None else float(value)
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise DdnkitError(
                f"{who} gave a {type(value).__name__} as {name}; expected a number ({error})"
            ) from error
    return found


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _require(
    section: str,
    settings: Classification,
    value: object,
    fits: bool,
    expected: str,
    of: str = "",
) -> None:
    if fits:
        return
    plain = value is None or isinstance(value, int | float | str)
    given = repr(value)[:100] if plain else type(value).__name__
    who = type(getattr(settings, section)).__name__
    raise InputError(f"{section}: {of}what {who}.build returned is {given}; expected {expected}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
