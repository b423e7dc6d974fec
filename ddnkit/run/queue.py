"""The jobs of a run in their order, and how they ended."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ..errors import InputError
from ..recipe.recipe import Variant
from .folder import RunFolder
from .job import JobResult, earlier_result, label
from .progress import Display


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

    def count(self, result: JobResult) -> None:
        """Take in how one job ended."""
        if result.kind == "done":
            self.done += 1
        elif result.kind == "failed":
            self.failures.append(result.error)
        elif result.error not in self.wrong_input:
            self.wrong_input.append(result.error)


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
            result = earlier_result(self._folder, variant.name, seed)
            if result is not None:
                self.end(variant.name, seed, result)
                continue
            self._display.begin(label(variant.name, seed))
            yield variant, seed

    def end(self, variant: str, seed: int, result: JobResult) -> None:
        """A job has ended."""
        if result.kind == "wrong_input":
            self._refused.add(variant)
        self.outcome.count(result)
        self._display.end(label(variant, seed), result.line)
