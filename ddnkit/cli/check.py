"""``ddnkit check``: is a node's gradient right, is a manifold what it says, and if not, why."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from ..errors import InputError

if TYPE_CHECKING:
    from ..checking.manifold_report import ManifoldReport
    from ..checking.report import CheckReport
    from ..manifold import Manifold
    from ..node import DeclarativeNode


#: Inputs of a node, and draws of nine points of a manifold.
_EXAMPLES, _DRAWS = 20, 2


@click.command()
@click.argument("target")
@click.option(
    "--examples",
    type=click.IntRange(1, 100_000),
    default=None,
    help="How many inputs to draw (20), or points of a manifold, nine each time (2).",
)
@click.option("--backward", default=None, help="Check this backward form only.")
@click.option("--local", is_flag=True, help="Accept solutions that are only local minima.")
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    help="Of a manifold: the shape of a point, 5,3; of a product once for each part.",
)
@click.option("--seed", type=int, default=None, help="Of a manifold: of the points that are drawn.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.pass_context
def check(
    context: click.Context,
    target: str,
    examples: int | None,
    backward: str | None,
    local: bool,
    shapes: tuple[str, ...],
    seed: int | None,
    as_json: bool,
) -> None:
    """Check a node, by its registered name or as path/to/file.py:ClassName, or a manifold.

    Of a node: measures whether its solutions are feasible and stationary, and compares the gradient of
    every backward form with finite differences of re-solved problems, with forward mode and with the
    other forms, on inputs that hypothesis draws. For each failure the report says what the cause is and
    what to do, and prints a script that reproduces it.

    Of a manifold (manifold:NAME, path/to/file.py:ClassName): holds each of its methods against what it
    must be, by automatic differentiation, and names the wrong one.

    Both may also stand in a module, as package.module:NAME. The exit status is 1 if anything fails.
    """
    from ..checking.target import load
    from ..importing import call_apart
    from ..manifold import Manifold

    found = load(target)

    def work() -> CheckReport | ManifoldReport:
        if isinstance(found, Manifold):
            _refuse("a node", {"--backward": backward is not None, "--local": local})
            return _check_manifold(found, target, shapes, examples or _DRAWS, seed or 0)
        _refuse("a manifold", {"--shape": bool(shapes), "--seed": seed is not None})
        return _check_node(found, target, examples or _EXAMPLES, backward, local)

    report = call_apart(work, target)
    click.echo(json.dumps(report.to_dict(), indent=2) if as_json else str(report))
    context.exit(0 if report.ok else 1)


def _check_node(
    node: DeclarativeNode, target: str, examples: int, backward: str | None, local: bool
) -> CheckReport:
    from ..checking.run import check as run_check

    terminal = sys.stderr.isatty()

    def progress(done: int) -> None:
        if terminal:
            click.echo(f"\r{done}/{examples} cases", nl=False, err=True)

    try:
        return run_check(
            node,
            examples=examples,
            backward=backward,
            local=local,
            name=target,
            target=target,
            progress=progress,
        )
    finally:
        if terminal:
            click.echo("\r\x1b[K", nl=False, err=True)


def _check_manifold(
    manifold: Manifold, target: str, shapes: tuple[str, ...], examples: int, seed: int
) -> ManifoldReport:
    from ..checking.manifolds import check_manifold

    given = [_shape(text) for text in shapes]
    shape = None if not given else given[0] if len(given) == 1 else given
    return check_manifold(manifold, shape, examples=examples, seed=seed, name=target)


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.strip("()").split(",") if part.strip())
    except ValueError:
        shape = (0,)
    if any(size < 1 for size in shape):
        raise InputError(f"--shape {text}: expected whole numbers from 1 on, such as 5,3")
    return shape


def _refuse(kind: str, given: dict[str, bool]) -> None:
    for option, is_given in given.items():
        if is_given:
            raise InputError(f"{option} is an option of a check of {kind}")
