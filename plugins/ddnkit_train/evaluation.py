"""One row of ``metrics.csv``: loss, accuracies and metrics of a model on the whole data."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from ddnkit_collapse import Evaluation, HeldOut, ce_bound, cosine_margins
from torch import Tensor
from torch.nn import functional

from ddnkit import DdnkitError, DdnkitWarning

from .data import Data, Share, Split
from .engine import Engine
from .model import Model
from .parts import check_figures

#: So many samples that are wrong are named.
_SHOWN = 8


@torch.no_grad()
def evaluate(
    model: Model,
    data: Data,
    metrics: Callable[[Evaluation], dict[str, float]],
    batch: int,
    *,
    engine: Engine | None = None,
    index: Tensor | None = None,
) -> tuple[dict[str, float | None], Evaluation]:
    """Figures of ``model`` in evaluation mode, which is set back afterwards.

    Args:
        model: a `Model`, wrapped by the engine or not, on the data's device.
        data: training and test samples.
        metrics: gives further figures; its `Evaluation` has features of the test set too where
            ``metrics.test_features`` is true.
        batch: samples the network sees at a time.
        engine: whose processes share the samples; None for this one alone.
        index: the training samples to measure on; None for all.

    Returns:
        The figures by column, ``None`` where there is none: ``test_top1`` without a test set, and
        ``ce_gap`` where features or classifier rows are not of unit length, since the bound is for
        those alone. Accuracies are in per cent. Then the evaluation they were taken from.

    Raises:
        ddnkit.DdnkitError: the training loss is not finite; samples that are not are named.
    """
    training = model.training
    model.eval()
    train = _pass(model, data, "train", batch, engine, index)
    train_loss = float(train.loss)
    if not torch.isfinite(train.loss):
        if bad := _non_finite(data, "train", batch, index):
            raise DdnkitError(
                f"the training loss is {train_loss}: {bad} have NaN or infinity in them"
            )
        raise DdnkitError(
            f"the training loss is {train_loss}. Likely causes: (a) the step is too large: lower "
            "the optimizer's gain or lr; (b) features of length zero, which cannot be normalised: "
            "check that the data are standardised; (c) a non-finite sample in the data; (d) a "
            "declarative layer in the head whose certificate failed."
        )
    head = model.head
    weight, features = head.classifier(), train.features
    test = None
    if data.test_samples:
        keep = bool(getattr(metrics, "test_features", False))
        test = _pass(model, data, "test", batch, engine, None, keep=keep)
        if test.unknown:
            bad = _non_finite(data, "test", batch, None)
            warnings.warn(
                f"the outputs for {test.unknown} test sample(s) are NaN, which counts as wrong"
                + (f": {bad} have NaN or infinity in them" if bad else ""),
                DdnkitWarning,
                stacklevel=2,
            )
    model.train(training)
    evaluation = Evaluation(
        features,
        train.labels,
        weight,
        head.global_mean,
        data.classes,
        cosine_margins(features, train.labels, weight),
        counts=torch.bincount(data.labels, minlength=data.classes),
        predictions=train.predictions,
        held_out=None
        if test is None
        else HeldOut(test.labels, test.predictions, test.features if len(test.features) else None),
    )
    bound = ce_bound(data.classes, float(head.temperature))
    row: dict[str, float | None] = {
        "train_loss": train_loss,
        "ce_gap": train_loss - bound if _unit_rows(features) and _unit_rows(weight) else None,
        "train_top1": float(train.top1),
        "test_top1": None if test is None else float(test.top1),
        **check_figures(metrics(evaluation), metrics),
    }
    return row, evaluation


def _non_finite(data: Data, split: Split, batch: int, index: Tensor | None) -> str:
    """The samples of a split that hold NaN or infinity, as the network sees them; empty if none does."""
    found: list[Tensor] = []
    for inputs, _ in data.evaluation(split, batch, Share(), index):
        if inputs.is_floating_point():
            found.append(~inputs.flatten(1).isfinite().all(dim=1))
    bad = torch.cat(found).nonzero()[:, 0] if found else torch.zeros(0)
    if not len(bad):
        return ""
    bad = bad if index is None else index[bad.to(index.device)]
    numbers = ", ".join(map(str, bad[:_SHOWN].tolist()))
    more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    return f"{'training' if split == 'train' else 'test'} samples {numbers}{more}"


@dataclass(frozen=True)
class _Pass:
    """What a split gave, in its order: mean cross-entropy, accuracy in per cent, sample by sample.

    ``unknown`` samples have logits that are NaN and are decided for class -1, which there is not: argmax
    would decide for a class all the same.
    """

    unknown: int
    loss: Tensor
    top1: Tensor
    labels: Tensor
    predictions: Tensor
    features: Tensor


def _pass(
    model: Model,
    data: Data,
    split: Split,
    batch: int,
    engine: Engine | None,
    index: Tensor | None,
    *,
    keep: bool = True,
) -> _Pass:
    """Take a split through the network; ``keep`` its embedded features. Losses are summed in float64."""
    share = engine.share if engine else Share()
    # (sum of losses, correct, samples, NaN): one small tensor, so that processes add up once
    sums: Tensor | None = None
    embedded, seen = [], []
    passes = 0
    for inputs, labels in data.evaluation(split, batch, share, index):
        passes += 1
        placed = engine.place(inputs) if engine else inputs
        logits, features = model(placed, labels, embedded=True)
        logits = logits.to(torch.float64)
        loss = functional.cross_entropy(logits, labels, reduction="sum")
        nan = logits.isnan().any(dim=1)
        decided = logits.argmax(dim=1).masked_fill(nan, -1)
        correct = (decided == labels).sum()
        part = torch.stack([loss, correct, loss.new_tensor(len(labels)), nan.sum()])
        sums = part if sums is None else sums + part
        seen.append(torch.stack([labels, decided], dim=1))
        if keep:
            embedded.append(features)
    if sums is None:
        raise DdnkitError(f"the {split} set has fewer samples than there are processes")
    samples = data.samples if split == "train" else data.test_samples
    samples = samples if index is None else len(index)
    if engine:
        for _ in range(passes, engine.forward_passes(samples, batch)):
            model(placed, labels, embedded=True)
        sums = engine.total(sums)
    rows = torch.cat(embedded) if embedded else sums.new_zeros(0)
    pairs = torch.cat(seen)
    if engine:
        pairs = engine.gather(pairs, samples)
        rows = engine.gather(rows, samples) if keep else rows
    return _Pass(
        int(sums[3]), sums[0] / sums[2], 100 * sums[1] / sums[2], pairs[:, 0], pairs[:, 1], rows
    )


def _unit_rows(rows: Tensor) -> bool:
    return bool(((rows.norm(dim=1) - 1).abs() < 1e-3).all())
