"""A run that was started by torchrun: on several machines, or with a launcher of one's own.

Every process has typed the same command. Rank 0 leads: it opens the folder, shows progress, and
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
from .folder import RunFolder
from .job import How, run_job
from .stopping import Stop

Tell = Callable[[RunFolder, str, int, How], None]


def world() -> int:
    """The number of processes that torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def is_follower() -> bool:
    """Whether this process is one of several and not the first."""
    return world() > 1 and os.environ.get("RANK", "0") != "0"


@contextlib.contextmanager
def leading() -> Iterator[Tell]:
    """What tells the followers the next job; at the end they are told that there is none."""
    if world() == 1:
        yield lambda folder, variant, seed, how: None
        return

    def tell(folder: RunFolder, variant: str, seed: int, how: How) -> None:
        _broadcast((str(folder.path.resolve()), variant, seed, how))

    yield tell
    _broadcast(None)
    leave()


def follow() -> int:
    """Run the jobs that rank 0 tells, until there are none; the exit status."""
    rank = int(os.environ["RANK"])
    stop = Stop()
    while (job := _broadcast(None)) is not None:
        path, variant_name, seed, how = job
        folder = RunFolder(Path(path))
        recipe = load(str(folder.recipe))
        variant = next(one for one in recipe.variants if one.name == variant_name)
        how = replace(how, rank=rank)
        with stop.on_signals(signal.SIGINT, signal.SIGTERM):
            ended = run_job(
                folder, variant, seed, how=how, update=lambda *_: None, stopping=stop
            )  # fmt: skip
        if ended.kind == "failed":
            return 1  # torchrun ends the others
    leave()
    return 0


def leave() -> None:
    """Leave the group of processes, if this one is in any; NCCL asks for it."""
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
