"""``report.md`` and ``report.html``: what was run, where, and how the variants compare.

For unfinished runs too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import DamagedFileError, InputError
from ..importing import describe_error
from ..recipe.load import load
from ..recipe.pipeline import Paper, Pipeline, Table
from ..recipe.recipe import Recipe
from ..recipe.source import dump
from .files import write_whole
from .folder import JobFolder, RunFolder
from .page import page
from .summary import Summary, summarise, write_summary
from .table import beside_published, race

_GENERAL = ("pipeline", "description", "seeds", "sweep")
#: What the table of the last evaluation says of it besides the metrics, and where it is in a row.
_ABOUT = {"epoch": "epoch", "step": "step", "seeds": "n"}
#: What the report says of the keys of ``environment.json``.
_FACTS = {
    "ddnkit": "ddnkit {}",
    "git_commit": "commit {}",
    "python": "Python {}",
    "torch": "torch {}",
    "cuda_device": "{}",
    "cpu": "{}",
    "cpu_count": "{} CPUs",
    "threads": "{} thread(s)",
    "date": "{}",
}


@dataclass
class _Contribution:
    """What pipeline and papers add to the report, and a line for each thing that could not be done."""

    figures: list[tuple[str, Path]] = field(default_factory=list)  # with their captions
    tables: list[Table] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    def ask(self, recipe: Recipe, summary: Summary, folder: Path) -> None:
        """Have the figures drawn and the tables made."""
        pipeline = recipe.variants[0].pipeline
        self._try("figures drawn", lambda: self._take_figures(pipeline, folder))
        self._try(
            "published figures", lambda: self.tables.extend(beside_published(recipe, summary))
        )
        self._try("further tables", lambda: self._take_tables(pipeline, folder))
        papers: dict[type[Paper], Paper] = {}
        for variant in recipe.variants:
            paper = variant.pipeline.paper
            if isinstance(paper, Paper):  # a pipeline may have a field of its own of that name
                papers.setdefault(type(paper), paper)
        for paper in papers.values():
            self._try(f"tables of {paper.title}", partial(self._take_tables, paper, folder))

    def _take_tables(self, of: Pipeline | Paper, folder: Path) -> None:
        tables = list(of.tables(folder))
        for table in tables:
            if not isinstance(table, Table):
                raise TypeError(f"{type(of).__name__}.tables gave {table!r:.100}, no ddnkit.Table")
        self.tables.extend(tables)

    def _take_figures(self, pipeline: Pipeline, folder: Path) -> None:
        files = list(pipeline.figures(folder))
        self.figures = [(pipeline.caption(file), file) for file in files]

    def _try(self, what: str, do: Callable[[], None]) -> None:
        try:
            do()
        except InputError as error:
            self.damaged.append(f"{error}; no {what}")
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # these are a plugin's; the run's figures are safe
            self.warnings.append(f"no {what}: {describe_error(error)}")


def rebuild(folder: RunFolder, recipe: Recipe | None = None) -> tuple[Summary, list[str]]:
    """Write ``summary.csv``, the figures and the report from the jobs' records.

    Args:
        recipe: that of the run that ends with this report: what has no folder was not begun, and the run
            has said so. Without it that in the folder is loaded.

    Returns the summary, with a line for each file that is damaged: what it holds is left out; and a line
    for each thing that could not be done.

    Raises:
        InputError: the folder cannot be written.
    """
    contribution = _Contribution()
    running = recipe is not None
    environment: dict[str, Any] = {}
    try:
        environment = folder.read_environment()
        contribution.warnings += filter(None, [folder.missing_environment()])
        contribution.warnings += [
            f"{folder.path / name} {folder.fate(name)}: it no longer says what was run"
            for name in folder.changed_files()
            if (folder.path / name).parent.is_dir()  # else the folder is told below
        ]
    except DamagedFileError as error:
        contribution.damaged.append(f"{error}; it is unknown whether it was a smoke run")
    try:
        recipe = recipe or load(folder.recipe)
    except InputError as error:
        contribution.warnings.append(
            f"the recipe of {folder.path} cannot be loaded, no figures drawn: {error}"
        )
    order = [variant.name for variant in recipe.variants] if recipe else []
    contribution.warnings += folder.missing_variants(_jobs_of(folder, recipe))
    if not running:
        contribution.warnings += folder.missing_jobs(_jobs_of(folder, recipe))
    for job in folder.jobs():
        try:
            job.finished()
        except DamagedFileError as error:
            unknown = f"it is unknown whether {job.variant} seed {job.seed} finished"
            contribution.damaged.append(f"{error}; {unknown}")
    summary = summarise(folder, order)
    try:
        write_summary(folder, summary)
        if recipe and summary.rows:
            contribution.ask(recipe, summary, folder.path)
        summary = replace(summary, damaged=(*summary.damaged, *contribution.damaged))
        text = "\n\n".join(_sections(folder, environment, recipe, summary, contribution)) + "\n"
        write_whole(folder.report, text)
        write_whole(folder.page, page(text, folder.path))
    except OSError as error:
        raise InputError(f"{error.filename or folder.path}: {error.strerror}") from error
    return summary, contribution.warnings


def _sections(
    folder: RunFolder,
    environment: dict[str, Any],
    recipe: Recipe | None,
    summary: Summary,
    contribution: _Contribution,
) -> Iterable[str]:
    yield f"# {environment.get('recipe', folder.path.resolve().name)}"
    if recipe and recipe.description:
        yield recipe.description
    if environment:
        yield _environment(environment)
    if environment.get("smoke"):
        yield "**A smoke run: synthetic data and a few steps. Its figures mean nothing.**"
    yield _state(folder, recipe)
    yield from (f"Warning: {line}" for line in (*contribution.warnings, *summary.damaged))
    if recipe:
        yield "## Settings"
        yield _settings(recipe)
    if summary.rows:
        yield "## Last evaluation"
        yield "Median over seeds, with [minimum, maximum]."
        yield markdown(_last_evaluation(summary))
        for table in contribution.tables:
            yield f"## {table.title}"
            yield markdown(table.rows)
            yield from [table.note] if table.note else []
        headline = summary.headline()
        if headline:
            yield f"## {headline} at each evaluation"
            yield from [] if environment.get("smoke") else filter(None, [race(summary)])
            yield markdown(_race(summary, headline))
    seconds = _seconds(folder, summary.variants)
    if len(seconds) > 1:
        yield "## Seconds per job"
        yield markdown(seconds)
    if contribution.figures:
        yield "## Figures"
        for caption, figure in contribution.figures:
            path = Path(os.path.relpath(figure, folder.path)).as_posix()
            yield f"![{_plain(caption)}]({path.replace(' ', '%20')})"


def _environment(environment: dict[str, Any]) -> str:
    parts = [text.format(environment[key]) for key, text in _FACTS.items() if environment.get(key)]
    command = environment.get("command")
    return ", ".join(parts) + "." + (f"\n\n    {command}" if command else "")


def _state(folder: RunFolder, recipe: Recipe | None) -> str:
    jobs = list({job.path: job for job in [*_jobs_of(folder, recipe), *folder.jobs()]}.values())
    done = sum(job.seconds() is not None for job in jobs)
    lines = [f"{done} of {len(jobs)} jobs finished."]
    for job in jobs:
        if job.seconds() is None:
            state = "failed" if os.path.isfile(job.error) else "not finished"
            state = state if os.path.isdir(job.path) else "missing: never begun, or removed since"
            lines.append(f"- {job.variant} seed {job.seed}: {state}")
    return "\n".join([lines[0], "", *lines[1:]]) if len(lines) > 1 else lines[0]


def _jobs_of(folder: RunFolder, recipe: Recipe | None) -> list[JobFolder]:
    """The jobs that the recipe asks for, by variant."""
    variants = recipe.variants if recipe else ()
    return [folder.job(v.name, seed) for v in variants for seed in (recipe.seeds if recipe else ())]


def _settings(recipe: Recipe) -> str:
    lines = [f"- pipeline: {recipe.mapping['pipeline']}"]
    for section, content in recipe.mapping.items():
        if section not in _GENERAL:
            lines.append(f"- {section}: {_brief(content)}")
    lines.append(f"- seeds: {', '.join(map(str, recipe.seeds))}")
    for key, values in recipe.mapping.get("sweep", {}).items():
        if isinstance(values, dict):
            lines.append(f"- sweep over {key}:")
            lines += [f"  - {name}: {_brief(option)}" for name, option in values.items()]
        else:
            lines.append(f"- sweep over {key}: {', '.join(map(_brief, values))}")
    return "\n".join(lines)


def _brief(content: Any) -> str:
    if isinstance(content, dict) and "name" in content:
        rest = {key: value for key, value in content.items() if key != "name"}
        return ", ".join([str(content["name"]), *([_brief(rest)] if rest else [])])
    if isinstance(content, dict):
        return ", ".join(f"{key} {_brief(value)}" for key, value in content.items()) or "-"
    text = dump(content).strip()
    return text.removesuffix("...").strip().replace("\n", " ")


def _last_evaluation(summary: Summary) -> list[list[str]]:
    table = [["", *summary.variants]]
    for metric in (*_ABOUT, *summary.metrics):
        cells = [metric]
        for variant in summary.variants:
            rows = [row for row in summary.rows if row.variant == variant]
            if metric in _ABOUT:
                last = max(rows, key=lambda row: row.step, default=None)
                number = getattr(last, _ABOUT[metric], None)
                cells.append("" if number is None else f"{number:g}")
            else:
                cells.append(str(summary.last(variant, metric) or ""))
        table.append(cells)
    return table


def _race(summary: Summary, metric: str) -> list[list[str]]:
    rows = [row for row in summary.rows if row.metric == metric]
    cells = {(row.step, row.variant): str(row) for row in rows}
    epochs = {row.step: row.epoch for row in rows}
    table = [["epoch", "step", *summary.variants]]
    for step in sorted(epochs):
        epoch = epochs[step]
        values = [cells.get((step, variant), "") for variant in summary.variants]
        table.append(["" if epoch is None else f"{epoch:g}", f"{step:g}", *values])
    return table


def _seconds(folder: RunFolder, variants: Sequence[str]) -> list[list[str]]:
    jobs = {(job.variant, job.seed): job.seconds() for job in folder.jobs()}
    seeds = sorted({seed for _, seed in jobs})
    table = [["", *(f"seed {seed}" for seed in seeds)]]
    for variant in variants:
        times = (jobs.get((variant, seed)) for seed in seeds)
        table.append([variant, *("" if time is None else f"{time:.1f}" for time in times)])
    return table


def _plain(caption: str) -> str:
    """The caption with what Markdown would read as the end of an alternative text escaped."""
    return caption.replace("[", "\\[").replace("]", "\\]")


def markdown(table: Sequence[Sequence[str]]) -> str:
    """A table whose first row is its head."""
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in table]
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *body])
