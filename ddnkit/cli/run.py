"""``ddnkit run``: a recipe, from its text to its report."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..errors import InputError

if TYPE_CHECKING:
    from ..recipe.recipe import Recipe, Variant
    from ..run.options import RunOptions


@click.command()
@click.argument("recipe")
@click.option(
    "-s",
    "--set",
    "overrides",
    metavar="KEY=VALUE",
    multiple=True,
    help="Set a key of the recipe, for example -s head.delta=1e-3. Repeatable.",
)
@click.option("--seeds", metavar="N|0,1,2", help="N seeds from 0 on, or a list of them.")
@click.option("--only", metavar="VARIANT", multiple=True, help="Run only this variant. Repeatable.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="The run folder.  [default: outputs/RECIPE/DATE_TIME]",
)
@click.option("--resume", is_flag=True, help="Continue the run in --out, or the newest of RECIPE.")
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    help="Where to run.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1, 10_000),
    help="Jobs at a time, each in its own process.  [default: one per core on the CPU, else 1]",
)
@click.option(
    "--devices",
    type=click.IntRange(1, 1024),
    default=1,
    help="Devices per job, with one process for each. On several machines, start ddnkit with torchrun.",
)
@click.option("--download", is_flag=True, help="Download missing data to your data folder.")
@click.option(
    "--dry-run", is_flag=True, help="Show the variants, seeds and settings, and run nothing."
)
@click.option(
    "--smoke", is_flag=True, help="Run only a few steps, on synthetic data of the same shapes."
)
@click.pass_context
def run(
    context: click.Context,
    recipe: str,
    overrides: tuple[str, ...],
    seeds: str | None,
    only: tuple[str, ...],
    out: Path | None,
    resume: bool,
    device: str,
    jobs: int | None,
    devices: int,
    download: bool,
    dry_run: bool,
    smoke: bool,
) -> None:
    """Run RECIPE, a YAML file or the name of a shipped recipe (see: ddnkit list).

    Every variant runs with every seed. The figures of each job are written to
    runs/VARIANT/seed-N/metrics.csv in the run folder, and their medians over the seeds to summary.csv
    and report.html. The path of the report is printed last.
    """
    from ..recipe.load import load
    from ..run import distributed
    from ..run.options import JobOptions, RunOptions

    if distributed.is_follower():
        context.exit(distributed.follow())
    loaded = load(recipe, overrides, seeds=_seeds(seeds, smoke))
    for line in loaded.warnings:
        click.echo(f"warning: {line}", err=True)
    variants = loaded.choose(only)
    if dry_run:
        _show(loaded, variants)
        return
    job = JobOptions(device, smoke, download)
    options = RunOptions(job, out, resume, jobs, devices, _command(context))
    context.exit(_run(context, loaded, variants, options))


def _command(context: click.Context, **changed: Any) -> str:
    """The command line that was typed, as click understood it, with the parameters that are ``changed``."""
    options: list[str] = []
    arguments: list[str] = []
    for parameter in context.command.params:
        name = str(parameter.name)
        typed = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if not (typed or name in changed):
            continue
        given = changed.get(name, context.params[name])
        if isinstance(parameter, click.Argument):
            arguments.append(str(given))
        elif given is True:
            options.append(parameter.opts[0])
        else:
            for value in given if parameter.multiple else (given,):
                options += [parameter.opts[0], str(value)]
    if any(argument.startswith("-") for argument in arguments):
        arguments, options = [*options, "--", *arguments], []
    return shlex.join(["ddnkit", str(context.info_name), *arguments, *options])


def _run(
    context: click.Context, recipe: Recipe, variants: list[Variant], options: RunOptions
) -> int:
    from ..run.session import Session
    from ..run.table import comparison, race

    session = Session(recipe, variants, options)
    path = session.folder.path
    for line in session.warnings:
        click.echo(f"warning: {line}", err=True)
    try:
        outcome = session.run()
    except KeyboardInterrupt:
        again = _command(context, out=path, resume=True)
        click.echo(f"interrupted; to continue: {again}", err=True)
        return 130
    summary, warnings = session.report()
    for line in warnings:
        click.echo(f"warning: {line}", err=True)
    if summary.rows:
        click.echo()
        click.echo(comparison([(path.name, summary)]))
        click.echo()
    if not options.job.smoke and (sentence := race(summary)):
        click.echo(sentence)
    click.echo(f"report: {session.folder.page}")
    for line in [*outcome.wrong_input, *outcome.failures, *summary.damaged]:
        click.echo(f"error: {line}", err=True)
    damaged = InputError.exit_status if summary.damaged else 0
    return outcome.exit_status or damaged


def _seeds(given: str | None, smoke: bool) -> str | None:
    """A smoke run shows that everything works: one seed does, unless others are asked for."""
    return "1" if smoke and given is None else given


def _show(recipe: Recipe, variants: list[Variant]) -> None:
    click.echo(f"recipe: {recipe.path}")
    click.echo(f"seeds: {', '.join(map(str, recipe.seeds))}")
    click.echo(f"jobs: {len(variants) * len(recipe.seeds)}")
    for variant in variants:
        click.echo(f"\n# variant {variant.name}")
        click.echo(variant.to_yaml().rstrip())
