"""The classification pipeline: the sections of its recipes and the columns of its figures."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pydantic
from pydantic import Field, PositiveInt

from ddnkit import Job, Pipeline, Settings, component

from .data import DataSettings


class TrainSettings(Settings):
    """How long to train and when to evaluate; either ``epochs`` or ``iterations``."""

    epochs: PositiveInt | None = Field(
        default=None, description="Passes over the training set; or give iterations."
    )
    iterations: PositiveInt | None = Field(
        default=None,
        description="Steps of the optimiser; or give epochs. With a full batch they are the same.",
    )
    evaluate_every: PositiveInt = Field(
        default=1,
        description="Epochs between evaluations, or iterations where iterations are given. "
        "The end is always evaluated.",
    )
    evaluate_at: tuple[PositiveInt, ...] = Field(
        default=(), description="Further steps to evaluate at, such as early ones."
    )
    evaluation_batch: PositiveInt = Field(
        default=1000, description="Samples the network sees at a time when it is evaluated."
    )

    @pydantic.model_validator(mode="after")
    def _one_length(self) -> TrainSettings:
        if (self.epochs is None) == (self.iterations is None):
            given = "both" if self.epochs else "neither"
            raise ValueError(f"give either epochs or iterations; {given} is given")
        return self

    def total_steps(self, steps_per_epoch: int) -> int:
        """Steps of the whole training."""
        return self.iterations or (self.epochs or 0) * steps_per_epoch

    def evaluation_steps(self, steps_per_epoch: int) -> frozenset[int]:
        """The steps, counted from 1, after which to evaluate."""
        total = self.total_steps(steps_per_epoch)
        every = self.evaluate_every * (1 if self.iterations else steps_per_epoch)
        early = (step for step in self.evaluate_at if step < total)
        return frozenset((*range(every, total, every), *early, total))


class Classification(Pipeline):
    """Train a backbone and a classifier head on labelled data; measure the neural collapse."""

    columns: ClassVar[tuple[str, ...]] = (
        "epoch",
        "step",
        "train_loss",
        "ce_gap",
        "train_top1",
        "test_top1",
        "nc1",
        "nc2",
        "nc3",
        "nc4",
        "equinorm",
        "cosine_margin",
        "etf_distance_w",
        "etf_distance_h",
    )

    data: DataSettings = component("datasets", description="Labelled training and test samples.")
    backbone: Settings = component("backbones", description="Maps a sample to its features.")
    head: Settings = component("heads", description="The classifier on the features.")
    loss: Settings = component("losses", "cross_entropy", description="What is minimised.")
    optimizer: Settings = component("optimizers", description="How it is minimised.")
    metrics: Settings = component(
        "metrics", "neural_collapse", description="Figures measured on the training set."
    )
    train: TrainSettings = Field(description="Length of the training and evaluations.")

    def run(self, job: Job) -> None:
        """Train one variant with one seed.

        Raises:
            ddnkit.InputError: data, backbone and head do not fit, or files are missing.
            ddnkit.DdnkitError: the training loss is no longer finite.
        """
        from ..classification import train

        train(self, job)

    def figures(self, folder: Path) -> list[Path]:
        """The panels of the GNC paper as PNG files, drawn from ``summary.csv`` and the runs."""
        from ddnkit_collapse import draw_panels

        return draw_panels(folder)
