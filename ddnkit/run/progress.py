"""How far a run is: a live display on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, Protocol, TextIO


class Display(Protocol):
    """What shows a run's progress; a context manager."""

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *error: object) -> None:
        """End."""

    def begin(self, job: str) -> None:
        """A job begins."""

    def update(self, job: str, done: int, total: int, figures: dict[str, float]) -> None:
        """The job is so far; may be called at every step."""

    def end(self, job: str, line: str) -> None:
        """The job ended, begun or not; ``line`` says how."""


def figures_text(figures: dict[str, float]) -> str:
    """``loss 0.512  accuracy 0.934``."""
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items())


class PlainDisplay:
    """At most a line every few seconds for a job, and one at its end: for logs and pipes."""

    def __init__(
        self,
        jobs: int,
        stream: TextIO | None = None,
        every: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._jobs = jobs
        self._stream = stream or sys.stdout
        self._every = every
        self._clock = clock
        self._ended = 0
        self._last: dict[str, float] = {}

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.flush()

    def begin(self, job: str) -> None:
        """A job begins."""
        self._last[job] = self._clock()

    def update(self, job: str, done: int, total: int, figures: dict[str, float]) -> None:
        """The job is so far."""
        now = self._clock()
        if now - self._last[job] >= self._every:
            self._last[job] = now
            text = f"{job}  {done}/{total}  {figures_text(figures)}".rstrip()
            self._line(self._ended + 1, text)

    def end(self, job: str, line: str) -> None:
        """The job ended; ``line`` says how."""
        self._ended += 1
        self._line(self._ended, line)

    def _line(self, number: int, text: str) -> None:
        print(f"[{number}/{self._jobs}] {text}", file=self._stream, flush=True)


class LiveDisplay:
    """A bar for the run, one for each current job with its figures, and a line a finished job."""

    def __init__(self, jobs: int, console: Any = None) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeElapsedColumn as Elapsed

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            Elapsed(),
            TextColumn("{task.fields[figures]}", markup=False),
            console=console,
            transient=True,
        )
        self._overall = self._progress.add_task("jobs", total=jobs, figures="")
        self._tasks: dict[str, Any] = {}
        self._last: dict[str, float] = {}

    def __enter__(self) -> LiveDisplay:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def begin(self, job: str) -> None:
        """A job begins."""
        self._last[job] = 0.0
        self._tasks[job] = self._progress.add_task(job, total=None, figures="")

    def update(self, job: str, done: int, total: int, figures: dict[str, float]) -> None:
        """The job is so far."""
        now = time.monotonic()
        if now - self._last[job] >= 0.1 or done >= total:
            self._last[job] = now
            self._progress.update(
                self._tasks[job], completed=done, total=total, figures=figures_text(figures)
            )

    def end(self, job: str, line: str) -> None:
        """The job ended; ``line`` says how."""
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
        if job in self._tasks:
            self._progress.remove_task(self._tasks.pop(job))
        self._progress.advance(self._overall)


def display(jobs: int) -> Display:
    """The display that suits standard output."""
    return LiveDisplay(jobs) if sys.stdout.isatty() else PlainDisplay(jobs)
