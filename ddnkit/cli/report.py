"""``ddnkit report``: summary and report of runs, built again from the jobs' records."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument(
    "run_dirs", metavar="RUN_DIR...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
def report(run_dirs: tuple[Path, ...]) -> None:
    """Rebuild summary.csv, the figures, report.md and report.html of each RUN_DIR, and compare variants.

    An unfinished run can be reported too. If a file of a run is damaged, it is named and left out, and
    the exit status is 2.
    """
    from ..errors import InputError
    from ..run.folder import open_run
    from ..run.report import rebuild
    from ..run.table import comparison

    folders = [open_run(path) for path in run_dirs]
    summaries = []
    for folder in folders:
        summary, warnings = rebuild(folder)
        summaries.append((str(folder.path), summary))
        for line in warnings:
            click.echo(f"warning: {line}", err=True)
    if any(summary.rows for _, summary in summaries):
        click.echo(comparison(summaries))
        click.echo()
    else:
        click.echo("no evaluation was recorded")
    for folder in folders:
        click.echo(f"report: {folder.page}")
    damaged = [line for _, summary in summaries for line in summary.damaged]
    for line in damaged:
        click.echo(f"error: {line}", err=True)
    click.get_current_context().exit(InputError.exit_status if damaged else 0)
