"""Run the jobs of a recipe one after the other, in spite of those that fail."""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass, field

from ..errors import DdnkitError, InputError
from ..recipe.pipeline import Job
from ..recipe.recipe import Variant
from .folder import RunFolder
from .progress import Display
from .record import MetricsWriter


@dataclass
class Outcome:
    """How the jobs of a run ended.

    Attributes:
        done: how many finished now or before.
        failures: one line for each job that failed, or set of jobs that failed alike.
        wrong_input: the failures that were errors of what was given.
    """

    jobs: int
    done: int = 0
    failures: list[str] = field(default_factory=list)
    wrong_input: list[str] = field(default_factory=list)

    @property
    def exit_status(self) -> int:
        """0 all done, 1 a job failed, 2 if all that failed was the input."""
        if self.failures:
            return 1
        return InputError.exit_status if self.wrong_input else 0


def execute(
    folder: RunFolder,
    variants: list[Variant],
    seeds: list[int],
    *,
    device: str,
    smoke: bool,
    display: Display,
) -> Outcome:
    """Run each variant with each seed; a finished job of an earlier session is not run again.

    The seeds are the outer loop: after the first round all variants can be compared. A job that
    fails is told and leaves ``error.txt``; the others run. A variant whose input is wrong is told
    once and its other seeds are left out. An interrupt passes through.
    """
    outcome = Outcome(len(variants) * len(seeds))
    refused: set[str] = set()
    with display:
        for seed in seeds:
            for variant in variants:
                if variant.name not in refused:
                    try:
                        line = _run_job(folder, variant, seed, device, smoke, display)
                        outcome.done += 1
                    except InputError as error:
                        refused.add(variant.name)
                        line = f"failed {variant.name}: {str(error).splitlines()[0]}"
                        if str(error) not in outcome.wrong_input:
                            outcome.wrong_input.append(str(error))
                    except BrokenPipeError:
                        raise  # nobody reads any more: as an interrupt, not the job's fault
                    except Exception as error:  # a job may fail in any way; the others go on
                        line = _failure(folder, variant, seed, error)
                        outcome.failures.append(line)
                    display.end(line)
    return outcome


def _run_job(
    folder: RunFolder, variant: Variant, seed: int, device: str, smoke: bool, display: Display
) -> str:
    job_folder = folder.job(variant.name, seed)
    seconds = job_folder.seconds()
    label = f"{variant.name} seed {seed}"
    if seconds is not None:
        return f"done {label}  {seconds:.1f} s (earlier)"
    display.begin(label)
    job_folder.start()
    began = time.perf_counter()
    with MetricsWriter(job_folder.metrics, variant.pipeline.columns) as writer:
        variant.pipeline.run(
            Job(
                variant=variant.name,
                seed=seed,
                folder=job_folder.path,
                device=device,
                smoke=smoke,
                record=writer.record,
                progress=display.update,
            )
        )
    seconds = time.perf_counter() - began
    job_folder.finish(seconds)
    return f"done {label}  {seconds:.1f} s"


def _failure(folder: RunFolder, variant: Variant, seed: int, error: Exception) -> str:
    job_folder = folder.job(variant.name, seed)
    job_folder.error.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    kind = "" if isinstance(error, DdnkitError) else f"{type(error).__name__}: "
    first = str(error).strip().split("\n")[0]
    return f"failed {variant.name} seed {seed}: {kind}{first} (traceback: {job_folder.error})"
