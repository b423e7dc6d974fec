"""The Pipeline contract: what a recipe's ``pipeline`` key chooses, and the job it is given."""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

from .settings import Settings


@final
@dataclass(frozen=True)
class Job:
    """One variant of a recipe with one seed: where it runs and where its figures go.

    Attributes:
        variant: name of the variant, a folder's name.
        seed: the seed of everything random in the job.
        folder: ``runs/<variant>/seed-<n>`` of the run folder; it exists.
        device: ``"cpu"`` or ``"cuda"``, resolved.
        smoke: the same shapes on synthetic data, a few steps only.
        record: takes one row, a dict with a value for each of the pipeline's `columns`, and appends
            it to ``metrics.csv`` in `folder`.
        progress: ``progress(done, total, figures)`` shows how far the job is; ``figures`` is a
            dict of a few short numbers. Cheap: call it as often as you like.
    """

    variant: str
    seed: int
    folder: Path
    device: str
    smoke: bool
    record: Callable[[dict[str, Any]], None]
    progress: Callable[[int, int, dict[str, float]], None]


class Pipeline(Settings, abc.ABC):
    """Settings of a whole recipe and the code that runs one job of it.

    Sections filled by plugins are fields declared with `component`. The recipe keys ``pipeline``,
    ``seeds`` and ``sweep`` are the library's own and never reach the pipeline.
    """

    #: Columns of ``metrics.csv``; ``epoch`` and ``step`` come first, every other one is a figure.
    columns: ClassVar[tuple[str, ...]]

    @abc.abstractmethod
    def run(self, job: Job) -> None:
        """Run the job to its end, recording a row at every evaluation."""

    def figures(self, folder: Path) -> list[Path]:
        """Draw the figures of a run folder from its ``summary.csv``; returns the files written."""
        return []
