"""What the plugins of a recipe's sections built, held against what a training asks of them.

Their settings are checked before anything runs (`settings.sections`); what `build` returns, and what
that gives, is known as the job begins. Without these checks a wrong one is told in torch's words, steps
later, or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ddnkit import DdnkitError, InputError

from .data import Data
from .settings.pipeline import MEASURED

_HEAD = ("embed", "classifier", "after_step", "global_mean", "temperature")


def data_of(settings: Any, job: Any) -> Data:
    """The samples of a job."""
    built = settings.data.build(seed=job.seed, smoke=job.smoke, download=job.download)
    _held("data", settings, built, isinstance(built, Data), "a ddnkit_train.Data")
    classes: Any = built.classes
    whole = isinstance(classes, int) and not isinstance(classes, bool) and classes > 0
    _held("data", settings, classes, whole, "a number of classes from 1", of="classes of ")
    data: Data = built
    return data


def backbone_of(settings: Any, data: Data) -> nn.Module:
    """The network below the classifier."""
    built = settings.backbone.build(sample_shape=data.sample_shape, samples=data.samples)
    _held("backbone", settings, built, isinstance(built, nn.Module), "a torch.nn.Module")
    dimension = getattr(built, "feature_dim", None)
    whole = isinstance(dimension, int) and not isinstance(dimension, bool) and dimension > 0
    expected = "a whole number from 1, that of its features"
    _held("backbone", settings, dimension, whole, expected, of="feature_dim of ")
    backbone: nn.Module = built
    return backbone


def head_of(settings: Any, feature_dim: int, classes: int) -> nn.Module:
    """The classifier."""
    built = settings.head.build(feature_dim=feature_dim, classes=classes)
    missing = [name for name in _HEAD if not hasattr(built, name)]
    expected = "a ddnkit_etf.ClassifierHead, or a torch.nn.Module with the same members"
    expected += f" (it lacks {', '.join(missing)})" if isinstance(built, nn.Module) else ""
    _held("head", settings, built, isinstance(built, nn.Module) and not missing, expected)
    head: nn.Module = built
    return head


def loss_of(settings: Any, counts: Tensor, head: nn.Module) -> nn.Module:
    """What is minimised."""
    built = settings.loss.build(counts=counts, head=head)
    _held("loss", settings, built, isinstance(built, nn.Module), "a torch.nn.Module")
    loss: nn.Module = built
    return loss


def optimizer_of(settings: Any, model: nn.Module) -> torch.optim.Optimizer:
    """How it is minimised."""
    built = settings.optimizer.build(model)
    right = isinstance(built, torch.optim.Optimizer)
    _held("optimizer", settings, built, right, "a torch.optim.Optimizer")
    weights = {id(weight) for weight in model.parameters()}
    held = (id(weight) for group in built.param_groups for weight in group["params"])
    if weights and weights.isdisjoint(held):
        raise InputError(
            f"optimizer: {type(settings.optimizer).__name__} has none of the model's weights: "
            "nothing would be trained"
        )
    optimizer: torch.optim.Optimizer = built
    return optimizer


def metrics_of(settings: Any) -> Any:
    """What gives further figures of an evaluation."""
    built = settings.metrics.build()
    _held("metrics", settings, built, callable(built), "what can be called on an Evaluation")
    return built


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
            f"data: the samples are {_type(inputs.dtype)} as the network sees them, and engine.precision "
            f"is {precision}: have build return them in float32"
        )


def checked_loss(loss: Any, module: nn.Module) -> Tensor:
    """The loss of a batch, a number that the weights have a part in."""
    if isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad:
        return loss
    kind = type(loss).__name__
    if isinstance(loss, Tensor):
        kind = f"a tensor of shape {tuple(loss.shape)}"
        kind += "" if loss.requires_grad else " without a gradient"
    raise InputError(
        f"loss: {type(module).__name__} gave {kind}; expected one number with a gradient, ()"
    )


def checked_figures(figures: Any, metrics: Any) -> dict[str, float | None]:
    """What ``metrics`` gave, each a number or None; of no column that an evaluation measures itself."""
    who = f"metrics: {type(metrics).__name__}"
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


def _held(section: str, settings: Any, value: Any, fits: bool, expected: str, of: str = "") -> None:
    if fits:
        return
    plain = value is None or isinstance(value, int | float | str)
    given = repr(value)[:100] if plain else type(value).__name__
    who = type(getattr(settings, section)).__name__
    raise InputError(f"{section}: {of}what {who}.build returned is {given}; expected {expected}")


def _type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
