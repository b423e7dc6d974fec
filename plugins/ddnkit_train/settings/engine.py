"""How training is carried out on the machine: the ``engine`` section of a recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from ddnkit import Settings


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
