"""Tables of a run for its report: the paper's figures beside ours, and what a step cost.

Nothing here imports torch.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddnkit_collapse.published import (
    EPOCHS,
    METHODS,
    SOURCE,
    Memory,
    Method,
    PublishedFigures,
    published_figures,
)
from ddnkit_collapse.run_figures import read_settings

from ddnkit import DamagedFileError, Table, read_json, read_table

NOT_RUN = "not run"
_NONE = "–"
#: The keys of ``resources.json``.
_RESOURCES: dict[str, Any] = {
    **dict.fromkeys(("forward_ms", "backward_ms", "step_ms", "peak_memory_mb"), int | float),
    **dict.fromkeys(("steps", "devices"), int),
    **dict.fromkeys(("memory_of", "device", "precision"), str),
}
_DIGITS = 6  # an epoch is a step divided by the steps of an epoch


@dataclass(frozen=True)
class _Variant:
    """One variant of a run folder: its settings and what its jobs left."""

    name: str
    settings: dict[str, Any]
    #: rows of ``summary.csv``, by metric and epoch
    evaluations: dict[tuple[str, float], dict[str, str]] = field(default_factory=dict)
    #: of each job that has measured some steps
    resources: list[dict[str, Any]] = field(default_factory=list)

    @property
    def published(self) -> PublishedFigures | None:
        """The experiment that the recipe names."""
        name = self.settings.get("published")
        return published_figures(name) if name else None

    @property
    def head(self) -> dict[str, Any]:
        """The settings of its head, with its name."""
        head = self.settings.get("head")
        return head if isinstance(head, dict) else {}


def tables(folder: Path) -> list[Table]:
    """The tables that a run folder has figures for.

    Args:
        folder: with ``summary.csv``, and for each variant ``settings.yaml`` and the jobs'
            ``resources.json``.
    """
    variants = _read(folder)
    made = [_accuracies("train", 1, variants), _accuracies("test", 2, variants), _costs(variants)]
    return [table for table in made if table]


def published_method(head: dict[str, Any], published: PublishedFigures) -> Method | None:
    """The method of the paper's Tables 1 and 2 that a head is, or None for one of our own.

    Where the head has the paper's settings alone: τ = 5, δ = 1e-3, a canonical fixed ETF, a
    standard head that does not centre, the paper's averaging. How the nearest ETF is solved for
    does not matter, since every solver finds the same.

    Args:
        head: its section of the settings.
        published: the experiment: on ImageNet the paper did not differentiate the solution.
    """
    of_paper: dict[str, dict[str, Any]] = {
        "standard": {"centre": False},
        "fixed_etf": {"direction": "canonical", "centre": True, "batch_norm": "none"},
        "nearest_etf": {
            "delta": 1e-3,
            "differentiate": published.differentiates,
            "centre": "samples",
            "batch_norm": "none",
            "means": {"policy": "paper", "weight": "equal"},
        },
    }
    wanted = {"temperature": 5.0, **of_paper.get(str(head.get("name")), {})}
    return next((m for m in METHODS if m == head.get("name") and _agrees(head, wanted)), None)


def _agrees(given: Any, wanted: Any) -> bool:
    """Whether ``given`` has what is wanted, whatever else it has."""
    if not isinstance(wanted, dict):
        return bool(given == wanted)
    return isinstance(given, dict) and all(_agrees(given.get(k), v) for k, v in wanted.items())


def _accuracies(split: str, number: int, variants: list[_Variant]) -> Table | None:
    """Table 1 or 2 of the paper with our rows; None where no variant names such an experiment."""
    named = [variant.published for variant in variants if variant.published]
    if not any(published.top1 for published in named):
        return None
    head = [split]
    for epoch in EPOCHS:
        head += [f"epoch {epoch}, ours", f"epoch {epoch}, published"]
    rows = [tuple(head)]
    notes = []
    for variant in variants:
        published = variant.published
        method = published_method(variant.head, published) if published else None
        cells = [variant.name]
        for epoch in EPOCHS:
            spread = published.top1.get((split, epoch, method)) if published and method else None
            row = variant.evaluations.get((f"{split}_top1", float(epoch)))
            cells += [_median(row) if row else NOT_RUN, str(spread) if spread else _NONE]
            if spread and not spread.consistent:
                notes.append(
                    f" {spread.median:.2f} outside of its range [{spread.minimum:.1f}, "
                    f"{spread.maximum:.1f}] is as printed."
                )
        rows.append(tuple(cells))
    experiments = ", ".join(dict.fromkeys(published.name for published in named))
    note = (
        f"Median [minimum, maximum] over seeds, in per cent. Published: {SOURCE}, Table {number}, "
        f"{experiments}, five seeds. “{NOT_RUN}”: there is no evaluation at that very epoch; "
        f"{_NONE}: the paper has no such head. Settings other than the head's are not compared."
    )
    title = f"Top-1 accuracy on the {'training' if split == 'train' else 'test'} set"
    return Table(
        f"{title}, beside the published", tuple(rows), note + "".join(dict.fromkeys(notes))
    )


def _costs(variants: list[_Variant]) -> Table | None:
    """Times and memory of a step, as the paper's Table 3, Figures 5 and 16."""
    measured = [variant for variant in variants if variant.resources]
    if not measured:
        return None
    memories = {variant.name: variant.published.memory for variant in measured if variant.published}
    compared = any(memories.values())
    head = ("", "forward (ms)", "backward (ms)", "step (ms)", "peak memory (GiB)", "seeds")
    rows: list[tuple[str, ...]] = [(*head, "published GPU memory (GB)") if compared else head]
    for variant in measured:
        cells = [_over_seeds(variant, key) for key in ("forward_ms", "backward_ms", "step_ms")]
        gigabytes = _over_seeds(variant, "peak_memory_mb", 1 / 1024)
        row = (variant.name, *cells, gigabytes, str(len(variant.resources)))
        memory = memories.get(variant.name)
        rows.append((*row, _published_memory(variant.head, memory)) if compared else row)
    note = _how_measured([resources for variant in measured for resources in variant.resources])
    if compared:
        note += f" Published: {SOURCE}, Table 3: GPU memory during training."
    return Table("What a step costs", tuple(rows), note)


def _published_memory(head: dict[str, Any], memory: Memory | None) -> str:
    if memory is None or head.get("name") not in METHODS:
        return _NONE
    if head["name"] == "nearest_etf" and not head.get("differentiate"):
        return f"{memory.undifferentiated:g}"
    gigabytes: float | None = getattr(memory, head["name"])
    return "did not fit" if gigabytes is None else f"{gigabytes:g}"


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


def _median(row: dict[str, str]) -> str:
    median, low, high = (float(row[key] or math.nan) for key in ("median", "min", "max"))
    seeds = int(row["n"])
    if seeds == 1:
        return f"{median:.2f}"
    return f"{median:.2f} [{low:.1f}, {high:.1f}]"


def _read(folder: Path) -> list[_Variant]:
    """The variants in the order of ``summary.csv``, then those that have no evaluation yet."""
    figures = dict.fromkeys(("epoch", "median", "min", "max"), "figure")
    columns = {"variant": "text", "metric": "text", **figures, "n": "count"}
    rows = read_table(folder / "summary.csv", columns)
    others = sorted(file.parent.name for file in (folder / "runs").glob("*/settings.yaml"))
    names = dict.fromkeys([*(row["variant"] for row in rows), *others])
    variants = {name: _variant(folder, name) for name in names}
    for row in rows:
        if row["epoch"]:
            at = (row["metric"], round(float(row["epoch"]), _DIGITS))
            variants[row["variant"]].evaluations[at] = row
    return list(variants.values())


def _variant(folder: Path, name: str) -> _Variant:
    path = folder / "runs" / name
    variant = _Variant(name, read_settings(folder, name))
    for file in sorted(path.glob("seed-*/resources.json")):
        variant.resources.append(read_resources(file))
    return variant


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
