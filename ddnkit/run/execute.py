"""Run the jobs of a recipe, here or in worker processes, in spite of those that fail."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from ..errors import InputError
from ..recipe.recipe import Variant
from . import distributed
from .folder import RunFolder
from .job import Ended, How, earlier, label, run_job
from .progress import Display
from .stopping import Stop

#: Ctrl-C, and what a cluster sends some time before it takes the machine away.
_ASKING = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Outcome:
    """How the jobs of a run ended.

    Attributes:
        done: how many finished now or before.
        failures: one line for each job that failed.
        wrong_input: the failures that were errors of what was given, each told once.
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

    def count(self, ended: Ended) -> None:
        """Take in how one job ended."""
        if ended.kind == "done":
            self.done += 1
        elif ended.kind == "failed":
            self.failures.append(ended.error)
        elif ended.error not in self.wrong_input:
            self.wrong_input.append(ended.error)


class Queue:
    """The jobs to run, in order, and how they ended; a worker takes the next when it is free.

    The seeds are the outer loop: after the first round all variants can be compared. A variant
    whose input is wrong is told once and its other seeds are left out.
    """

    def __init__(
        self, folder: RunFolder, variants: list[Variant], seeds: list[int], display: Display
    ) -> None:
        self._jobs = iter([(variant, seed) for seed in seeds for variant in variants])
        self._folder = folder
        self._display = display
        self._refused: set[str] = set()
        self.outcome = Outcome(len(variants) * len(seeds))

    def __iter__(self) -> Iterator[tuple[Variant, int]]:
        """The jobs that are still to run; those done in an earlier session are passed over."""
        for variant, seed in self._jobs:
            if variant.name in self._refused:
                continue
            ended = earlier(self._folder, variant.name, seed)
            if ended is not None:
                self.end(variant.name, seed, ended)
                continue
            self._display.begin(label(variant.name, seed))
            yield variant, seed

    def end(self, variant: str, seed: int, ended: Ended) -> None:
        """A job has ended."""
        if ended.kind == "wrong_input":
            self._refused.add(variant)
        self.outcome.count(ended)
        self._display.end(label(variant, seed), ended.line)


def execute(
    folder: RunFolder,
    variants: list[Variant],
    seeds: list[int],
    *,
    how: How,
    display: Display,
    teams: int = 1,
    devices: int = 1,
) -> Outcome:
    """Run each variant with each seed, ``teams`` jobs at a time on ``devices`` devices each.

    A job by itself on one device runs in this process. Finished jobs are not run again. An
    interrupt lets the jobs that can save their state do so, and passes through.
    """
    queue = Queue(folder, variants, seeds, display)
    with display:
        if teams > 1 or devices > 1:
            from .parallel import run_in_teams

            run_in_teams(queue, folder, display, teams, devices, how)
        else:
            with distributed.leading() as tell:
                _run_here(queue, folder, display, how, tell)
    return queue.outcome


def _run_here(
    queue: Queue, folder: RunFolder, display: Display, how: How, tell: distributed.Tell
) -> None:
    stop = Stop()
    how = replace(how, world=distributed.world())
    for variant, seed in queue:
        name = label(variant.name, seed)

        def update(done: int, total: int, figures: dict[str, float], name: str = name) -> None:
            display.update(name, done, total, figures)

        tell(folder, variant.name, seed, how)
        with stop.on_signals(*(_ASKING if variant.pipeline.resumable else ())):
            ended = run_job(folder, variant, seed, how=how, update=update, stopping=stop)
        queue.end(variant.name, seed, ended)
        if stop():
            raise KeyboardInterrupt
