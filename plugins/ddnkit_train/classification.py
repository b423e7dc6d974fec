"""Training: data → backbone → head → loss → optimiser, with evaluations in between."""

from __future__ import annotations

import csv
import itertools
import math
import time
import warnings
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from ddnkit_collapse import Evaluation, etf_cosine_margin
from torch import Tensor

from ddnkit import DdnkitError, DdnkitWarning, InputError, Job

from .built import (
    backbone_of,
    check_inputs,
    checked_loss,
    head_of,
    loss_of,
    metrics_of,
    optimizer_of,
)
from .checkpoint import Checkpoint, TrainingPlan
from .curves import Curves
from .data import Data, Plan
from .engine import Engine
from .evaluation import evaluate
from .model import Model
from .samplers import FullBatch, Sampler, Shuffled, Stratified, stratified_subset
from .settings import BackboneSettings
from .sharding import whole_state
from .stopwatch import Stopwatch
from .watch import LossWatch, finite, non_finite

if TYPE_CHECKING:
    from .settings import Classification

#: A smoke run takes this many steps: one to start, one to go on from there, and the last.
SMOKE_STEPS = 3
#: Its batches: as many samples as have so many values together, within these bounds.
_SMOKE_VALUES, _SMOKE_BATCH = 400_000, (8, 32)
_MARGIN_POINTS = 2000


def train(settings: Classification, job: Job) -> None:
    """Run one job of the classification pipeline: `Classification.run`."""
    sections: Any = settings  # each section is whatever plugin the recipe names
    engine = Engine(settings.engine, job)
    data = settings.load_data(job).to(engine.device)
    torch.manual_seed(job.seed)
    with engine.job():
        backbone: Any = backbone_of(settings, data)
        if isinstance(sections.backbone, BackboneSettings) and not job.smoke:
            sections.backbone.start(backbone, download=job.download)
        head = head_of(settings, backbone.feature_dim, data.classes)
        model = Model(backbone, head)
        _Training(settings, job, engine, data, model).run()


class _Training:
    """One job: from its checkpoint, or its first step, to its last."""

    def __init__(
        self, settings: Classification, job: Job, engine: Engine, data: Data, model: Model
    ) -> None:
        self.settings, self.job, self.engine, self.data = settings, job, engine, data
        self.plain = model
        counts = torch.bincount(data.labels, minlength=data.classes)
        self.loss_function = loss_of(settings, counts, model.head).to(engine.device)
        self.model, self.optimizer = engine.setup(model, partial(optimizer_of, settings))
        self.metrics = metrics_of(settings)
        # The optimiser may have given the weights its own start, which the head has not seen.
        model.head.after_step()  # type: ignore[operator]
        self.sampler = _sampler(settings, data, job)
        if self.sampler.smallest_batch < 2 * job.world and job.world > 1:
            raise InputError(
                f"batches of {self.sampler.smallest_batch} samples are too small for {job.world} "
                "processes, which need two each at least: raise data.batch_size"
            )
        self.total = settings.train.total_steps(self.sampler.steps_per_epoch)
        self.evaluation_steps = settings.train.evaluation_steps(self.sampler.steps_per_epoch)
        if job.rank == 0 and not job.smoke:
            for doubt in settings.doubts_of_data(self.sampler.steps_per_epoch):
                warnings.warn(f"{doubt.key}: {doubt.text}", DdnkitWarning, stacklevel=2)
        if job.smoke:
            self.total = min(self.total, SMOKE_STEPS)
            self.evaluation_steps = frozenset((1, self.total))
        self.rate = _Rate(settings, self.optimizer, self.sampler.steps_per_epoch)
        self.interval = settings.engine.checkpoint_interval(
            self.sampler.steps_per_epoch, self.total
        )
        plan = TrainingPlan(job.variant, job.seed, self.total, self.sampler.steps_per_epoch)
        self.checkpoint = Checkpoint(job.folder, engine, plan, self.evaluation_steps)
        self.losses = LossWatch(engine.device)
        # On a GPU a loss is known some steps later; its batch is told then.
        self.recent: deque[tuple[int, Plan]] = deque(maxlen=256)
        self.subset = stratified_subset(data.labels, settings.train.evaluation_samples)

    def run(self) -> None:
        """Take every step that is left."""
        saved = self.checkpoint.load(self.model, self.optimizer, self.loss_function)
        start, rows, checksum = saved or (0, 0, None)
        self.job.rewind(rows, checksum)
        progress = _Progress(self.job, start, self.total)
        watch = Stopwatch(
            self.engine.device, self.settings.engine.measure_steps, self.total - start
        )
        curves = None
        if self.settings.engine.tensorboard and self.job.rank == 0:
            curves = Curves(self.job.folder, start)
        self.model.train()
        step = start
        for plan, (inputs, labels) in self._batches(start):
            step += 1
            watch.begin()
            self._take(step, plan, inputs, labels, watch)
            if step in self.evaluation_steps:
                row = self._evaluate(step)
                self.job.record(row)
                progress.evaluated(row)
                if curves:
                    curves.add(row)
            progress.step(step)
            if step < self.total:
                self._keep(step)
        if curves:
            curves.close()
        model = self._whole_model()
        if self.job.rank == 0:
            watch.write(self.job.folder / "resources.json", self.engine.precision, self.job.world)
            from .export import export  # torch.export takes a second to load

            export(model, self.data, self.job.folder)

    def _batches(self, start: int) -> Iterator[tuple[Plan, tuple[Tensor, Tensor]]]:
        """The plans after step ``start`` with this process's share of their batches."""
        plans, ahead = itertools.tee(self.sampler.plans(start, self.total))
        return zip(plans, self.data.training(ahead, self.engine.share), strict=False)

    def _take(
        self, step: int, plan: Plan, inputs: Tensor, labels: Tensor, watch: Stopwatch
    ) -> None:
        """One step of the optimiser; nothing in it waits for the device."""
        self.rate.set(step)
        check_inputs(inputs, self.engine.precision)
        logits = self.model(self.engine.placed(inputs), labels)
        batch = self.data.samples if plan.index is None else len(plan.index)
        loss = checked_loss(self.loss_function(logits, labels), self.loss_function)
        loss = self.engine.weighted(loss, len(labels), batch)
        self.recent.append((step, plan))
        self._refuse(self.losses.see(step, loss))
        watch.mark()
        self.optimizer.zero_grad(set_to_none=True)
        self.engine.fabric.backward(loss)
        watch.mark()
        self.optimizer.step()
        self.plain.head.after_step()  # type: ignore[operator]
        watch.mark(last=True)

    def _evaluate(self, step: int) -> dict[str, Any]:
        self._refuse(self.losses.settle())
        row, evaluation = evaluate(
            self.model,
            self.data,
            self.metrics,
            self.settings.train.evaluation_batch,
            engine=self.engine,
            index=self.subset,
        )
        row |= self.settings.measure(self.plain, self.data)
        if step == self.total and self.job.rank == 0:
            _write_margins(self.job.folder, evaluation.margins, self.data.classes)
            _write_classes(self.job.folder, evaluation)
        epoch = step / self.sampler.steps_per_epoch
        return _complete(self.settings, {"epoch": epoch, "step": step, **row})

    def _keep(self, step: int) -> None:
        """Save a checkpoint where one is due, or the run is to stop; then it stops."""
        asked = self.engine.stopping()
        if not asked and step % self.interval:
            return
        self._refuse(self.losses.settle())
        # What is saved is sound: a poisoned state never replaces the last good one.
        self._refuse(None if self.engine.agreed(finite(self.plain)) else step)
        self.checkpoint.save(
            self.model,
            self.optimizer,
            self.loss_function,
            step=step,
            rows=self.job.rows(),
            rows_checksum=self.job.checksum(),
        )
        if asked:
            raise KeyboardInterrupt

    def _whole_model(self) -> Model | None:
        """The first process's model with all of its weights; all take part where they are split."""
        if not self.engine.split:
            return self.plain
        first = self.job.rank == 0
        weights = whole_state(self.plain.backbone.state_dict(), keep=first)
        if not first:
            return None
        backbone = backbone_of(self.settings, self.data)
        backbone.load_state_dict(weights)
        return Model(backbone.to(self.engine.device), self.plain.head)

    def _refuse(self, bad: int | None) -> None:
        """Stop with an explanation if the loss of step ``bad`` was not finite."""
        if bad is None:
            return
        plan = next((plan for step, plan in self.recent if step == bad), self.recent[-1][1])
        inputs = next(iter(self.data.training([plan], self.engine.share)))[0]
        index = None if plan.index is None else self.engine.share.of(plan.index)
        epoch, position = divmod(bad - 1, self.sampler.steps_per_epoch)
        kept = "No checkpoint had been saved yet."
        if self.checkpoint.file.is_file():
            kept = f"The last good checkpoint is kept: {self.checkpoint.file}."
        where = f"step {bad}, batch {position + 1} of epoch {epoch + 1}"
        losses = list(self.losses.losses)
        raise non_finite(self.plain, inputs, index, losses, where, kept)


def _sampler(settings: Classification, data: Data, job: Job) -> Sampler:
    batch_size = settings.data.batch_size
    if batch_size != "full" and job.smoke:
        batch_size = min(batch_size, _smoke_batch(data.sample_shape))
    if batch_size == "full" or batch_size >= data.samples:
        return FullBatch(data.samples)
    kind = {"stratified": Stratified, "shuffled": Shuffled}[settings.data.sampler]
    return kind(data.labels, batch_size, job.seed)


class _Rate:
    """Sets the learning rates of a step, which follow from its number alone: nothing to save.

    The optimiser's parameter groups are asked for at each step: loading a checkpoint replaces them.
    """

    def __init__(self, settings: Classification, optimizer: Any, steps_per_epoch: int) -> None:
        self._schedule = settings.schedule
        self._length = 1 if settings.train.iterations else steps_per_epoch
        self._total = settings.train.total_steps(steps_per_epoch)
        self._optimizer = optimizer
        if self._schedule.constant:
            return
        if any("lr" not in group for group in optimizer.param_groups):
            raise InputError(
                f"schedule: the optimizer {type(settings.optimizer).__name__} has no learning rate "
                "to change; leave schedule out, or choose sgd, adam or adamw"
            )
        # Of the settings: a loaded group has the rate of the step that it was saved at.
        self._full = [group["lr"] for group in optimizer.param_groups]

    def set(self, step: int) -> None:
        if self._schedule.constant:
            return
        factor = self._schedule.at(step, self._length, self._total)
        for group, full in zip(self._optimizer.param_groups, self._full, strict=True):
            group["lr"] = full * factor


def _smoke_batch(sample_shape: tuple[int, ...]) -> int:
    least, most = _SMOKE_BATCH
    return min(max(_SMOKE_VALUES // math.prod(sample_shape), least), most)


def _complete(settings: Classification, row: dict[str, Any]) -> dict[str, Any]:
    """The row in the order of the columns; a figure that no metric gave is ``None``."""
    columns = settings.all_columns
    unknown = sorted(row.keys() - set(columns))
    if unknown:
        raise DdnkitError(
            f"metrics: {type(settings.metrics).__name__} gives {', '.join(unknown)}, which is no column of "
            f"this recipe. Its settings class names what it gives: columns = {tuple(unknown)!r}. The columns "
            f"so far are {', '.join(columns)}"
        )
    return {column: row.get(column) for column in columns}


class _Progress:
    """Reports about a hundred times a job, and never reads a tensor."""

    def __init__(self, job: Job, start: int, total: int) -> None:
        self._report, self._first, self._total = job.progress, start, total
        self._every = max(total // 100, 1)
        self._figures: dict[str, float] = {}
        self._start = time.perf_counter()

    def evaluated(self, row: dict[str, Any]) -> None:
        shown = ("train_loss", "train_top1", "test_top1")
        self._figures = {name: row[name] for name in shown if row[name] is not None}

    def step(self, done: int) -> None:
        if done % self._every == 0 or done == self._total:
            rate = (done - self._first) / (time.perf_counter() - self._start)
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


def _write_classes(folder: Path, evaluation: Evaluation) -> None:
    """``classes.csv``: how many samples each class has, and the accuracy on it at the end.

    Columns: ``class``, ``train_samples``, ``train_top1``, ``test_samples``, ``test_top1``; accuracies
    in per cent, empty where a class has no sample that was evaluated.
    """
    held_out, C = evaluation.held_out, evaluation.classes
    train = _by_class(evaluation.labels, evaluation.predictions, C)
    test = _by_class(held_out.labels, held_out.predictions, C) if held_out else [(0, "")] * C
    counts = [0] * C if evaluation.counts is None else evaluation.counts.tolist()
    with (folder / "classes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "train_samples", "train_top1", "test_samples", "test_top1"])
        for c, (samples, (_, trained), (tested, top1)) in enumerate(
            zip(counts, train, test, strict=True)
        ):
            writer.writerow([c, samples, trained, tested, top1])


def _by_class(labels: Tensor, predictions: Tensor | None, classes: int) -> list[tuple[int, str]]:
    """How many samples of each class, and what share of them was decided right, in per cent."""
    samples = torch.bincount(labels, minlength=classes)
    right = torch.bincount(labels[labels == predictions], minlength=classes)
    return [
        (n, f"{100 * r / n:.8g}" if n else "")
        for n, r in zip(samples.tolist(), right.tolist(), strict=True)
    ]
