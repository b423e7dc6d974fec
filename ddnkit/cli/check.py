"""``ddnkit check``: is a node's gradient right, and if not, why."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ..checking.report import CheckReport


@click.command()
@click.argument("target")
@click.option(
    "--examples",
    type=click.IntRange(1, 100_000),
    default=20,
    help="How many inputs to draw.",
)
@click.option("--backward", default=None, help="Check this backward form only.")
@click.option("--local", is_flag=True, help="Accept solutions that are only local minima.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.pass_context
def check(
    context: click.Context,
    target: str,
    examples: int,
    backward: str | None,
    local: bool,
    as_json: bool,
) -> None:
    """Check a node: a registered name, or path/to/file.py:ClassName.

    Measures whether its solutions are feasible and stationary, and compares the gradient of every
    backward form with finite differences of re-solved problems, with forward mode and with the other
    forms, on inputs that hypothesis draws. For each failure the report says what the cause is and
    what to do, and prints a script that reproduces it. The exit status is 1 if anything fails.
    """
    from ..checking.run import check as run_check
    from ..checking.target import load_target
    from ..importing import call_apart

    node = load_target(target)
    terminal = sys.stderr.isatty()

    def progress(done: int) -> None:
        if terminal:
            click.echo(f"\r{done}/{examples} cases", nl=False, err=True)

    def work() -> CheckReport:
        return run_check(
            node,
            examples=examples,
            backward=backward,
            local=local,
            name=target,
            target=target,
            progress=progress,
        )

    report = call_apart(work, target)
    if terminal:
        click.echo("\r\x1b[K", nl=False, err=True)
    click.echo(json.dumps(report.to_dict(), indent=2) if as_json else str(report))
    context.exit(0 if report.ok else 1)
