"""How training is carried out: its length, its learning rate, and the machine.

The sections ``train``, ``schedule`` and ``engine`` of a recipe.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable
from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from ddnkit import Doubt, Settings

#: Each is a row of ``metrics.csv``; their steps are held in memory.
_MAXIMUM_EVALUATIONS = 1_000_000


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
    evaluation_samples: PositiveInt | None = Field(
        default=None,
        description="Training samples that loss, accuracy and metrics are measured on, every class "
        "with its share; default: all.",
    )

    @model_validator(mode="after")
    def _one_length(self) -> TrainSettings:
        if (self.epochs is None) == (self.iterations is None):
            given = "both" if self.epochs else "neither"
            raise ValueError(f"give either epochs or iterations; {given} is given")
        evaluations = self.end // self.evaluate_every
        if evaluations > _MAXIMUM_EVALUATIONS:
            raise ValueError(
                f"{self.length} with an evaluation every {self.evaluate_every} come to {evaluations} "
                f"evaluations; at most {_MAXIMUM_EVALUATIONS} are possible: raise evaluate_every"
            )
        return self

    def doubts(self) -> Iterable[Doubt]:
        """See `Settings.doubts`."""
        if self.evaluate_every > self.end:
            text = (
                f"{self.evaluate_every} lies beyond the end of {self.length}: it alone is evaluated"
            )
            yield Doubt("evaluate_every", text)

    @property
    def end(self) -> int:
        """Epochs or iterations of the whole training."""
        return self.iterations or self.epochs or 0

    @property
    def length(self) -> str:
        """`end` with its unit."""
        return plural(self.end, "iteration" if self.iterations else "epoch")

    def total_steps(self, steps_per_epoch: int) -> int:
        """Steps of the whole training."""
        return self.iterations or (self.epochs or 0) * steps_per_epoch

    def evaluation_steps(self, steps_per_epoch: int) -> frozenset[int]:
        """The steps, counted from 1, after which to evaluate."""
        total = self.total_steps(steps_per_epoch)
        every = self.evaluate_every * (1 if self.iterations else steps_per_epoch)
        early = (step for step in self.evaluate_at if step < total)  # what lies beyond is doubted
        return frozenset((*range(every, total, every), *early, total))


class EngineSettings(Settings):
    """Precision, distribution, compilation and checkpoints; none of it changes what is trained."""

    precision: Literal["auto", "float32", "bf16", "float64"] = Field(
        default="auto",
        description="Of the backbone: 'bf16' autocasts to bfloat16 with float32 weights; 'auto' is "
        "bf16 on a GPU that has it, else float32. Heads and nodes are in float32 at least. "
        "'float64' is for comparing runs to the last digit.",
    )
    strategy: Literal["auto", "ddp", "fsdp"] = Field(
        default="auto",
        description="With several devices: 'ddp' copies the model to each ('auto'); 'fsdp' splits "
        "the backbone's weights, gradients and optimiser state over them (FSDP2), for networks that "
        "fill a device; not with 'compile'.",
    )
    channels_last: Literal["auto"] | bool = Field(
        default="auto", description="Images in channels-last layout; 'auto': on a GPU."
    )
    compile: Literal["none", "default", "reduce-overhead", "max-autotune"] = Field(
        default="none",
        description="Compile the backbone with torch.compile; 'reduce-overhead' and 'max-autotune' "
        "replay CUDA graphs.",
    )
    deterministic: bool = Field(
        default=True,
        description="Use deterministic algorithms, so that a resumed run goes on bit for bit and "
        "a seed gives the same figures again on the same hardware.",
    )
    checkpoint_every: PositiveInt | Literal["auto"] = Field(
        default="auto",
        description="Steps between checkpoints; 'auto': an epoch, or a fiftieth of the training "
        "where that is more. An interrupt saves one too.",
    )
    measure_steps: NonNegativeInt = Field(
        default=20,
        description="Steps whose forward and backward times are measured, after the first ten; "
        "0: none.",
    )
    tensorboard: bool = Field(
        default=False,
        description="Log every evaluation for TensorBoard too, in the job's folder; needs the "
        "package tensorboard.",
    )

    def checkpoint_interval(self, steps_per_epoch: int, total: int) -> int:
        """Steps between checkpoints."""
        if self.checkpoint_every == "auto":
            return max(steps_per_epoch, total // 50)
        return self.checkpoint_every


class ScheduleSettings(Settings):
    """A factor of the learning rate for each step; 1 throughout by default.

    Lengths are in epochs, or in iterations where the training is given in iterations.
    """

    warmup: NonNegativeFloat = Field(
        default=0.0, description="Length over which the rate grows linearly to its full value."
    )
    decay: Literal["none", "steps", "cosine"] = Field(
        default="none",
        description="After the warm-up: 'none'; 'steps': by `factor` at each of the milestones; "
        "'cosine': half a cosine wave down to zero at the end.",
    )
    milestones: tuple[NonNegativeFloat, ...] = Field(
        default=(), description="Where the rate is multiplied by `factor`, increasing."
    )
    factor: float = Field(default=0.1, gt=0, description="Of the rate at each milestone.")

    @model_validator(mode="after")
    def _milestones_go_with_steps(self) -> ScheduleSettings:
        if (self.decay == "steps") != bool(self.milestones):
            raise ValueError("milestones and decay 'steps' go together; give both or neither")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must increase; they are {list(self.milestones)}")
        return self

    def doubts(self) -> Iterable[Doubt]:
        """See `Settings.doubts`."""
        if self.decay != "steps":
            text = f"does nothing with decay {self.decay}: it is of the milestones"
            yield Doubt("factor", text, idle=True)
        elif self.factor == 1:
            yield Doubt("factor", "1 leaves the rate as it is at each of the milestones")
        early = [m for m in self.milestones if m <= self.warmup]
        if early:
            what = _enumerate(early, "lies", "lie")
            yield Doubt("milestones", f"{what} within the warm-up of {self.warmup:g}")

    def doubts_of_length(self, end: int, length: str, last: float | None = None) -> Iterable[Doubt]:
        """What lies beyond the end of a training of ``end``, with its unit ``length``.

        Args:
            last: where its last step begins; None: somewhere before the end.
        """
        # No step begins at the end: a milestone there comes too late as well.
        late = [m for m in self.milestones if m >= end or (last is not None and m > last)]
        if late:
            what = _enumerate(late, "lies", "lie")
            where = "the end" if late[-1] >= end else "the start of the last step"
            text = f"{what} beyond {where} of {length}: the rate never falls there"
            yield Doubt("milestones", text)
        if self.warmup >= end:
            text = f"{self.warmup:g} fills the whole training of {length}: the rate only grows"
            yield Doubt("warmup", text)

    @property
    def constant(self) -> bool:
        """Whether every step has the full rate."""
        return self.warmup == 0 and self.decay == "none"

    def at(self, step: int, length: float, total: int) -> float:
        """The factor of the rate of a step.

        Args:
            step: from 1.
            length: steps of an epoch, or 1 where the training is given in iterations.
            total: steps of the whole training.
        """
        growing = self.warmup * length
        if step <= growing:
            return step / growing
        if self.decay == "steps":
            # The step that begins an epoch is the first with the rate of that epoch.
            return self.factor ** bisect_right(self.milestones, (step - 1) / length)
        if self.decay == "cosine":
            return (1 + math.cos(math.pi * (step - 1 - growing) / max(total - growing, 1))) / 2
        return 1.0


def _enumerate(numbers: list[float], one: str, several: str) -> str:
    """``"160 and 180 lie"``."""
    *first, last = (f"{number:g}" for number in numbers)
    return f"{', '.join(first)} and {last} {several}" if first else f"{last} {one}"


def plural(number: int, unit: str) -> str:
    """``"1 step"``, ``"2 steps"``."""
    return f"{number} {unit}{'s' * (number != 1)}"
