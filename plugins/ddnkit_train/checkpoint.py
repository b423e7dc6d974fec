"""The checkpoint that an unfinished job resumes from: one file, replaced as a whole, with a checksum.

A checkpoint is written to a temporary file in its own folder, synchronised to the disk, and renamed
over the one before: whatever moment a process is killed at, the file is the old or the new one. Its
last bytes are a checksum of all before them, so that a file which a disk or a copy changed is not
gone on from.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ddnkit import DamagedFileError, DdnkitError, replace_file

from .engine import Engine
from .processes import load_whole_state, whole_state

FORMAT = 2
#: Before the checksum at the end of a sealed file.
_SEAL = b"\nddnkit sha256 "
_DIGEST = hashlib.sha256().digest_size
_ANEW = "Remove the file to begin this job anew"
#: Characters of a reason: what torch says of a state that does not fit can fill a page.
_LONGEST = 300
#: What a checkpoint holds besides its format.
_KINDS: dict[str, type] = {
    "plan": dict,
    "step": int,
    "rows": int,
    "random": list,
    "model": dict,
    "optimizer": dict,
    "loss": dict,
}


@dataclass(frozen=True)
class TrainingPlan:
    """Identifies the training of a checkpoint; no other training can resume from it.

    Attributes:
        variant, seed: of the job.
        steps: of the whole training.
        steps_per_epoch: which the order of the samples follows from.
    """

    variant: str
    seed: int
    steps: int
    steps_per_epoch: int


class Checkpoint:
    """The state of a training in ``folder/state/checkpoint.pt``.

    It holds weights, buffers (class means, U and means among them), optimiser and whatever state the
    loss has, the step, the rows of ``metrics.csv`` by then with the checksum of their text, and the state
    of every random generator of every process. The batches follow from seed and step. It is loaded with
    ``weights_only=True``, once its checksum is right.

    Args:
        folder: the job's folder.
        engine: which gathers and distributes it.
        plan: the training.
        evaluations: the steps after which it is evaluated, each a row of ``metrics.csv``.
    """

    def __init__(
        self, folder: Path, engine: Engine, plan: TrainingPlan, evaluations: frozenset[int]
    ) -> None:
        self.file = folder / "state" / "checkpoint.pt"
        self._engine = engine
        self._plan = plan
        self._evaluations = evaluations

    def save(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: nn.Module,
        *,
        step: int,
        rows: int,
        rows_checksum: str | None,
    ) -> None:
        """Replace the checkpoint; all processes take part, the first one writes."""
        random_states = self._engine.all_objects(_random_states(self._engine.device))
        first = self._engine.share.rank == 0
        state: dict[str, Any] = {
            "format": FORMAT,
            "plan": asdict(self._plan),
            "step": step,
            "rows": rows,
            "rows_checksum": rows_checksum,
            "random": random_states,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "loss": loss.state_dict(),
        }
        if self._engine.split:  # the file is the one that unsplit weights would have
            for part in ("model", "optimizer"):
                state[part] = whole_state(state[part], keep=first)
        if first:
            write_sealed(self.file, lambda part: torch.save(state, part))
        self._engine.fabric.barrier()

    def load(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, loss: nn.Module
    ) -> tuple[int, int, str | None] | None:
        """Restore model, optimiser, loss and random states; None without a checkpoint.

        Returns:
            The step, the rows by then, and their checksum: None in a file of a version that kept none.

        Raises:
            ddnkit.DamagedFileError: the file is damaged, or of another training or number of processes.
        """
        state = read_sealed(self.file)
        if state is None:
            return None
        try:
            step, rows = self._validate(state)
            checksum = state.get("rows_checksum")
            if self._engine.split:
                load_whole_state(model, optimizer, state["model"], state["optimizer"])
            else:
                model.load_state_dict(state["model"])
                optimizer.load_state_dict(state["optimizer"])
            loss.load_state_dict(state["loss"])
            states = state["random"][self._engine.share.rank]
            _restore_random_states(states, self._engine.device)
        except Exception as error:  # whatever is wrong in a file that may hold anything
            raise cannot_go_on(self.file, error) from error
        return step, rows, checksum

    def _validate(self, state: dict[str, Any]) -> tuple[int, int]:
        """The step and the number of rows of a state, which must belong to this training."""
        if state.get("format") != FORMAT:
            raise ValueError(f"its format is {state.get('format')!r}, expected {FORMAT}")
        for name, kind in _KINDS.items():
            if not isinstance(state.get(name), kind) or isinstance(state[name], bool):
                found = type(state[name]).__name__ if name in state else "not there"
                raise ValueError(f"its {name} is {found}, expected {kind.__name__}")
        if not isinstance(state.get("rows_checksum"), str | None):
            raise ValueError("its rows_checksum is no text")
        for name, here in asdict(self._plan).items():
            there = state["plan"].get(name)
            if there != here:
                name = name.replace("_", " ")
                raise ValueError(f"it is of another training: its {name} is {there}, here {here}")
        step, rows, states = state["step"], state["rows"], state["random"]
        if not 0 < step < self._plan.steps:
            raise ValueError(
                f"it is of step {step}; of the {self._plan.steps} steps of this training, one goes "
                f"on from 1 to {self._plan.steps - 1}"
            )
        evaluated = sum(at <= step for at in self._evaluations)
        if not 0 <= rows <= evaluated:
            raise ValueError(
                f"it counts {rows} rows of metrics.csv; up to its step {step} there are {evaluated}"
            )
        if len(states) != self._engine.share.world:
            raise ValueError(
                f"it was saved by {len(states)} processes; go on with --devices {len(states)}"
            )
        return step, rows


def write_sealed(file: Path, write: Callable[[Path], None]) -> None:
    """Have ``write`` fill a file, add the checksum, and put it in place of ``file`` at once.

    Args:
        write: given the path of a temporary file in the same folder.

    Raises:
        ddnkit.DdnkitError: the system refused it, as a full disk does; what was in ``file`` is there still.
    """

    def fill(part: Path) -> None:
        try:
            write(part)
        except RuntimeError:  # torch's own words, which name neither file nor reason
            _try_to_write(part)
            raise
        digest = _digest(part, part.stat().st_size)
        with part.open("ab") as stream:
            stream.write(_SEAL + digest)

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        for left in file.parent.glob(f".part-*-{file.name}"):  # by a process that was killed
            left.unlink()
        replace_file(file, fill)
    except OSError as error:
        kept = "the one saved before is kept" if file.is_file() else "there is none yet"
        raise DdnkitError(
            f"{file}: the state cannot be saved: {error.strerror or error}; {kept}"
        ) from error


def _try_to_write(part: Path) -> None:
    """Append to a file, so that the operating system reports why it refuses to write."""
    with part.open("ab") as stream:
        stream.write(bytes(1 << 16))


def read_sealed(file: Path) -> dict[str, Any] | None:
    """What ``torch.save`` wrote in a file of `write_sealed`; None where there is no file.

    Raises:
        ddnkit.DamagedFileError: the file is not as it was written, or cannot be read.
    """
    if not os.path.lexists(file):
        if os.path.lexists(file.parent) and not file.parent.is_dir():
            raise cannot_go_on(file.parent, ValueError("it is not a folder"))
        return None
    try:
        _check_seal(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"it holds a {type(state).__name__}")
    except Exception as error:  # torch.load raises whatever its parts do
        raise cannot_go_on(file, error) from error
    return state


def cannot_go_on(file: Path, error: Exception) -> DamagedFileError:
    """The error, in one line, for a saved state that training cannot resume from."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    words = " ".join(reason.split()) or type(error).__name__
    words = words if len(words) <= _LONGEST else words[: _LONGEST - 1] + "…"
    return DamagedFileError(f"{file}: cannot go on from it: {words.removesuffix('.')}. {_ANEW}.")


def _check_seal(file: Path) -> None:
    size = file.stat().st_size
    if not file.is_file():
        raise ValueError("it is not a file" if not file.is_dir() else "it is a folder")
    if size == 0:
        raise ValueError("it is empty")
    length = size - len(_SEAL) - _DIGEST
    with file.open("rb") as stream:
        stream.seek(max(length, 0))
        seal, digest = stream.read(len(_SEAL)), stream.read()
    if seal != _SEAL:
        raise ValueError(
            "it does not end in a checksum: it was cut short or changed, or an earlier version "
            "wrote it, which put none there"
        )
    if digest != _digest(file, length):
        raise ValueError("its checksum is wrong: it is not as it was written")


def _digest(file: Path, length: int) -> bytes:
    """The checksum of the first ``length`` bytes."""
    found = hashlib.sha256()
    with file.open("rb") as stream:
        while length > 0 and (block := stream.read(min(length, 1 << 20))):
            found.update(block)
            length -= len(block)
    return found.digest()


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
