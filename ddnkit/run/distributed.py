"""A run that torchrun started, on one machine or several.

Every process was given the same command. Rank 0 leads: it opens the folder, shows progress, and
tells the others which job is next; they follow.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..recipe.load import load
from ..recipe.recipe import Variant
from .folder import RunFolder
from .job import ignore, run_job
from .options import JobOptions
from .stop import Stop

Tell = Callable[[RunFolder, str, int, JobOptions], None]


def world() -> int:
    """The number of processes that torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def is_follower() -> bool:
    """Whether this process is one of several and not the first."""
    return world() > 1 and os.environ.get("RANK", "0") != "0"


@contextlib.contextmanager
def lead() -> Iterator[Tell]:
    """A function that tells the followers the next job; at the end they are told that there is none."""
    if world() == 1:
        yield lambda folder, variant, seed, options: None
        return

    def tell(folder: RunFolder, variant: str, seed: int, options: JobOptions) -> None:
        _broadcast((str(folder.path.resolve()), variant, seed, options))

    yield tell
    _broadcast(None)
    leave()


def follow() -> int:
    """Run the jobs that rank 0 names, until there are none; returns the exit status."""
    rank = int(os.environ["RANK"])
    stop = Stop()
    variants: dict[str, Variant] = {}
    while (job := _broadcast(None)) is not None:
        path, name, seed, options = job
        folder = RunFolder(Path(path))  # that of one run, whatever the job
        variants = variants or {one.name: one for one in load(folder.recipe).variants}
        with stop.on_signals(signal.SIGINT, signal.SIGTERM):
            result = run_job(
                folder,
                variants[name],
                seed,
                options=replace(options, rank=rank),
                update=ignore,
                stopping=stop,
            )
        if result.kind == "failed":
            return 1  # torchrun ends the others
    leave()
    return 0


def leave() -> None:
    """Leave the group of processes, if this one is in a group; NCCL asks for it."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _broadcast(message: Any) -> Any:
    """Rank 0's message, in every process."""
    import torch
    from torch import distributed

    if not distributed.is_initialized():
        cuda = torch.cuda.is_available() and distributed.is_nccl_available()
        distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
        if cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    box = [message]
    distributed.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]
