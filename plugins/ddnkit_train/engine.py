"""Where and how a training computes: device, precision, processes and memory layout, by Lightning Fabric."""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from ddnkit import InputError, Job

from . import processes
from .data import Share
from .settings import EngineSettings

if TYPE_CHECKING:
    from lightning_fabric import Fabric

T = TypeVar("T")

#: By name, what Fabric calls them.
PRECISIONS = {"float32": "32-true", "bf16": "bf16-mixed", "float64": "64-true"}


class Engine:
    """Runs a model and its optimiser the way ``engine`` settings and a job ask for.

    With several processes each has its `share` of every batch; what is trained is what one process
    would train on the whole batches: losses are weighted by the samples, batch statistics and
    class means are those of all processes.

    Attributes:
        split: whether each process has a part of the backbone's weights alone (see `processes`): then
            all processes must make forward passes, save and gather together.

    Args:
        settings: the ``engine`` section.
        job: its device, rank and world.

    Raises:
        ddnkit.InputError: the strategy does not go with the other settings.
    """

    def __init__(self, settings: EngineSettings, job: Job) -> None:
        self._settings = settings
        self._job = job
        self.share = Share(job.rank, job.world)
        self.precision = _precision(settings.precision, job.device)
        self.split = settings.strategy == "fsdp" and job.world > 1
        if self.split and settings.compile != "none":
            raise InputError(
                "engine.compile does not go with engine.strategy: fsdp; leave it at none, or use ddp"
            )
        self.fabric = _fabric(settings, job, self.precision)
        self.fabric.launch()
        self.device = self.fabric.device
        self._agreement = _gloo_group() if job.world > 1 else None
        self._question: tuple[Tensor, Any] | None = None

    def setup(
        self, model: nn.Module, optimizer_of: Callable[[nn.Module], torch.optim.Optimizer]
    ) -> tuple[Any, Any]:
        """Model and optimiser, on the device and in whichever processes there are."""
        if self.share.world > 1:
            model = processes.synchronise_batch_norm(model, self.device)
        model.to(self.device)
        if self.split:
            # The optimiser is of the split weights. FSDP wants weights in plain layout.
            wrapped = self.fabric.setup_module(model)
            optimizer = optimizer_of(model)
            processes.copy_from_first(model)  # the head's weights may have been given a start
            return wrapped, self.fabric.setup_optimizers(optimizer)
        optimizer = optimizer_of(model)
        backbone: Any = model.backbone
        if self._channels_last():
            backbone.to(memory_format=torch.channels_last)
        if self._settings.compile != "none":
            backbone.compile(mode=self._settings.compile)
        return self.fabric.setup(model, optimizer)

    def place(self, inputs: Tensor) -> Tensor:
        """Inputs in the layout of the model."""
        if inputs.ndim == 4 and self._channels_last():
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return inputs

    def weight_loss(self, loss: Tensor, samples: int, batch: int) -> Tensor:
        """This process's mean loss, scaled so that the mean over processes is the whole batch's loss."""
        return loss if self.share.world == 1 else loss * (samples * self.share.world / batch)

    @contextlib.contextmanager
    def job(self) -> Iterator[None]:
        """Apply torch's settings for the duration of a job, and restore them afterwards."""
        before = torch.get_default_dtype()
        # Fabric gives a module's outputs back in the default type.
        torch.set_default_dtype(torch.float64 if self.precision == "float64" else torch.float32)
        try:
            with _deterministic() if self._settings.deterministic else contextlib.nullcontext():
                yield
        finally:
            torch.set_default_dtype(before)

    def stopping(self) -> bool:
        """Whether to stop now; every process must ask after each step, and gets the same answer."""
        if self._agreement is None:
            return self._job.stopping()
        # What was asked by the step before: its answer is there by now, and nobody waits for it. On
        # the CPU, so that no GPU is waited for either.
        if self._question is not None:
            asked, work = self._question
            work.wait()
            if asked:
                return True
        asked = torch.tensor(int(self._job.stopping()))
        work = torch.distributed.all_reduce(
            asked, torch.distributed.ReduceOp.MAX, self._agreement, async_op=True
        )
        self._question = asked, work
        return False

    def all_agree(self, here: bool) -> bool:
        """Whether ``here`` is true in every process; every process gets the same answer."""
        return all(self.all_objects(here))

    def forward_passes(self, samples: int, batch: int) -> int:
        """How many forward passes every process must make, even if its share of the samples needs fewer.

        Where weights are split, processes gather them together, and the first has the largest share.
        """
        return math.ceil(len(self.share_of_rank(samples, 0)) / batch) if self.split else 0

    def total(self, value: Tensor) -> Tensor:
        """The sum over the processes."""
        if self.share.world > 1:
            torch.distributed.all_reduce(value)
        return value

    def gather(self, rows: Tensor, whole: int) -> Tensor:
        """The shares ``(n_r, ...)`` of all processes in order, ``(whole, ...)``."""
        if self.share.world == 1:
            return rows
        sizes = [len(self.share_of_rank(whole, rank)) for rank in range(self.share.world)]
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        torch.distributed.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def share_of_rank(self, whole: int, rank: int) -> range:
        """The positions of ``whole`` samples that process ``rank`` has."""
        part = torch.arange(whole).tensor_split(self.share.world)[rank]
        return range(int(part[0]), int(part[-1]) + 1) if len(part) else range(0)

    def all_objects(self, value: T) -> list[T]:
        """``value`` of every process, by rank."""
        if self.share.world == 1:
            return [value]
        values: list[Any] = [None] * self.share.world
        torch.distributed.all_gather_object(values, value, group=self._agreement)
        return values

    def _channels_last(self) -> bool:
        asked = self._settings.channels_last
        return self._job.device == "cuda" if asked == "auto" else asked


def _precision(asked: str, device: str) -> str:
    if asked != "auto":
        return asked
    return "bf16" if device == "cuda" and torch.cuda.is_bf16_supported() else "float32"


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    # cuBLAS reads it when its handle is made; without it torch warns at the first product.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    filled, benchmarked = memory.fill_uninitialized_memory, torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False  # costs time; what is read has been written
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=only_warned)
        memory.fill_uninitialized_memory = filled
        torch.backends.cudnn.benchmark = benchmarked


def _fabric(settings: EngineSettings, job: Job, precision: str) -> Fabric:
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
    from lightning_fabric.strategies import DDPStrategy, Strategy

    for name in ("lightning_fabric.utilities.distributed", "lightning_fabric.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)  # ddnkit shows its own progress
    # Processes are started by ddnkit or by torchrun, never by Fabric; both give torchrun's
    # environment.
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if job.world > 1 else 1
    strategy: str | Strategy = "auto"
    if job.world > 1 and settings.strategy == "fsdp":
        strategy = processes.strategy()
    elif job.world > 1:
        # The heads' buffers are the same in every process without being sent.
        strategy = DDPStrategy(gradient_as_bucket_view=True, **_buffers_unsent())
    with warnings.catch_warnings():
        # Fabric recommends srun where SLURM is installed; the processes are there already.
        warnings.filterwarnings("ignore", message=".*srun.*")
        return Fabric(
            accelerator=job.device,
            devices=local,
            num_nodes=job.world // local,
            strategy=strategy,
            precision=PRECISIONS[precision],  # type: ignore[arg-type]
            plugins=[TorchElasticEnvironment() if job.world > 1 else LightningEnvironment()],
        )


def _buffers_unsent() -> dict[str, Any]:
    """DDP's option that keeps it from sending rank 0's buffers at each forward pass."""
    known = inspect.signature(nn.parallel.DistributedDataParallel.__init__).parameters
    return {
        "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False
    }


def _gloo_group() -> Any:
    return torch.distributed.new_group(backend="gloo")
