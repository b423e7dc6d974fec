"""One row of ``metrics.csv``: loss, accuracies and metrics of a model on the whole data."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from ddnkit_collapse import Evaluation, ce_bound, cosine_margins
from torch import Tensor
from torch.nn import functional

from ddnkit import DdnkitError

from .data import Dataset

if TYPE_CHECKING:
    from .classification import Model


@torch.no_grad()
def evaluate(
    model: Model,
    data: Dataset,
    metrics: Callable[[Evaluation], dict[str, float]],
    batch: int,
) -> tuple[dict[str, Any], Evaluation]:
    """Figures of ``model`` in evaluation mode, which is set back afterwards.

    Args:
        model: backbone and head.
        data: on the model's device.
        metrics: gives further figures of the training set.
        batch: samples the network sees at a time.

    Returns:
        The figures by column, ``None`` where there is none: ``test_top1`` without a test set, and
        ``ce_gap`` where features or classifier rows are not of unit length, since the bound is for
        those alone. Accuracies are in per cent. Then the evaluation they were taken from.

    Raises:
        ddnkit.DdnkitError: the training loss is not finite.
    """
    training = model.training
    model.eval()
    loss, top1, features = _pass(model, data.inputs, data.labels, batch)
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
    margins = cosine_margins(features, data.labels, weight)
    evaluation = Evaluation(features, data.labels, weight, head.global_mean, data.classes, margins)
    bound = ce_bound(data.classes, float(head.temperature))
    row: dict[str, Any] = {
        "train_loss": train_loss,
        "ce_gap": train_loss - bound if _unit_rows(features) and _unit_rows(weight) else None,
        "train_top1": float(top1),
        "test_top1": None,
        **metrics(evaluation),
    }
    if data.test_inputs is not None and data.test_labels is not None:
        row["test_top1"] = float(_pass(model, data.test_inputs, data.test_labels, batch)[1])
    model.train(training)
    return row, evaluation


def _pass(
    model: Model, inputs: Tensor, labels: Tensor, batch: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean cross-entropy (summed in float64), accuracy in per cent, embedded features."""
    loss = torch.zeros((), dtype=torch.float64, device=labels.device)
    correct = torch.zeros((), dtype=torch.int64, device=labels.device)
    embedded = []
    head: Any = model.head
    for chunk, chunk_labels in zip(inputs.split(batch), labels.split(batch), strict=True):
        features = model.backbone(chunk)
        logits = head(features, chunk_labels).to(torch.float64)
        loss += functional.cross_entropy(logits, chunk_labels, reduction="sum")
        correct += (logits.argmax(dim=1) == chunk_labels).sum()
        embedded.append(head.embed(features))
    top1 = 100 * correct.to(torch.float64) / len(labels)
    return loss / len(labels), top1, torch.cat(embedded)


def _unit_rows(rows: Tensor) -> bool:
    return bool(((rows.norm(dim=1) - 1).abs() < 1e-3).all())
