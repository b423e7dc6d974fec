"""Run the jobs of a recipe in spite of those that fail: here, or side by side in worker processes.

Small networks use two cores poorly: a job on one core each gets more done.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace

from ..recipe.recipe import Variant
from . import distributed
from .folder import RunFolder
from .job import label, run_job
from .options import JobOptions, RunOptions
from .progress import Display
from .queue import Outcome, Queue
from .stop import Stop, interrupt_on
from .team import Team

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
            _run_in_teams(queue, folder, display, teams, options)
        else:
            with distributed.lead() as tell:
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


def usable_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_each(processes: int) -> int:
    """How many threads each of so many processes gets, which share the cores evenly."""
    return max(1, usable_cores() // processes)


def _run_in_teams(
    queue: Queue, folder: RunFolder, display: Display, teams: int, options: RunOptions
) -> None:
    """Run all jobs of ``queue`` in so many teams, each of a process for each device of a job.

    The first interrupt, or SIGTERM, lets the jobs save their state; a second one ends them at once.
    """
    pool = _Pool(queue, folder, display, options, threads_each(teams * options.devices))
    ended = [threading.Event() for _ in range(teams)]
    with interrupt_on(signal.SIGTERM):
        try:
            for event in ended:
                threading.Thread(target=pool.serve, args=(event,), daemon=True).start()
            _wait(ended)
        except KeyboardInterrupt:
            pool.ask_to_stop()
            _wait(ended)
            raise
        finally:
            pool.kill()
    if pool.trouble:
        raise pool.trouble[0]


def _wait(ended: list[threading.Event]) -> None:
    # Not by Thread.join: interrupted in there, CPython 3.11 takes the thread for ended.
    for event in ended:
        while not event.wait(timeout=0.2):  # with a timeout, so that an interrupt is seen at once
            pass


class _Pool:
    def __init__(
        self,
        queue: Queue,
        folder: RunFolder,
        display: Display,
        options: RunOptions,
        threads: int,
    ) -> None:
        self._queue, self._folder, self._display = queue, folder, display
        self._options, self._threads = options, threads
        self._jobs: Iterator[tuple[Variant, int]] = iter(queue)
        self._lock = threading.Lock()
        self._teams: list[Team] = []
        self._stopped = False
        self.trouble: list[BaseException] = []

    def serve(self, ended: threading.Event) -> None:
        """The work of each thread: its team runs job after job until there are no more."""
        try:
            self._serve()
        except BaseException as error:  # handed to the main thread, which raises it
            self.trouble.append(error)
        finally:
            ended.set()

    def _serve(self) -> None:
        team: Team | None = None
        try:
            while not self._stopped:
                with self._lock:
                    job = next(self._jobs, None)
                if job is None:
                    break
                variant, seed = job
                if team is None or not team.alive():
                    team = self._team()
                name = label(variant.name, seed)

                def update(
                    done: int, total: int, figures: dict[str, float], name: str = name
                ) -> None:
                    with self._lock:
                        self._display.update(name, done, total, figures)

                result = team.run(variant.name, seed, self._options.job, update)
                if self._stopped and result.kind != "done":
                    break  # reported as interrupted, whatever its processes said
                with self._lock:
                    self._queue.end(variant.name, seed, result)
        except BaseException:
            self.kill()
            raise
        finally:
            if team is not None:
                team.dismiss()

    def ask_to_stop(self) -> None:
        """Start no more jobs, and let the running ones save their state."""
        self._stopped = True
        for team in self._teams:
            team.ask_to_stop()

    def kill(self) -> None:
        """End all processes at once."""
        self._stopped = True
        for team in self._teams:
            team.kill()

    def _team(self) -> Team:
        with self._lock:
            team = Team(self._folder.path, self._options.devices, self._threads)
            self._teams.append(team)
        if self._stopped:
            team.kill()
        return team
