"""One row of ``metrics.csv``: loss, accuracies and metrics of a model on the whole data."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from ddnkit_collapse import Evaluation, ce_bound, cosine_margins
from torch import Tensor
from torch.nn import functional

from ddnkit import DdnkitError

from .data import Data, Share, Split

if TYPE_CHECKING:
    from .engine import Engine


@torch.no_grad()
def evaluate(
    model: Any,
    data: Data,
    metrics: Callable[[Evaluation], dict[str, float]],
    batch: int,
    *,
    engine: Engine | None = None,
    index: Tensor | None = None,
) -> tuple[dict[str, Any], Evaluation]:
    """Figures of ``model`` in evaluation mode, which is set back afterwards.

    Args:
        model: a `Model`, wrapped by the engine or not, on the data's device.
        data: training and test samples.
        metrics: gives further figures of the training set.
        batch: samples the network sees at a time.
        engine: whose processes share the samples; None for this one alone.
        index: the training samples to measure on; None for all.

    Returns:
        The figures by column, ``None`` where there is none: ``test_top1`` without a test set, and
        ``ce_gap`` where features or classifier rows are not of unit length, since the bound is for
        those alone. Accuracies are in per cent. Then the evaluation they were taken from.

    Raises:
        ddnkit.DdnkitError: the training loss is not finite.
    """
    training = model.training
    model.eval()
    loss, top1, features = _pass(model, data, "train", batch, engine, index)
    train_loss = float(loss)
    if not torch.isfinite(loss):
        raise DdnkitError(
            f"the training loss is {train_loss}. Likely causes: (a) the step is too large: lower "
            "the optimizer's gain or lr; (b) features of length zero, which cannot be normalised: "
            "check that the data are standardised; (c) a non-finite sample in the data; (d) a "
            "declarative layer in the head whose certificate failed."
        )
    head: Any = model.head
    weight = head.classifier()
    labels = (data.labels if index is None else data.labels[index]).to(features.device)
    margins = cosine_margins(features, labels, weight)
    evaluation = Evaluation(features, labels, weight, head.global_mean, data.classes, margins)
    bound = ce_bound(data.classes, float(head.temperature))
    row: dict[str, Any] = {
        "train_loss": train_loss,
        "ce_gap": train_loss - bound if _unit_rows(features) and _unit_rows(weight) else None,
        "train_top1": float(top1),
        "test_top1": None,
        **metrics(evaluation),
    }
    if data.test_samples:
        row["test_top1"] = float(_pass(model, data, "test", batch, engine, None)[1])
    model.train(training)
    return row, evaluation


def _pass(
    model: Any, data: Data, split: Split, batch: int, engine: Engine | None, index: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean cross-entropy (summed in float64), accuracy in per cent, embedded features in order."""
    share = engine.share if engine else Share()
    # (sum of losses, correct, samples): one small tensor, so that processes add up once
    sums: Tensor | None = None
    embedded = []
    passes = 0
    for inputs, labels in data.evaluation(split, batch, share, index):
        passes += 1
        placed = engine.placed(inputs) if engine else inputs
        logits, features = model(placed, labels, embedded=True)
        logits = logits.to(torch.float64)
        loss = functional.cross_entropy(logits, labels, reduction="sum")
        correct = (logits.argmax(dim=1) == labels).sum()
        part = torch.stack([loss, correct, loss.new_tensor(len(labels))])
        sums = part if sums is None else sums + part
        if split == "train":
            embedded.append(features)
    if sums is None:
        raise DdnkitError(f"the {split} set has fewer samples than there are processes")
    if engine:
        samples = data.samples if split == "train" else data.test_samples
        samples = samples if index is None else len(index)
        for _ in range(passes, engine.forward_passes(samples, batch)):
            model(placed, labels, embedded=True)
        sums = engine.total(sums)
    rows = torch.cat(embedded) if embedded else sums.new_zeros(0)
    if engine and embedded:
        rows = engine.gathered(rows, data.samples if index is None else len(index))
    return sums[0] / sums[2], 100 * sums[1] / sums[2], rows


def _unit_rows(rows: Tensor) -> bool:
    return bool(((rows.norm(dim=1) - 1).abs() < 1e-3).all())
