"""One job, from its folder to how it ended; nothing that it may raise gets past here."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import DamagedFileError, DdnkitError, InputError
from ..recipe.pipeline import Job
from ..recipe.recipe import Variant
from .folder import RunFolder
from .record import MetricsWriter

Update = Callable[[int, int, dict[str, float]], None]


@dataclass(frozen=True)
class How:
    """How the jobs of a run are run.

    Attributes:
        device: ``"cpu"`` or ``"cuda"``, resolved.
        smoke: synthetic data, a few steps.
        download: missing data may be fetched.
        rank, world: of the processes that run a job together, this one and their number.
    """

    device: str
    smoke: bool = False
    download: bool = False
    rank: int = 0
    world: int = 1


@dataclass(frozen=True)
class Ended:
    """How a job ended.

    Attributes:
        kind: "done"; "wrong_input": what was given is wrong, for every seed alike; "damaged": a file
            of this job alone is; "failed"; or "interrupted", having saved its state where the pipeline
            can.
        line: one line for the display.
        error: the whole message where it is not done.
    """

    kind: Literal["done", "wrong_input", "damaged", "failed", "interrupted"]
    line: str
    error: str = ""


def label(variant: str, seed: int) -> str:
    """What a job is called where it is shown."""
    return f"{variant} seed {seed}"


def earlier(folder: RunFolder, variant: str, seed: int) -> Ended | None:
    """How the job ended in an earlier session, if it was done."""
    seconds = folder.job(variant, seed).seconds()
    if seconds is None:
        return None
    return Ended("done", f"done {label(variant, seed)}  {seconds:.1f} s (earlier)")


def run_job(
    folder: RunFolder,
    variant: Variant,
    seed: int,
    *,
    how: How,
    update: Update,
    stopping: Callable[[], bool] = lambda: False,
) -> Ended:
    """Run one job, from where it was if its pipeline saved that, else from its beginning.

    A failure leaves ``error.txt``; an interrupt passes through.

    Raises:
        BrokenPipeError: nobody reads the progress any more: as an interrupt, not the job's fault.
    """
    try:
        return _run(folder, variant, seed, how, update, stopping)
    except DamagedFileError as error:
        line = f"failed {label(variant.name, seed)}: {error}"
        return Ended("damaged", line, line)
    except InputError as error:
        first = str(error).splitlines()[0]
        return Ended("wrong_input", f"failed {variant.name}: {first}", str(error))
    except BrokenPipeError:
        raise
    except (Exception, SystemExit) as error:  # a job may fail in any way; the others go on
        file = folder.job(variant.name, seed).error
        if how.rank == 0:
            file.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        kind = "" if isinstance(error, DdnkitError) else f"{type(error).__name__}: "
        first = str(error).strip().split("\n")[0]
        line = f"failed {label(variant.name, seed)}: {kind}{first} (traceback: {file})"
        return Ended("failed", line, line)


def _run(
    folder: RunFolder,
    variant: Variant,
    seed: int,
    how: How,
    update: Update,
    stopping: Callable[[], bool],
) -> Ended:
    job_folder = folder.job(variant.name, seed)
    given: dict[str, Any] = {
        "variant": variant.name,
        "seed": seed,
        "folder": job_folder.path,
        "device": how.device,
        "smoke": how.smoke,
        "download": how.download,
        "rank": how.rank,
        "world": how.world,
        "stopping": stopping,
    }
    if how.rank > 0:
        variant.pipeline.run(Job(**given, record=_nothing, progress=_nothing))
        return Ended("done", "")
    began = time.perf_counter()
    with (
        job_folder.started(),
        MetricsWriter(job_folder.metrics, variant.pipeline.columns) as writer,
    ):
        if not variant.pipeline.resumable:
            writer.rewind(0)
        variant.pipeline.run(
            Job(
                **given,
                record=writer.record,
                progress=update,
                rows=writer.rows,
                checksum=writer.checksum,
                rewind=writer.rewind,
            )
        )
        seconds = time.perf_counter() - began
        job_folder.finish(seconds)
    return Ended("done", f"done {label(variant.name, seed)}  {seconds:.1f} s")


def _nothing(*_: Any) -> None:
    """What a process that is not the first records and reports."""
