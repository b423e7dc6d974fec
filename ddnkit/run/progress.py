"""How far a run is: a live display on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, TextIO


class Display(Protocol):
    """What shows a run's progress; a context manager."""

    def __enter__(self) -> Display:
        """Begin."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End."""

    def begin(self, job: str) -> None:
        """A job begins."""

    def update(self, done: int, total: int, figures: dict[str, float]) -> None:
        """The job is so far; may be called at every step."""

    def end(self, line: str) -> None:
        """The job ended; ``line`` says how."""


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
        self._job = ""
        self._last = 0.0

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.flush()

    def begin(self, job: str) -> None:
        """A job begins."""
        self._job = job
        self._last = self._clock()

    def update(self, done: int, total: int, figures: dict[str, float]) -> None:
        """The job is so far."""
        now = self._clock()
        if now - self._last >= self._every:
            self._last = now
            text = f"{self._job}  {done}/{total}  {figures_text(figures)}".rstrip()
            self._line(self._ended + 1, text)

    def end(self, line: str) -> None:
        """The job ended; ``line`` says how."""
        self._ended += 1
        self._line(self._ended, line)

    def _line(self, number: int, text: str) -> None:
        print(f"[{number}/{self._jobs}] {text}", file=self._stream, flush=True)


class LiveDisplay:
    """Two bars, the run's and the current job's with its figures, and a line a finished job."""

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
        self._current = self._progress.add_task("", total=None, figures="", visible=False)
        self._last = 0.0

    def __enter__(self) -> LiveDisplay:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def begin(self, job: str) -> None:
        """A job begins."""
        self._last = 0.0
        self._progress.reset(self._current, total=None, description=job, figures="", visible=True)

    def update(self, done: int, total: int, figures: dict[str, float]) -> None:
        """The job is so far."""
        now = time.monotonic()
        if now - self._last >= 0.1 or done >= total:
            self._last = now
            self._progress.update(
                self._current, completed=done, total=total, figures=figures_text(figures)
            )

    def end(self, line: str) -> None:
        """The job ended; ``line`` says how."""
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._progress.update(self._current, visible=False)
        self._progress.advance(self._overall)


def display(jobs: int) -> Display:
    """The display that suits standard output."""
    return LiveDisplay(jobs) if sys.stdout.isatty() else PlainDisplay(jobs)
