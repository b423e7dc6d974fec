"""Training: data → backbone → head → loss → optimiser, with evaluations in between."""

from __future__ import annotations

import itertools
import math
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ddnkit import DdnkitError, DdnkitWarning, InputError, Job

from .checkpoint import Checkpoint, TrainingPlan
from .data import Data, Plan
from .engine import Engine
from .evaluation import evaluate
from .loss_watch import LossWatch, is_finite, non_finite_loss
from .model import Model
from .parts import (
    build_backbone,
    build_head,
    build_loss,
    build_metrics,
    build_optimizer,
    check_inputs,
    check_loss,
)
from .processes import whole_state
from .records import Curves, Progress, Stopwatch, write_classes, write_margins
from .samplers import FullBatch, Sampler, Shuffled, Stratified, stratified_subset
from .settings import BackboneSettings, Classification

#: A smoke run takes this many steps: one to start, one to go on from there, and the last.
SMOKE_STEPS = 3
#: Its batches: as many samples as have so many values together, within these bounds.
_SMOKE_VALUES, _SMOKE_BATCH = 400_000, (8, 32)


def train(settings: Classification, job: Job) -> None:
    """Run one job of the classification pipeline: `Classification.run`."""
    engine = Engine(settings.engine, job)
    data = settings.load_data(job).to(engine.device)
    torch.manual_seed(job.seed)
    with engine.job():
        backbone: Any = build_backbone(settings, data)
        if isinstance(settings.backbone, BackboneSettings) and not job.smoke:
            settings.backbone.start(backbone, download=job.download)
        head = build_head(settings, backbone.feature_dim, data.classes)
        model = Model(backbone, head)
        _Training(settings, job, engine, data, model).run()


class _Training:
    """One job, run from its checkpoint, or from its first step, to its last step."""

    def __init__(
        self, settings: Classification, job: Job, engine: Engine, data: Data, model: Model
    ) -> None:
        self.settings, self.job, self.engine, self.data = settings, job, engine, data
        self.plain = model
        counts = torch.bincount(data.labels, minlength=data.classes)
        self.loss_function = build_loss(settings, counts, model.head).to(engine.device)
        self.model, self.optimizer = engine.setup(model, partial(build_optimizer, settings))
        self.metrics = build_metrics(settings)
        # The optimiser may have given the weights its own start, which the head has not seen.
        model.head.after_step()
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
        """Run all remaining steps."""
        saved = self.checkpoint.load(self.model, self.optimizer, self.loss_function)
        start, rows, checksum = saved or (0, 0, None)
        self.job.rewind(rows, checksum)
        progress = Progress(self.job, start, self.total)
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
            self._step(step, plan, inputs, labels, watch)
            if step in self.evaluation_steps:
                row = self._evaluate(step)
                self.job.record(row)
                progress.evaluation(row)
                if curves:
                    curves.add(row)
            progress.step(step)
            if step < self.total:
                self._keep(step)
        if curves:
            curves.close()
        model = self._whole_model()
        if model is not None:
            watch.write(self.job.folder / "resources.json", self.engine.precision, self.job.world)
            from .export import export  # torch.export takes a second to load

            export(model, self.data, self.job.folder)

    def _batches(self, start: int) -> Iterator[tuple[Plan, tuple[Tensor, Tensor]]]:
        """The plans after step ``start`` with this process's share of their batches."""
        plans, ahead = itertools.tee(self.sampler.plans(start, self.total))
        return zip(plans, self.data.training(ahead, self.engine.share), strict=False)

    def _step(
        self, step: int, plan: Plan, inputs: Tensor, labels: Tensor, watch: Stopwatch
    ) -> None:
        """One step of the optimiser; nothing in it waits for the device."""
        self.rate.set(step)
        check_inputs(inputs, self.engine.precision)
        logits = self.model(self.engine.place(inputs), labels)
        batch = self.data.samples if plan.index is None else len(plan.index)
        loss = check_loss(self.loss_function(logits, labels), self.loss_function)
        loss = self.engine.weight_loss(loss, len(labels), batch)
        self.recent.append((step, plan))
        self._refuse(self.losses.see(step, loss))
        watch.mark()
        self.optimizer.zero_grad(set_to_none=True)
        self.engine.fabric.backward(loss)
        watch.mark()
        self.optimizer.step()
        self.plain.head.after_step()
        watch.mark(last=True)

    def _evaluate(self, step: int) -> dict[str, float | None]:
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
            write_margins(self.job.folder, evaluation.margins, self.data.classes)
            write_classes(self.job.folder, evaluation)
        epoch = step / self.sampler.steps_per_epoch
        return _complete(self.settings, {"epoch": epoch, "step": step, **row})

    def _keep(self, step: int) -> None:
        """Save a checkpoint if one is due or a stop was requested; in the second case, stop."""
        asked = self.engine.stopping()
        if not asked and step % self.interval:
            return
        self._refuse(self.losses.settle())
        # What is saved is sound: a poisoned state never replaces the last good one.
        self._refuse(None if self.engine.all_agree(is_finite(self.plain)) else step)
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
        """The model with all of its weights, in the first process; all take part where they are split."""
        first = self.job.rank == 0
        if not self.engine.split:
            return self.plain if first else None
        weights = whole_state(self.plain.backbone.state_dict(), keep=first)
        if not first:
            return None
        backbone = build_backbone(self.settings, self.data)
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
        raise non_finite_loss(self.plain, inputs, index, losses, where, kept)


def _sampler(settings: Classification, data: Data, job: Job) -> Sampler:
    batch_size = settings.data.batch_size
    if batch_size != "full" and job.smoke:
        batch_size = min(batch_size, _smoke_batch(data.sample_shape))
    if batch_size == "full" or batch_size >= data.samples:
        return FullBatch(data.samples)
    kind = {"stratified": Stratified, "shuffled": Shuffled}[settings.data.sampler]
    return kind(data.labels, batch_size, job.seed)


class _Rate:
    """Sets the learning rates of each step; they depend on its number alone, so nothing is saved.

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


def _complete(settings: Classification, row: Mapping[str, float | None]) -> dict[str, float | None]:
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
