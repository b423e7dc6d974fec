"""The run folder: what lies where, and which run a folder holds.

::

    outputs/<recipe>/<date_time>/
      recipe.yaml          the recipe with its overrides; itself a recipe
      environment.json     machine, versions, command
      runs/<variant>/
        settings.yaml      every setting of the variant
        seed-<n>/
          metrics.csv      a row an evaluation
          state/           what an unfinished job goes on from
          done.json        the job finished: its seconds
          error.txt        the job failed: the traceback
      summary.csv, report.md, report.html and the figures
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DamagedFileError, DdnkitError, InputError, plain, reaching
from ..recipe.load import load
from ..recipe.recipe import Recipe
from ..recipe.source import Origin, parse, quote, read
from .files import read_json, write_whole
from .record import checksum_of_rows, read_metrics

OUTPUTS = Path("outputs")
_LOCK_TRIES = 50
#: The files that a checksum is kept of: no other is looked at.
_CHECKED = re.compile(r"recipe\.yaml|runs/(?!\.\.?/)[^/\0]+/settings\.yaml")
#: What some keys of ``environment.json`` hold, where they are there.
_KINDS: dict[str, type] = {
    "recipe": str,
    "smoke": bool,
    "earlier_sessions": list,
    "checksums": dict,
}


class BusyError(DdnkitError):
    """Another process has the folder that is needed."""


@dataclass(frozen=True)
class JobFolder:
    """``runs/<variant>/seed-<n>``."""

    path: Path
    variant: str
    seed: int

    @property
    def metrics(self) -> Path:
        """The job's figures, a row an evaluation."""
        return self.path / "metrics.csv"

    @property
    def error(self) -> Path:
        """The traceback of a failed job."""
        return self.path / "error.txt"

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the folder for this process while the job runs.

        Raises:
            BusyError: another process is at this job.
            DamagedFileError: what lies there is no folder, or cannot be used.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DamagedFileError(
                f"{self.path}: cannot be the folder of a job: {error.strerror}"
            ) from error
        with _lock(self.path, "running this job"):
            self.error.unlink(missing_ok=True)
            yield

    def finish(self, seconds: float, checksum: str | None = None) -> None:
        """Mark the job as done, with the checksum of its rows; None if it is unknown."""
        content = {"status": "done", "seconds": round(seconds, 3), "metrics": checksum}
        write_whole(self.path / "done.json", json.dumps(content) + "\n")
        # What a resumed job would have gone on from.
        shutil.rmtree(self.path / "state", ignore_errors=True)

    def seconds(self) -> float | None:
        """How long the finished job took; None if it did not finish, or if that is unknown."""
        try:
            return self.finished()
        except DamagedFileError:
            return None

    def finished(self) -> float | None:
        """As `seconds`, but an error where it is unknown whether the job finished.

        Raises:
            DamagedFileError: the file that `finish` wrote is damaged.
        """
        found = self._done()
        return None if found is None else found[0]

    def figures(self) -> tuple[list[str], list[dict[str, float | None]]]:
        """The columns and rows of `metrics`; those of a finished job must be what it ended with.

        Raises:
            DamagedFileError: the file is damaged, or was changed after the job finished.
        """
        try:
            finished = self._done()
        except DamagedFileError:
            finished = None  # told by those who ask whether it is finished
        columns, rows = read_metrics(self.metrics)
        if finished is None:
            return columns, rows
        if not columns:  # a finished job has them, if no row
            state = "is empty" if self.metrics.exists() else "is gone"
            raise DamagedFileError(f"{self.metrics} {state}, but the job is finished")
        if finished[1] is not None and finished[1] != checksum_of_rows(self.metrics):
            raise DamagedFileError(
                f"{self.metrics} was changed or cut short after the job finished: its {len(rows)} "
                "row(s) are not those that done.json has the checksum of. Put the file back, or remove "
                "done.json beside it to have --resume run the job again"
            )
        return columns, rows

    def _done(self) -> tuple[float, str | None] | None:
        """Seconds and the checksum of the rows of a finished job."""
        file = self.path / "done.json"
        try:
            os.lstat(file)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:  # a folder that may not be entered
            raise DamagedFileError(f"{file}: cannot be read: {error.strerror}") from error
        content = read_json(file)
        checksum = content.get("metrics")
        if not isinstance(checksum, str | None):
            raise DamagedFileError(
                f"{file}: metrics: expected a checksum, was given {quote(checksum)}"
            )
        seconds: Any = content.get("seconds")
        with contextlib.suppress(OverflowError):  # a whole number may be of any length
            if type(seconds) in (int, float) and 0 <= float(seconds) < math.inf:
                return float(seconds), checksum
        raise DamagedFileError(
            f"{file}: seconds: expected a number from 0, was given {quote(seconds)}"
        )


@contextlib.contextmanager
def _lock(folder: Path, doing: str) -> Iterator[None]:
    """Lock a folder without a file in it; the system unlocks it when the process dies."""
    try:
        import fcntl
    except ImportError:  # not on this system: two runs of one folder are the user's to avoid
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        for _ in range(_LOCK_TRIES):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.1)  # a process that was killed a moment ago may still be going
        else:
            raise BusyError(f"another process is {doing} in {folder}")
        yield
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def environment(self) -> Path:
        """Machine, versions and command."""
        return self.path / "environment.json"

    @property
    def summary(self) -> Path:
        """Median and range over seeds."""
        return self.path / "summary.csv"

    @property
    def report(self) -> Path:
        """The report, in Markdown."""
        return self.path / "report.md"

    @property
    def page(self) -> Path:
        """The same as one HTML file."""
        return self.path / "report.html"

    def settings(self, variant: str) -> Path:
        """Every setting of one variant."""
        return self.path / "runs" / variant / "settings.yaml"

    def job(self, variant: str, seed: int) -> JobFolder:
        """The folder of one job, which need not exist yet."""
        return JobFolder(self.path / "runs" / variant / f"seed-{seed}", variant, seed)

    @contextlib.contextmanager
    def hold(self, *, new: bool) -> Iterator[None]:
        """Hold the folder while its record is written: only one of two runs can begin in it at once.

        Raises:
            BusyError: another process holds it.
            InputError: the run is to be ``new``, and another was begun here a moment ago.
        """
        with _lock(self.path, "beginning a run"):
            if new and os.path.lexists(self.recipe):
                raise InputError(f"'{self.path}' holds another run already: choose another --out")
            yield

    def jobs(self) -> list[JobFolder]:
        """The jobs that have a folder, sorted by variant and seed."""
        found = []
        for path in (self.path / "runs").glob("*/seed-*"):
            number = path.name.removeprefix("seed-")
            if number.isdecimal() and number == str(int(number)):  # no other is a job's
                found.append(JobFolder(path, path.parent.name, int(number)))
        return sorted(found, key=lambda job: (job.variant, job.seed))

    def write_recipe(self, recipe: Recipe) -> None:
        """Write the resolved recipe and each variant's settings."""
        write_whole(self.recipe, recipe.to_yaml())
        for variant in recipe.variants:
            file = self.settings(variant.name)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, variant.to_yaml())

    def checksums(self) -> dict[str, str | None]:
        """Of the content of recipe and settings, by file; None for one that cannot be read.

        Of the content: a comment or the end of a line changes nothing.
        """
        files = [self.recipe, *sorted((self.path / "runs").glob("*/settings.yaml"))]
        return {file.relative_to(self.path).as_posix(): _checksum(file) for file in files}

    def changed_files(self) -> list[str]:
        """The recipe and settings files that were changed or removed since the run began.

        None are known of a run whose `environment` has no checksums.

        Raises:
            DamagedFileError: as `read_environment`.
        """
        recorded = self.read_environment().get("checksums", {})
        return [
            name for name, checksum in recorded.items() if _checksum(self.path / name) != checksum
        ]

    def fate(self, name: str) -> str:
        """What happened to one of the `changed_files`, in words."""
        file = self.path / name
        try:
            file.stat()
        except (FileNotFoundError, NotADirectoryError):
            return "is missing"
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        return "was changed after the run began"

    def missing_variants(self, jobs: Iterable[JobFolder]) -> list[str]:
        """A line for each variant whose folder is missing; a run makes them all before it begins."""
        folders = dict.fromkeys(job.path.parent for job in jobs)
        return [
            f"{path} is missing: it was removed after the run began, and its jobs are left out"
            for path in folders
            if not path.is_dir()
        ]

    def missing_jobs(self, jobs: Iterable[JobFolder]) -> list[str]:
        """A line for each variant that lacks folders of jobs, which are made when a job begins."""
        without: dict[Path, list[str]] = {}
        for job in jobs:
            if job.path.parent.is_dir() and not job.path.is_dir():
                without.setdefault(job.path.parent, []).append(job.path.name)
        return [
            f"{path}: {plain(', '.join(names), 100)} missing: never begun, or removed since"
            for path, names in without.items()
        ]

    def missing_environment(self) -> str | None:
        """A line on what is unknown if `environment` is missing; None if it is there."""
        if os.path.lexists(self.environment):
            return None
        return (
            f"{self.environment} is missing: it is unknown whether this was a smoke run, and whether "
            "its recipe was changed since"
        )

    def read_environment(self) -> dict[str, Any]:
        """What `environment` holds; empty if it is not there.

        Raises:
            DamagedFileError: it holds something else; whether the run was a smoke run is not known then.
        """
        if not os.path.lexists(self.environment):
            return {}
        content = read_json(self.environment)
        wrong = [
            key for key, kind in _KINDS.items() if not isinstance(content.get(key, kind()), kind)
        ]
        if wrong:
            raise DamagedFileError(
                f"{self.environment}: {wrong[0]}: expected a {_KINDS[wrong[0]].__name__}"
            )
        for name, checksum in content.get("checksums", {}).items():
            if not (_CHECKED.fullmatch(name) and isinstance(checksum, str | None)):
                raise DamagedFileError(
                    f"{self.environment}: checksums: expected recipe.yaml and runs/VARIANT/settings.yaml, "
                    f"a text each; was given {quote(name)}: {quote(checksum)}"
                )
        return content


def _checksum(file: Path) -> str | None:
    try:
        return _checksum_of(read(file).value)
    except InputError:
        return None


def _checksum_of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def open_run(path: Path) -> RunFolder:
    """The folder of a run that was made before.

    Raises:
        InputError: there is no run in ``path``.
    """
    folder = RunFolder(path)
    if not folder.recipe.is_file():
        what = "holds no recipe.yaml" if path.is_dir() else "there is no such folder"
        raise InputError(f"'{path}' is not a run folder: {what}")
    return folder


def new_run(recipe: Recipe, out: Path | None = None) -> RunFolder:
    """A new folder for ``recipe``: ``out``, or ``outputs/<recipe>/<date_time>``.

    Raises:
        InputError: ``out`` exists and is not empty; the text says what it holds and what to do.
    """
    if out is None:
        return RunFolder(_new_folder(OUTPUTS / recipe.name))
    if (out / "recipe.yaml").is_file():
        same = "this run" if _difference(recipe, RunFolder(out)) is None else "another run"
        hint = "add --resume to continue it, or " if same == "this run" else ""
        raise InputError(f"'{out}' holds {same} already: {hint}choose another --out")
    elif out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"'{out}' is not an empty folder and holds no run: choose another --out")
    with reaching(out):
        out.mkdir(parents=True, exist_ok=True)
    return RunFolder(out)


def _new_folder(parent: Path) -> Path:
    """A new folder named by date and time; two processes never get the same one."""
    stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H%M%S")
    with reaching(parent):
        parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            out = parent / (stamp if number == 1 else f"{stamp}-{number}")
            with contextlib.suppress(FileExistsError):
                out.mkdir()
                break
    return out


def run_to_resume(recipe: Recipe, out: Path | None = None) -> RunFolder:
    """The run to continue: the one in ``out``, or the newest of the recipe.

    Raises:
        InputError: there is none, or its settings are not those of ``recipe``, or were changed after
            it was begun: the figures of its finished jobs would stand beside those of another
            experiment. Or its record is damaged.
    """
    if out is None:
        parent = OUTPUTS / recipe.name
        out = newest_run(parent)
        if out is None:
            raise InputError(f"nothing to resume: no run of '{recipe.name}' in '{parent}'")
    folder = open_run(out)
    changed = folder.changed_files()
    difference = _difference(recipe, folder)
    if "recipe.yaml" in changed:
        if len(changed) > 1 and not _matches_checksums(recipe, folder):
            difference = f"{' and '.join(changed)} were changed"
        if difference:
            raise InputError(
                f"'{folder.recipe}' was changed after the run began, and the recipe given is of "
                f"another run ({difference}): restore the file, or choose another --out"
            )
    if difference:
        raise InputError(
            f"'{out}' holds another run ({difference}); to continue that run as it began: "
            f"ddnkit run {folder.recipe} --out {out} --resume"
        )
    return folder


def newest_run(parent: Path) -> Path | None:
    """The run below ``parent`` that was begun or continued last; None if there is none."""
    return max((file.parent for file in parent.glob("*/recipe.yaml")), key=_start_key, default=None)


def _start_key(run: Path) -> tuple[str, list[tuple[int, str]]]:
    """What runs are sorted by: when one was begun or last continued, then its name, by its numbers."""
    try:
        date = str(RunFolder(run).read_environment().get("date", ""))
        when = datetime.datetime.fromisoformat(date).astimezone(datetime.timezone.utc).isoformat()
    except (DamagedFileError, ValueError, OverflowError):
        when = ""
    parts = re.findall(r"[0-9]{1,18}|[^0-9]+", run.name)
    return when, [(int(part) if part.isdecimal() else -1, part) for part in parts]


def _matches_checksums(recipe: Recipe, folder: RunFolder) -> bool:
    """Whether these are the settings of a run, judged by its checksums alone."""
    recorded = folder.read_environment().get("checksums", {})
    origin = Origin("settings")
    return all(
        recorded.get(folder.settings(variant.name).relative_to(folder.path).as_posix())
        == _checksum_of(parse(variant.to_yaml(), origin).value)
        for variant in recipe.variants
    )


def discard(folder: RunFolder) -> None:
    """Remove a folder that this process made, if no job in it recorded a figure."""
    if not any(read_metrics(job.metrics)[1] for job in folder.jobs()):
        shutil.rmtree(folder.path)
        for parent in (OUTPUTS / folder.path.parent.name, OUTPUTS):
            # Only what stands in the default place was made for this run, and only if empty.
            if parent in folder.path.parents and not any(parent.iterdir()):
                parent.rmdir()


def _difference(recipe: Recipe, folder: RunFolder) -> str | None:
    """The first difference in variants or settings, in words; more seeds are no difference."""
    try:
        there = _settings_in(folder)
    except InputError as error:
        return f"its recipe cannot be loaded: {error}"
    here = {variant.name: variant.settings for variant in recipe.variants}
    if set(there) != set(here):
        return f"its variants are {', '.join(there)}; here they are {', '.join(here)}"
    for name, settings in here.items():
        other = _flat(there[name], "")
        for key, value in _flat(settings, "").items():
            if repr(value) != repr(other.get(key)):
                return f"its {key} is {other.get(key)}, here {value}"
    return None


def _settings_in(folder: RunFolder) -> dict[str, dict[str, Any]]:
    """The settings of each variant of a run: of its recipe, or if that was changed, as recorded.

    Raises:
        InputError: the recipe cannot be loaded.
    """
    loaded = load(folder.recipe)
    changed = folder.changed_files()
    recorded = [Path(name) for name in folder.read_environment().get("checksums", {})]
    variants = [name.parent.name for name in recorded if name.name == "settings.yaml"]
    kept = not any(name.endswith("settings.yaml") for name in changed)
    if "recipe.yaml" in changed and variants and kept:
        return {name: load(folder.settings(name)).variants[0].settings for name in variants}
    return {variant.name: variant.settings for variant in loaded.variants}


def _flat(settings: Any, prefix: str) -> dict[str, Any]:
    if not isinstance(settings, dict):
        return {prefix: settings}
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat.update(_flat(value, f"{prefix}.{key}" if prefix else key))
    return flat
