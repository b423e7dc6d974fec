"""The classification pipeline: the sections of its recipes and the columns of its figures."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pydantic
from pydantic import Field, InstanceOf

from ddnkit import Doubt, Job, Pipeline, Table, component, import_object

from .components import AGD, BackboneSettings
from .sections import (
    BackboneSection,
    DataSection,
    HeadSection,
    LossSection,
    MetricsSection,
    OptimizerSection,
)
from .training import EngineSettings, ScheduleSettings, TrainSettings, plural

if TYPE_CHECKING:
    from ..data import Data
    from ..model import Model

#: Columns that an evaluation measures itself, whatever the metrics.
MEASURED = ("epoch", "step", "train_loss", "ce_gap", "train_top1", "test_top1")


class Classification(Pipeline):
    """Train a backbone and a classifier head on labelled data; measure the neural collapse."""

    columns: ClassVar[tuple[str, ...]] = (
        *MEASURED,
        "nc1",
        "nc2",
        "nc3",
        "nc4",
        "equinorm",
        "cosine_margin",
        "etf_distance_w",
        "etf_distance_h",
    )

    data: InstanceOf[DataSection] = component(
        "datasets", description="Labelled training and test samples."
    )
    backbone: InstanceOf[BackboneSection] = component(
        "backbones", description="Maps a sample to its features."
    )
    head: InstanceOf[HeadSection] = component(
        "heads", description="The classifier on the features."
    )
    loss: InstanceOf[LossSection] = component(
        "losses", "cross_entropy", description="What is minimised."
    )
    optimizer: InstanceOf[OptimizerSection] = component(
        "optimizers", description="How it is minimised."
    )
    metrics: InstanceOf[MetricsSection] = component(
        "metrics", "neural_collapse", description="Figures measured on the training set."
    )
    train: TrainSettings = Field(description="Length of the training and evaluations.")
    schedule: ScheduleSettings = Field(
        default=ScheduleSettings(), description="How the learning rate changes over the training."
    )
    engine: EngineSettings = Field(
        default=EngineSettings(), description="Precision, devices and checkpoints."
    )

    resumable: ClassVar[bool] = True

    @property
    def all_columns(self) -> tuple[str, ...]:
        """`columns`, and those that the metrics name as their own."""
        return tuple(dict.fromkeys((*self.columns, *getattr(self.metrics, "columns", ()))))

    @pydantic.field_validator("metrics")
    @classmethod
    def _metrics_name_columns(cls, metrics: MetricsSection) -> MetricsSection:
        columns = getattr(metrics, "columns", ())
        name = type(metrics).__name__
        if not isinstance(columns, (tuple, list)):
            raise ValueError(
                f"{name}.columns is {columns!r}; expected the names of the figures that it gives, such as "
                f"columns = ({str(columns)!r},)"
            )
        for column in columns:
            if not isinstance(column, str) or not re.fullmatch(r"[A-Za-z]\w*", column):
                raise ValueError(
                    f"{name}.columns has {column!r}; expected a name of letters, digits and _, such as "
                    "mean_margin"
                )
            if column in MEASURED:
                raise ValueError(
                    f"{name}.columns has {column}, which every evaluation measures itself: choose another"
                )
        return metrics

    @pydantic.model_validator(mode="after")
    def _agd_takes_what_is_given(self) -> Classification:
        if isinstance(self.optimizer, AGD) and not self.schedule.constant:
            raise ValueError(
                "schedule and optimizer agd: AGD has no learning rate that a schedule could change; "
                "leave the schedule out, or choose sgd, adam or adamw"
            )
        if isinstance(self.optimizer, AGD) and isinstance(self.backbone, BackboneSettings):
            keys = self.backbone.start_scales
            given = [f"backbone.{key}" for key in keys if getattr(self.backbone, key) is not None]
            if given:
                raise ValueError(
                    f"{', '.join(given)} and optimizer agd: AGD gives the weights a start of its own, "
                    "orthogonal and of its own scale; leave one of the two out"
                )
        return self

    def doubts(self) -> Iterable[Doubt]:
        """See `Settings.doubts`."""
        yield from self._doubts_of_schedule(None)
        if self._steps_are_known:
            yield from self.doubts_of_steps(1)

    def doubts_of_steps(self, steps_per_epoch: int) -> Iterable[Doubt]:
        """What lies beyond the last step; `doubts` has it where an epoch is a step whatever the data."""
        end = self.train.total_steps(steps_per_epoch)
        late = [step for step in self.train.evaluate_at if step > end]
        if late:
            text = f"there is no step {', '.join(map(str, late))}: the last one is {end}"
            yield Doubt("train.evaluate_at", text)
        every = self.engine.checkpoint_every
        if every != "auto" and every >= end:
            text = (
                f"{every} is not below the {plural(end, 'step')}: only an interrupt saves a state"
            )
            yield Doubt("engine.checkpoint_every", text)

    def doubts_of_data(self, steps_per_epoch: int) -> Iterable[Doubt]:
        """What `doubts` could not say, which does not know how many steps an epoch of the data has."""
        if self._steps_are_known:
            return
        known = set(self._doubts_of_schedule(None))
        yield from self.doubts_of_steps(steps_per_epoch)
        yield from (d for d in self._doubts_of_schedule(steps_per_epoch) if d not in known)

    @property
    def _steps_are_known(self) -> bool:
        """Whether an epoch is a step, or steps are what is counted."""
        return bool(self.train.iterations) or getattr(self.data, "batch_size", None) == "full"

    def _doubts_of_schedule(self, steps_per_epoch: int | None) -> Iterable[Doubt]:
        """Of a training whose epochs have so many steps; None: as many as may be."""
        end = self.train.end
        # The last step begins a step before the end.
        steps = 1 if self._steps_are_known else steps_per_epoch
        last = (end * steps - 1) / steps if steps else None
        for doubt in self.schedule.doubts_of_length(end, self.train.length, last):
            yield replace(doubt, key=f"schedule.{doubt.key}")

    def prepare(self, *, download: bool) -> None:
        """See that the data are there, and fetch them where that is asked for."""
        for section in (self.data, self.backbone):
            locate = getattr(section, "locate", None)  # not every plugin has files to look for
            if callable(locate):
                locate(download=download)
        if download:
            # Here and once: a server that does not answer is told before fifteen jobs ask it.
            self.data.build(seed=0, smoke=False, download=True)

    def load_data(self, job: Job) -> Data:
        """The data of a job, on the CPU."""
        data: Data = import_object("ddnkit_train.parts:build_data")(self, job)
        return data

    def run(self, job: Job) -> None:
        """Train one variant with one seed.

        Raises:
            ddnkit.InputError: data, backbone and head do not fit, or files are missing.
            ddnkit.DdnkitError: the training loss is no longer finite.
        """
        import_object("ddnkit_train.classification:train")(self, job)

    def measure(self, model: Model, data: Data) -> dict[str, float]:
        """Further figures of a model, by column, at every evaluation; here there are none.

        They must follow from the model and the data alone: `evaluate` asks for them again, with the
        model that the job left, whose head is a `FinalHead`. Each of several processes calls it, with
        the whole data, and rank 0's answer is recorded.

        Args:
            model: of backbone and head, on the device of the data, in either mode and to be left in
                it. With ``engine.strategy: fsdp`` its backbone's weights are split over the processes.
            data: what it is trained on.
        """
        return {}

    def figures(self, folder: Path) -> list[Path]:
        """The panels of neural collapse as PNG files, drawn from ``summary.csv`` and the runs."""
        draw = import_object("ddnkit_collapse:draw_panels")
        files: list[Path] = draw(folder, self.further_panels())
        return files

    def further_panels(self) -> tuple[str, ...]:
        """Columns of the metrics that no other figure shows: a panel each."""
        return tuple(getattr(self.metrics, "columns", ()))

    def caption(self, figure: Path) -> str:
        """What a panel shows."""
        text: str = import_object("ddnkit_collapse.panels:caption")(figure.stem)
        return text

    def tables(self, folder: Path) -> list[Table]:
        """What a step cost."""
        found: list[Table] = import_object("ddnkit_train.tables:tables")(folder)
        return found

    def evaluate(self, job: Job) -> dict[str, float | None]:
        """The figures of the model in the job's folder, on these data."""
        figures: dict[str, float | None] = import_object("ddnkit_train.export:reevaluate")(
            self, job
        )
        return figures
