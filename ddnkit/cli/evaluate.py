"""``ddnkit evaluate``: the models of a run, measured again."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run_dir", metavar="RUN_DIR", type=click.Path(path_type=Path))
@click.option(
    "--only", metavar="VARIANT", multiple=True, help="Measure only this variant. Repeatable."
)
@click.option("--seeds", metavar="N|0,1,2", help="N seeds from 0 on, or a list of them.")
@click.option(
    "-s",
    "--set",
    "overrides",
    metavar="KEY=VALUE",
    multiple=True,
    help="Set a key of the recipe, for example -s data.root=DIR. Repeatable.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    help="Where to measure.",
)
@click.option("--download", is_flag=True, help="Download missing data to your data folder.")
def evaluate(
    run_dir: Path,
    only: tuple[str, ...],
    seeds: str | None,
    overrides: tuple[str, ...],
    device: str,
    download: bool,
) -> None:
    """Measure the models of the finished jobs in RUN_DIR again, and compare with the recorded figures.

    The exit status is 1 if a figure differs from the recorded one by more than a thousandth of it
    and by more than 1e-5, which rounding does not explain.
    """
    from ..run.environment import resolve_device
    from ..run.folder import open_run
    from ..run.options import JobOptions
    from ..run.reevaluate import finished_jobs, reevaluate, side_by_side

    folder = open_run(run_dir)
    if unknown := folder.missing_environment():
        click.echo(f"warning: {unknown}", err=True)
    if "recipe.yaml" in folder.changed_files():
        click.echo(
            f"warning: {folder.recipe} was changed after the run; each variant is measured with the "
            "settings that it was run with",
            err=True,
        )
    jobs, left_out = finished_jobs(folder, only, seeds)
    for line in left_out:
        click.echo(f"warning: {line}", err=True)
    results = []
    options = JobOptions(resolve_device(device), download=download)
    for result in reevaluate(folder, jobs, overrides, options=options):
        results.append(result)
        click.echo(
            f"[{len(results)}/{len(jobs)}] {result.job.variant} seed {result.job.seed}", err=True
        )
    click.echo(side_by_side(results))
    differing = [(result, name) for result in results for name in result.differences()]
    for result, name in differing:
        now = result.measured.get(name)
        click.echo(
            f"error: {result.job.variant} seed {result.job.seed}: {name} was recorded as "
            f"{result.recorded[name]:.9g}, now it is {'not there' if now is None else f'{now:.9g}'}",
            err=True,
        )
    click.get_current_context().exit(1 if differing else 0)
