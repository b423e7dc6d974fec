"""Measure the models of a finished run again, and compare with the figures recorded in training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ..errors import DamagedFileError, InputError
from ..recipe.load import load
from ..recipe.pipeline import Job
from .folder import JobFolder, RunFolder
from .job import ignore
from .options import JobOptions
from .record import KEYS
from .table import align

#: A figure is the same if it differs by no more than this, relative to the larger one, or
RELATIVE = 1e-3
#: by this: rounding that differs between devices, versions and batch sizes.
ABSOLUTE = 1e-5

Figures = dict[str, "float | None"]


@dataclass(frozen=True)
class Reevaluation:
    """One job's figures: those of its last row, and those measured again."""

    job: JobFolder
    recorded: Figures
    measured: Figures

    def differences(self) -> list[str]:
        """The recorded figures that the new measurement does not reproduce."""
        return [
            name
            for name, value in self.recorded.items()
            if name not in KEYS and value is not None and not _same(value, self.measured.get(name))
        ]


def finished_jobs(
    folder: RunFolder, only: Sequence[str] = (), seeds: str | None = None
) -> tuple[list[JobFolder], list[str]]:
    """The finished jobs of a run, in its order of variants and seeds; and a line for what is left out.

    Args:
        only: these variants alone; none for all.
        seeds: ``"3"`` or ``"0,1,2"``, as for a run; None for all.

    Raises:
        InputError: there is no such variant, no such job is finished, or whether one is cannot be read.
    """
    recipe = load(folder.recipe, seeds=seeds)
    jobs = [
        folder.job(variant.name, seed) for variant in recipe.choose(only) for seed in recipe.seeds
    ]
    done = [job for job in jobs if job.finished() is not None]
    left_out = [*folder.missing_variants(jobs), *folder.missing_jobs(jobs)]
    if not done:
        missing = "".join(f"; {line}" for line in left_out[:1])
        raise InputError(
            f"'{folder.path}': none of the {len(jobs)} jobs asked for is finished{missing}"
        )
    begun = [job for job in jobs if job.path.is_dir() and job not in done]
    left_out += [f"{job.path}: the job is not finished, and is left out" for job in begun]
    return done, left_out


def reevaluate(
    folder: RunFolder,
    jobs: Iterable[JobFolder],
    overrides: Sequence[str] = (),
    *,
    options: JobOptions,
) -> Iterator[Reevaluation]:
    """Measure the models of ``jobs`` one after the other.

    Args:
        overrides: ``key=value``, laid over the settings that each job was run with.
        options: the device, resolved, and whether missing data may be fetched.

    Raises:
        InputError: an override is wrong, data or a model are missing or do not fit, the pipeline keeps
            no models, the settings were changed after the run, or a job's figures cannot be read.
    """
    options = replace(options, smoke=bool(folder.read_environment().get("smoke")))
    jobs = list(jobs)
    _check_settings(folder, jobs)
    recorded = [_last_row(job) for job in jobs]  # before hours of measuring
    for job, row in zip(jobs, recorded, strict=True):
        pipeline = load(folder.settings(job.variant), overrides).variants[0].pipeline
        if not options.smoke:
            pipeline.prepare(download=options.download)
        measured = pipeline.evaluate(
            Job(job.variant, job.seed, job.path, record=ignore, progress=ignore, **vars(options))
        )
        yield Reevaluation(job, row, measured)


def side_by_side(results: Sequence[Reevaluation]) -> str:
    """A row a job: accuracies and losses as measured now, each beside the recorded one."""
    columns = [
        ["variant", *(one.job.variant for one in results)],
        ["seed", *(str(one.job.seed) for one in results)],
    ]
    for metric in _metrics_to_show(results):
        columns.append([metric, *(_number(one.measured.get(metric)) for one in results)])
        columns.append(["recorded", *(_number(one.recorded.get(metric)) for one in results)])
    return align(columns)


def _metrics_to_show(results: Sequence[Reevaluation]) -> list[str]:
    """Accuracies, test first, and losses; all figures where there is neither."""
    found = [row for one in results for row in (one.recorded, one.measured)]
    names = dict.fromkeys(name for row in found for name, value in row.items() if value is not None)
    figures = [name for name in names if name not in KEYS]
    common = [name for name in figures if "top1" in name or "loss" in name]
    return sorted(common or figures, key=lambda name: ("top1" not in name, "test" not in name))


def _last_row(job: JobFolder) -> Figures:
    rows = job.figures()[1]
    if not rows:
        raise DamagedFileError(
            f"{job.metrics}: there is no evaluation in it, but the job is finished"
        )
    return rows[-1]


def _check_settings(folder: RunFolder, jobs: Iterable[JobFolder]) -> None:
    """Refuse changed settings: the figures measured with them would be those of another run."""
    changed = folder.changed_files()
    for file in dict.fromkeys(folder.settings(job.variant) for job in jobs):
        if file.relative_to(folder.path).as_posix() in changed:
            raise InputError(
                f"'{file}' was changed or removed after the run: put it back as it was, or have it written "
                f"again by ddnkit run {folder.recipe} --out {folder.path} --resume; to measure with other "
                "settings give them as -s KEY=VALUE"
            )


def _same(recorded: float, measured: float | None) -> bool:
    if measured is None:
        return False
    if math.isnan(recorded):
        return math.isnan(measured)
    return math.isclose(recorded, measured, rel_tol=RELATIVE, abs_tol=ABSOLUTE)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
