"""What an unfinished job goes on from: one file, whole or not there.

A checkpoint is written to a temporary file in its own folder, synchronised to the disk, and renamed
over the one before: whatever moment a process is killed at, the file is the old or the new one.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddnkit import DdnkitError

from .engine import Engine
from .sharding import load_whole_state, whole_state

FORMAT = 1


class Checkpoint:
    """The state of a training in ``folder/state/checkpoint.pt``.

    It holds weights, buffers (class means, U and means among them) and optimiser, the step, the rows
    of ``metrics.csv`` by then, and the state of every random generator of every process. The
    batches follow from seed and step. It is loaded with ``weights_only=True``.

    Args:
        folder: the job's folder.
        engine: which gathers and distributes it.
    """

    def __init__(self, folder: Path, engine: Engine) -> None:
        self.file = folder / "state" / "checkpoint.pt"
        self._engine = engine

    def save(self, model: Any, optimizer: Any, *, step: int, rows: int) -> None:
        """Replace the checkpoint; all processes take part, the first one writes."""
        random_states = self._engine.all_objects(_random_states(self._engine.device))
        first = self._engine.share.rank == 0
        part = self.file.with_suffix(".part")
        if first:
            self.file.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "format": FORMAT,
            "step": step,
            "rows": rows,
            "random": random_states,
            "model": model,
            "optimizer": optimizer,
        }
        if self._engine.split:  # the file is the one that unsplit weights would have
            state["model"] = whole_state(model.state_dict(), keep=first)
            state["optimizer"] = whole_state(optimizer.state_dict(), keep=first)
        self._engine.fabric.save(part, state)
        if first:
            _synchronise(part)
            part.replace(self.file)
            if os.name == "posix":  # elsewhere a folder cannot be opened, and need not be
                _synchronise(self.file.parent)

    def load(self, model: Any, optimizer: Any) -> tuple[int, int] | None:
        """Restore model, optimiser and random states: (step, rows); None without a checkpoint.

        Raises:
            ddnkit.DdnkitError: the file is damaged, or of another model or number of processes.
        """
        if not self.file.is_file():
            return None
        state = None if self._engine.split else {"model": model, "optimizer": optimizer}
        try:
            rest = self._engine.fabric.load(self.file, state, weights_only=True)
            if rest["format"] != FORMAT:
                raise ValueError(f"its format is {rest['format']}, expected {FORMAT}")
            states = rest["random"]
            if len(states) != self._engine.share.world:
                raise ValueError(
                    f"it was saved by {len(states)} processes; go on with --devices {len(states)}"
                )
            if self._engine.split:
                load_whole_state(model, optimizer, rest["model"], rest["optimizer"])
        except Exception as error:
            raise DdnkitError(
                f"{self.file}: cannot go on from it: {error}. Remove the file to begin this job anew."
            ) from error
        _restore_random_states(states[self._engine.share.rank], self._engine.device)
        return int(rest["step"]), int(rest["rows"])


def _synchronise(path: Path) -> None:
    """Have file or folder on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _random_states(device: torch.device) -> dict[str, Any]:
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, internal, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": [str(kind), [int(key) for key in keys], position, has_gauss, float(gauss)],
        "python": [version, list(internal), gauss_next],
    }


def _restore_random_states(states: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)
    kind, keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
    version, internal, gauss_next = states["python"]
    random.setstate((version, tuple(internal), gauss_next))
