"""One run from its folder to its report: what ``ddnkit run`` does after validating the recipe."""

from __future__ import annotations

import json
from dataclasses import replace

from .. import registry
from ..errors import DamagedFileError, InputError
from ..recipe.load import load_seeds
from ..recipe.recipe import Recipe, Variant
from . import distributed
from .environment import describe_environment, resolve_device
from .execute import execute, threads_each, usable_cores
from .files import write_whole
from .folder import discard, new_run, run_to_resume
from .options import RunOptions
from .progress import display
from .queue import Outcome
from .report import rebuild
from .summary import Summary


class Session:
    """A run in three steps: open its folder, run its jobs, report. A run may be interrupted between them.

    Attributes:
        warnings: what a user should know before the jobs begin.

    Raises:
        InputError: the device is not there, or the folder is not fit for this run.
    """

    def __init__(self, recipe: Recipe, variants: list[Variant], options: RunOptions) -> None:
        self.warnings: list[str] = []
        if distributed.world() > 1 and options.devices > 1:
            raise InputError("--devices: torchrun has started a process for each device already")
        device = resolve_device(options.job.device, options.devices)
        options = replace(options, job=replace(options.job, device=device))
        self._options = options
        self._variants = variants
        self._seeds = list(recipe.seeds)
        if not options.job.smoke:
            _prepare(variants, options.job.download)
        find = run_to_resume if options.resume else new_run
        self.folder = find(recipe, options.out)
        environment = describe_environment(recipe.name, options)
        teams = self._teams()
        environment["jobs_side_by_side"] = teams
        environment["devices"] = max(options.devices, distributed.world())
        if teams * options.devices > 1:
            environment["threads"] = threads_each(teams * options.devices)
        with self.folder.hold(new=not options.resume):
            if options.resume:
                recipe, environment = self._join(recipe, environment)
            self._recipe = recipe
            self.folder.write_recipe(recipe)
            environment["checksums"] = self.folder.checksums()
            write_whole(self.folder.environment, json.dumps(environment, indent=2) + "\n")

    def run(self) -> Outcome:
        """Run the jobs that are not done.

        Raises:
            InputError: no job of a new run could begin, because what was given is wrong; the
                folder is removed again.
        """
        jobs = len(self._variants) * len(self._seeds)
        outcome = execute(
            self.folder,
            self._variants,
            self._seeds,
            options=self._options,
            display=display(jobs),
            teams=self._teams(),
        )
        if outcome.wrong_input and not (outcome.done or outcome.failures):
            if not self._options.resume:
                discard(self.folder)
            raise InputError("\n".join(outcome.wrong_input))
        return outcome

    def _teams(self) -> int:
        pending = sum(
            self.folder.job(variant.name, seed).seconds() is None
            for variant in self._variants
            for seed in self._seeds
        )
        if self._options.jobs is not None:
            return min(self._options.jobs, max(pending, 1))
        # A pipeline that was registered by hand exists in this process alone.
        shared = all(registry.is_installed(type(v.pipeline)) for v in self._variants)
        if self._options.job.device != "cpu" or not shared or distributed.world() > 1:
            return 1
        return max(1, min(usable_cores() // self._options.devices, pending))

    def report(self) -> tuple[Summary, list[str]]:
        """Write summary, figures and report; the summary and warnings."""
        return rebuild(self.folder, self._recipe)

    def _join(
        self, recipe: Recipe, environment: dict[str, object]
    ) -> tuple[Recipe, dict[str, object]]:
        """The recipe with the seeds of the sessions before, and the record of them."""
        unknown = self.folder.missing_environment()
        if unknown and self.folder.jobs():
            raise InputError(f"{unknown}: restore it, or choose another --out")
        before = self.folder.read_environment()
        smoke = bool(before.get("smoke"))
        if smoke != self._options.job.smoke:
            kind, add = ("a smoke run", "add") if smoke else ("a full run", "leave out")
            raise InputError(f"'{self.folder.path}' holds {kind}: to continue it, {add} --smoke")
        self.warnings = [
            f"{self.folder.path / name} {self.folder.fate(name)}; it is written anew, as this run has it"
            for name in self.folder.changed_files()
        ]
        for variant in self._variants:
            for seed in self._seeds:
                try:
                    self.folder.job(variant.name, seed).finished()
                except DamagedFileError as error:
                    self.warnings.append(f"{error}; the job is run again")
        seeds = tuple(dict.fromkeys([*load_seeds(self.folder.recipe), *recipe.seeds]))
        name = before.get("recipe", environment["recipe"])
        earlier = [*before.pop("earlier_sessions", []), before] if before else []
        return (
            replace(recipe, seeds=seeds),
            {**environment, "recipe": name, "earlier_sessions": earlier},
        )


def _prepare(variants: list[Variant], download: bool) -> None:
    """Have the pipelines of all variants look for what they need.

    Raises:
        InputError: something is missing for some of them; each message is given once.
    """
    wrong: dict[str, None] = {}
    for variant in variants:
        try:
            variant.pipeline.prepare(download=download)
        except InputError as error:
            wrong[str(error)] = None
    if wrong:
        raise InputError("\n".join(wrong))
