"""One job, from its folder to its result; whatever it raises becomes a result here."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..errors import DamagedFileError, DdnkitError, InputError
from ..importing import describe_error, keep_defaults
from ..recipe.pipeline import Job
from ..recipe.recipe import Variant
from .folder import BusyError, JobFolder, RunFolder
from .options import JobOptions
from .record import MetricsWriter

Update = Callable[[int, int, dict[str, float]], None]


@dataclass(frozen=True)
class JobResult:
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


def earlier_result(folder: RunFolder, variant: str, seed: int) -> JobResult | None:
    """The result of a job that was done in an earlier session; None if it was not."""
    seconds = folder.job(variant, seed).seconds()
    if seconds is None:
        return None
    return JobResult("done", f"done {label(variant, seed)}  {seconds:.1f} s (earlier)")


def run_job(
    folder: RunFolder,
    variant: Variant,
    seed: int,
    *,
    options: JobOptions,
    update: Update,
    stopping: Callable[[], bool] = lambda: False,
) -> JobResult:
    """Run one job, from where it was if its pipeline saved that, else from its beginning.

    A failure leaves ``error.txt``; an interrupt passes through.

    Raises:
        BrokenPipeError: nobody reads the progress any more: as an interrupt, not the job's fault.
    """
    unread: list[BrokenPipeError] = []

    def show(done: int, total: int, figures: dict[str, float]) -> None:
        try:
            update(done, total, figures)
        except BrokenPipeError as error:
            unread.append(error)
            raise

    try:
        # The next job begins as it would in a process of its own.
        with keep_defaults([]):
            return _run(folder, variant, seed, options, show, stopping)
    except DamagedFileError as error:
        line = f"failed {label(variant.name, seed)}: {error}"
        return JobResult("damaged", line, line)
    except InputError as error:
        first = str(error).splitlines()[0]
        return JobResult("wrong_input", f"failed {variant.name}: {first}", str(error))
    except BusyError as error:
        line = f"failed {label(variant.name, seed)}: {error}"
        return JobResult("failed", line, line)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a job may fail in any way; the others go on
        if any(error is one for one in unread):
            raise
        return record_failure(folder.job(variant.name, seed), error, write=options.rank == 0)


def record_failure(job: JobFolder, error: BaseException, *, write: bool = True) -> JobResult:
    """A job that ``error`` ended; its traceback goes to ``error.txt``, if it can be written there."""
    own = isinstance(error, DdnkitError)
    what = str(error).strip().split("\n")[0] if own else describe_error(error)
    where = f"traceback: {job.error}"
    if write:
        text = "".join(traceback.format_exception(error))
        try:
            # A stranger's text may hold what is no character.
            job.error.write_text(text, encoding="utf-8", errors="backslashreplace")
        except OSError as refused:
            where = f"no traceback: {job.error}: {refused.strerror}"
    line = f"failed {label(job.variant, job.seed)}: {what} ({where})"
    return JobResult("failed", line, line)


def _run(
    folder: RunFolder,
    variant: Variant,
    seed: int,
    options: JobOptions,
    update: Update,
    stopping: Callable[[], bool],
) -> JobResult:
    folder = RunFolder(folder.path.absolute())  # wherever the code of a plugin goes
    job_folder = folder.job(variant.name, seed)
    job = Job(
        variant.name,
        seed,
        job_folder.path,
        record=ignore,
        progress=ignore,
        stopping=stopping,
        **vars(options),
    )
    if options.rank > 0:
        variant.pipeline.run(job)
        return JobResult("done", "")
    began = time.perf_counter()
    with (
        job_folder.hold(),
        MetricsWriter(job_folder.metrics, variant.pipeline.all_columns) as writer,
    ):
        if not variant.pipeline.resumable:
            writer.rewind(0)
        variant.pipeline.run(
            replace(
                job,
                record=writer.record,
                progress=update,
                rows=writer.rows,
                checksum=writer.checksum,
                rewind=writer.rewind,
            )
        )
        seconds = time.perf_counter() - began
        job_folder.finish(seconds, writer.checksum())
    return JobResult("done", f"done {label(variant.name, seed)}  {seconds:.1f} s")


def ignore(*_: Any) -> None:
    """Where the rows and the progress of a process go that is not to record or show them."""
