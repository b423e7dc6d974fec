"""The contracts of a recipe: the pipeline that it runs with its jobs, and the paper that it follows."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

from .. import registry
from ..errors import DdnkitError, InputError
from ..importing import describe_error
from .settings import Settings, component


@final
@dataclass(frozen=True)
class Table:
    """A table that a pipeline adds to the report of a run.

    Attributes:
        title: its heading.
        rows: of cells, as many in each; the first row is the head.
        note: what was measured and where other figures are from: a paragraph below it.
    """

    title: str
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@final
@dataclass(frozen=True)
class Job:
    """One variant of a recipe with one seed: where it runs and where its figures go.

    Attributes:
        variant: name of the variant, a folder's name.
        seed: the seed of everything random in the job.
        folder: ``runs/<variant>/seed-<n>`` of the run folder; it exists. Its subfolder ``state``
            is for what an unfinished job goes on from, and is removed when the job is done.
        device: ``"cpu"`` or ``"cuda"``, resolved.
        smoke: the same shapes on synthetic data, a few steps only.
        record: takes one row, a dict with a value for each of the pipeline's `columns`, and appends
            it to ``metrics.csv`` in `folder`. Each row has a later step than the one before.
        progress: ``progress(done, total, figures)`` shows how far the job is; ``figures`` is a
            dict of a few short numbers. Cheap: call it as often as you like.
        download: whether missing data may be fetched.
        rank, world: which of how many processes of this job this is. All run the pipeline; what
            ranks above 0 record and report goes nowhere, and rank 0 alone writes to `folder`.
        rows: how many rows `record` has written, those of an earlier session included.
        checksum: of the text of these rows; to save with them.
        rewind: ``rewind(n, checksum)`` drops all rows but the first n; a job that goes on from a saved
            state calls it with the rows it had then, and refuses rows that were changed since. Without
            a checksum only their number is checked.
        stopping: whether the run was asked to stop: save the state and raise KeyboardInterrupt.
    """

    variant: str
    seed: int
    folder: Path
    device: str
    smoke: bool
    record: Callable[[dict[str, Any]], None]
    progress: Callable[[int, int, dict[str, float]], None]
    download: bool = False
    rank: int = 0
    world: int = 1
    rows: Callable[[], int] = lambda: 0
    checksum: Callable[[], str | None] = lambda: None
    rewind: Callable[..., None] = lambda rows, checksum=None: None
    stopping: Callable[[], bool] = lambda: False


@final
@dataclass(frozen=True)
class PublishedFigure:
    """A figure as a paper prints it, to stand beside ours.

    Attributes:
        metric: what was measured: a column of ``metrics.csv``, or a figure that some table of the
            pipeline knows, such as ``peak_memory_gb``.
        text: the figure, as printed, such as ``"83.86 [84.5, 90.7]"``.
        source: where it is printed and what it is of, such as ``"Table 1, five seeds"``.
        epoch: when it was measured; None for the end of the training.
        note: what a reader should know besides: a sentence, told once below the table.
    """

    metric: str
    text: str
    source: str
    epoch: float | None = None
    note: str = ""


class Paper(Settings):
    """What a paper brings to the recipes that follow it: the section ``paper`` names one.

    A subclass is a plugin of the group ``papers``. Its fields are the keys of the section, such as
    ``experiment`` or ``fidelity``; it imports no torch. Whatever it leaves as it is adds nothing.
    """

    #: The paper as it is cited, such as ``"Guiding Neural Collapse (NeurIPS 2024)"``.
    title: ClassVar[str]

    #: Keys of the top of a recipe that are keys of this section now: old key to new. They are taken
    #: for one release, with a warning.
    former_keys: ClassVar[Mapping[str, str]] = {}

    def presets(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Values for keys that a recipe leaves out; as `Pipeline.presets`, and before those."""
        return {}

    def published(self, settings: Mapping[str, Any]) -> Iterable[PublishedFigure]:
        """The figures that the paper prints for a variant with these settings.

        The report sets those of a column of ``metrics.csv`` beside ours, in a table of each column.

        Args:
            settings: all of them as plain values, each section with its ``name``, as in the variant's
                ``settings.yaml``.
        """
        return ()

    def tables(self, folder: Path) -> Iterable[Table]:
        """Further tables of a run folder for its report; as `Pipeline.tables`.

        They are asked for once a run, of the first variant that names the paper.
        """
        return ()


def published_figures(
    settings: Mapping[str, Any], metric: str | None = None
) -> tuple[PublishedFigure, ...]:
    """What the paper that is named in a variant's ``settings`` prints for it; empty where none is.

    A paper that fails to give its figures has none; the user is told why.

    Args:
        settings: as `Paper.published` is given them.
        metric: its figures alone; None for all.

    Raises:
        ddnkit.PluginError: there is no such paper here.
        pydantic.ValidationError: the settings were changed, and the section is not valid.
    """
    section = settings.get("paper")
    if not isinstance(section, Mapping) or "name" not in section:
        return ()
    name = section["name"]
    given = {key: value for key, value in section.items() if key != "name"}
    paper = registry.get("papers", name).model_validate(given)
    try:
        figures = tuple(map(_checked_figure, paper.published(settings)))
    except DdnkitError:
        raise
    except Exception as error:
        registry.tell(f"the paper {name} gives no published figures: {describe_error(error)}")
        return ()
    return tuple(figure for figure in figures if metric in (None, figure.metric))


def _checked_figure(figure: object) -> PublishedFigure:
    if not isinstance(figure, PublishedFigure):
        raise TypeError(f"{figure!r:.100} is no ddnkit.PublishedFigure")
    for name, value, kinds in (
        ("metric", figure.metric, str),
        ("text", figure.text, str),
        ("source", figure.source, str),
        ("epoch", figure.epoch, int | float | None),
        ("note", figure.note, str),
    ):
        if not isinstance(value, kinds):
            raise TypeError(f"the {name} of a PublishedFigure is {value!r:.100}")
    return figure


class Pipeline(Settings, abc.ABC):
    """Settings of a whole recipe and the code that runs one job of it.

    Sections filled by plugins are fields declared with `component`. The recipe keys ``pipeline``,
    ``seeds`` and ``sweep`` are the library's own and never reach the pipeline.
    """

    paper: Paper | None = component(
        "papers",
        description="The paper that the recipe follows: its choices for what is left out, its "
        "figures in the report.",
        optional=True,
    )

    #: Columns of ``metrics.csv``; ``epoch`` and ``step`` come first, every other one is a figure.
    columns: ClassVar[tuple[str, ...]]

    #: Whether `run` goes on from a state that it saved in the job's folder, and asks `Job.stopping`
    #: often. Otherwise an unfinished job starts anew, and an interrupt ends it where it is.
    resumable: ClassVar[bool] = False

    @property
    def all_columns(self) -> tuple[str, ...]:
        """`columns`, and those that the components of this recipe add."""
        return self.columns

    def prepare(self, *, download: bool) -> None:
        """See that what the jobs need is there, before any begins; once a variant, in one process.

        Raises:
            ddnkit.InputError: something is missing; the text says what, and where it was looked for.
        """

    @classmethod
    def presets(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Values for keys that a recipe leaves out, where what it gives makes other defaults apt.

        Args:
            given: one variant as it was written, before it is validated: any value may be wrong.
                A section filled by a plugin is a mapping with its ``name``.

        Returns:
            Dotted key to value, such as ``{"data.sampler": "shuffled"}``. A key of another component of
            the kind is left out where the chosen one lacks it; one that none has is an error.
        """
        return {}

    @abc.abstractmethod
    def run(self, job: Job) -> None:
        """Run the job to its end, recording a row at every evaluation."""

    def figures(self, folder: Path) -> list[Path]:
        """Draw the figures of a run folder from its ``summary.csv``; returns the files written."""
        return []

    def caption(self, figure: Path) -> str:
        """What one of `figures` shows: its text in the report."""
        return figure.stem.replace("_", " ")

    def tables(self, folder: Path) -> list[Table]:
        """Tables of a run folder for its report, from ``summary.csv`` and the jobs' folders."""
        return []

    def evaluate(self, job: Job) -> dict[str, float | None]:
        """The figures of a finished job, measured again with the model in its folder.

        Raises:
            ddnkit.InputError: this pipeline keeps no model, the job's is not there, or it does not
                fit these settings.
        """
        raise InputError(f"pipeline {type(self).__name__} has no evaluate: it keeps no model")
