"""What a run was asked for: made once from the command line, then passed whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class JobOptions:
    """How each job of a run is run: what `ddnkit.Job` tells a pipeline of it.

    Attributes:
        device: ``"cpu"`` or ``"cuda"``; ``"auto"`` until the run resolves it.
        smoke: synthetic data, a few steps.
        download: missing data may be fetched.
        rank, world: of the processes that run a job together, this one and their number.
    """

    device: str = "auto"
    smoke: bool = False
    download: bool = False
    rank: int = 0
    world: int = 1


@dataclass(frozen=True)
class RunOptions:
    """How to run a recipe.

    Attributes:
        job: how each of its jobs is run.
        out: the run folder; None for a new one in ``outputs/``, or, to resume, the newest there.
        resume: go on with the run in that folder.
        jobs: how many jobs run side by side; None: as many as there are cores, on the CPU.
        devices: how many devices a job runs on, a process each.
        command: the command line that gives these options, for the record.
    """

    job: JobOptions = JobOptions()
    out: Path | None = None
    resume: bool = False
    jobs: int | None = None
    devices: int = 1
    command: str = ""
