"""Training: data → backbone → head → loss → optimiser, with evaluations in between."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from ddnkit_collapse import etf_cosine_margin
from torch import Tensor, nn

from ddnkit import DdnkitError, Job

from .data import Dataset
from .evaluate import evaluate
from .samplers import FullBatch, Sampler, Shuffled, Stratified

if TYPE_CHECKING:
    from .settings import Classification

#: A smoke run takes this many steps: one to start, one to go on from there, and the last.
SMOKE_STEPS = 3
_MARGIN_POINTS = 2000


class Model(nn.Module):
    """A backbone and the classifier head on its features.

    Args:
        backbone: ``(B, *sample_shape)`` → features ``(B, d)``.
        head: a `ddnkit_etf.ClassifierHead` on d features.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Logits ``(B, C)``; in training mode the labels update the head's statistics."""
        return self.head(self.backbone(inputs), labels)


def train(settings: Classification, job: Job) -> None:
    """Run one job of the classification pipeline: `Classification.run`."""
    sections: Any = settings  # each section is whatever plugin the recipe names
    data: Dataset = sections.data.build(seed=job.seed, smoke=job.smoke).to(job.device)
    torch.manual_seed(job.seed)
    backbone = sections.backbone.build(sample_shape=data.sample_shape, samples=data.samples)
    head = sections.head.build(feature_dim=backbone.feature_dim, classes=data.classes)
    model = Model(backbone, head).to(job.device)
    loss_function = sections.loss.build().to(job.device)
    optimizer: torch.optim.Optimizer = sections.optimizer.build(model)
    metrics = sections.metrics.build()
    # The optimiser may have given the weights its own start, which the head has not seen.
    head.after_step()

    sampler = _sampler(settings, data, job.seed)
    total = settings.train.total_steps(sampler.steps_per_epoch)
    evaluation_steps = settings.train.evaluation_steps(sampler.steps_per_epoch)
    if job.smoke:
        total = min(total, SMOKE_STEPS)
        evaluation_steps = frozenset((1, total))

    progress = _Progress(job, total)
    step = 0
    model.train()
    while step < total:
        for index in sampler.epoch():
            inputs = data.inputs if index is None else data.inputs[index]
            labels = data.labels if index is None else data.labels[index]
            loss = loss_function(model(inputs, labels), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            head.after_step()
            step += 1
            if step in evaluation_steps:
                row, evaluation = evaluate(model, data, metrics, settings.train.evaluation_batch)
                epoch = step / sampler.steps_per_epoch
                job.record(_complete(settings, {"epoch": epoch, "step": step, **row}))
                progress.evaluated(row)
                if step == total:
                    _write_margins(job.folder, evaluation.margins, data.classes)
            progress.step(step)
            if step == total:
                break


def _sampler(settings: Classification, data: Dataset, seed: int) -> Sampler:
    batch_size = settings.data.batch_size
    if batch_size == "full" or batch_size >= data.samples:
        return FullBatch(data.samples)
    kind = {"stratified": Stratified, "shuffled": Shuffled}[settings.data.sampler]
    return kind(data.labels, batch_size, seed)


def _complete(settings: Classification, row: dict[str, Any]) -> dict[str, Any]:
    """The row in the order of the columns; a figure that no metric gave is ``None``."""
    unknown = sorted(row.keys() - set(settings.columns))
    if unknown:
        raise DdnkitError(
            f"metrics: {type(settings.metrics).__name__} gives {', '.join(unknown)}, which is no "
            f"column of this pipeline; they are {', '.join(settings.columns)}"
        )
    return {column: row.get(column) for column in settings.columns}


class _Progress:
    """Reports about a hundred times a job, and never reads a tensor."""

    def __init__(self, job: Job, total: int) -> None:
        self._report, self._total = job.progress, total
        self._every = max(total // 100, 1)
        self._figures: dict[str, float] = {}
        self._start = time.perf_counter()

    def evaluated(self, row: dict[str, Any]) -> None:
        shown = ("train_loss", "train_top1", "test_top1")
        self._figures = {name: row[name] for name in shown if row[name] is not None}

    def step(self, done: int) -> None:
        if done % self._every == 0 or done == self._total:
            rate = done / (time.perf_counter() - self._start)
            self._report(done, self._total, {**self._figures, "steps/s": rate})


def _write_margins(folder: Path, margins: Tensor, classes: int) -> None:
    """``margins.csv``: the sorted cosine margins P_CM of the training samples.

    Columns: ``example`` (rank from 1), ``cosine_margin``, and the ``bound`` C/(C−1) of an exact
    ETF. Of a large training set evenly spaced ranks are written, the first and last among them.
    """
    ordered = margins.sort().values.cpu()
    count = min(len(ordered), _MARGIN_POINTS)
    ranks = torch.linspace(0, len(ordered) - 1, count, dtype=torch.float64).round().long()
    with (folder / "margins.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["example", "cosine_margin", "bound"])
        for rank, margin in zip(ranks.tolist(), ordered[ranks].tolist(), strict=True):
            writer.writerow([rank + 1, f"{margin:.8g}", f"{etf_cosine_margin(classes):.8g}"])
