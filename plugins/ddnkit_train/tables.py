"""What a step of a run cost, as a table for its report; nothing here imports torch."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddnkit_collapse.run_figures import read_settings

from ddnkit import (
    DamagedFileError,
    PublishedFigure,
    Table,
    published_figures,
    read_json,
    read_table,
)

_NONE = "–"
#: The keys of ``resources.json``.
_RESOURCES: dict[str, Any] = {
    **dict.fromkeys(("forward_ms", "backward_ms", "step_ms", "peak_memory_mb"), int | float),
    **dict.fromkeys(("steps", "devices"), int),
    **dict.fromkeys(("memory_of", "device", "precision"), str),
}


@dataclass(frozen=True)
class _Variant:
    """One variant of a run folder.

    Attributes:
        resources: of each job that has measured some steps.
        published: what its paper says of the peak memory, if anything.
    """

    name: str
    resources: list[dict[str, Any]]
    published: PublishedFigure | None


def tables(folder: Path) -> list[Table]:
    """The cost of a step, where jobs have measured some: times, memory, and the paper's memory.

    Args:
        folder: with ``summary.csv``, and for each variant ``settings.yaml`` and the jobs'
            ``resources.json``.
    """
    measured = [variant for variant in _read(folder) if variant.resources]
    if not measured:
        return []
    printed = [variant.published for variant in measured if variant.published]
    head = ("", "forward (ms)", "backward (ms)", "step (ms)", "peak memory (GiB)", "seeds")
    rows: list[tuple[str, ...]] = [(*head, "published memory (GB)") if printed else head]
    for variant in measured:
        cells = [_over_seeds(variant, key) for key in ("forward_ms", "backward_ms", "step_ms")]
        gigabytes = _over_seeds(variant, "peak_memory_mb", 1 / 1024)
        row = (variant.name, *cells, gigabytes, str(len(variant.resources)))
        figure = variant.published.text if variant.published else _NONE
        rows.append((*row, figure) if printed else row)
    note = _how_measured([resources for variant in measured for resources in variant.resources])
    sources = "; ".join(dict.fromkeys(figure.source for figure in printed))
    note += f" Published: {sources}." * bool(printed)
    return [Table("What a step costs", tuple(rows), note)]


def _how_measured(jobs: list[dict[str, Any]]) -> str:
    def all_of(key: str) -> str:
        return ", ".join(dict.fromkeys(str(job[key]) for job in jobs if job.get(key) is not None))

    kinds = {"device": "allocated on the GPU", "process": "of the whole process, data included"}
    memory = " or ".join(kinds.get(kind, kind) for kind in all_of("memory_of").split(", "))
    return (
        f"Median over the seeds of each job's median of {all_of('steps') or 'its'} steps, on "
        f"{all_of('device')} in {all_of('precision')}: forward pass with the head, "
        f"backward pass, and the whole step. Peak memory {memory}."
    )


def _over_seeds(variant: _Variant, key: str, factor: float = 1.0) -> str:
    values = [float(job[key]) * factor for job in variant.resources if job.get(key) is not None]
    return f"{statistics.median(values):.3g}" if values else _NONE


def _read(folder: Path) -> list[_Variant]:
    """The variants in the order of ``summary.csv``, then those that have no evaluation yet."""
    evaluated = (row["variant"] for row in read_table(folder / "summary.csv", {"variant": "text"}))
    others = sorted(file.parent.name for file in (folder / "runs").glob("*/settings.yaml"))
    return [_variant(folder, name) for name in dict.fromkeys([*evaluated, *others])]


def _variant(folder: Path, name: str) -> _Variant:
    jobs = sorted((folder / "runs" / name).glob("seed-*/resources.json"))
    memory = published_figures(read_settings(folder, name), "peak_memory_gb")
    return _Variant(name, [read_resources(file) for file in jobs], next(iter(memory), None))


def read_resources(file: Path) -> dict[str, Any]:
    """What a job's ``resources.json`` says a step cost.

    Raises:
        ddnkit.DamagedFileError: it is not what a `Stopwatch` writes; the text names file and key.
    """
    content = read_json(file)
    for key, kinds in _RESOURCES.items():
        value = content.get(key)
        right = isinstance(value, kinds) and not isinstance(value, bool)
        if value is not None and (not right or (kinds is not str and not 0 <= value < math.inf)):
            wanted = "text" if kinds is str else "a number from 0"
            raise DamagedFileError(
                f"{file}: {key}: expected {wanted}, was given {str(value)[:40]!r}"
            )
    return content
