"""Run the jobs of a recipe, here or in worker processes, in spite of those that fail."""

from __future__ import annotations

import signal
from dataclasses import replace

from ..recipe.recipe import Variant
from . import distributed
from .folder import RunFolder
from .job import label, run_job
from .options import JobOptions, RunOptions
from .progress import Display
from .queue import Outcome, Queue
from .stop import Stop

#: Ctrl-C, and what a cluster sends some time before it takes the machine away.
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def execute(
    folder: RunFolder,
    variants: list[Variant],
    seeds: list[int],
    *,
    options: RunOptions,
    display: Display,
    teams: int = 1,
) -> Outcome:
    """Run each variant with each seed, ``teams`` jobs at a time.

    A job by itself on one device runs in this process. Finished jobs are not run again. An
    interrupt lets the jobs that can save their state do so, and passes through.
    """
    queue = Queue(folder, variants, seeds, display)
    with display:
        if teams > 1 or options.devices > 1:
            from .parallel import run_in_teams

            run_in_teams(queue, folder, display, teams, options)
        else:
            with distributed.leading() as tell:
                _run_here(queue, folder, display, options.job, tell)
    return queue.outcome


def _run_here(
    queue: Queue, folder: RunFolder, display: Display, options: JobOptions, tell: distributed.Tell
) -> None:
    stop = Stop()
    options = replace(options, world=distributed.world())
    for variant, seed in queue:
        name = label(variant.name, seed)

        def update(done: int, total: int, figures: dict[str, float], name: str = name) -> None:
            display.update(name, done, total, figures)

        tell(folder, variant.name, seed, options)
        with stop.on_signals(*(_STOP_SIGNALS if variant.pipeline.resumable else ())):
            result = run_job(folder, variant, seed, options=options, update=update, stopping=stop)
        queue.end(variant.name, seed, result)
        if stop():
            raise KeyboardInterrupt
