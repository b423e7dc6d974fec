"""``ddnkit bench``: ways to do the same work, side by side in one run."""

from __future__ import annotations

import datetime
import functools
import json
import math
import platform
from pathlib import Path
from typing import Any

import click

from ..errors import InputError, PluginError, reaching
from ..importing import call_apart


class _Sizes(click.ParamType):
    name = "SIZE,..."

    def convert(self, value: Any, param: Any, context: Any) -> tuple[tuple[int, ...], ...]:
        try:
            return tuple(
                tuple(int(n) for n in size.replace("×", "x").split("x"))
                for size in str(value).split(",")
            )
        except ValueError:
            self.fail(f"expected sizes such as 64x10,1024x100, not {value!r}", param, context)


class _Seconds(click.FloatRange):
    def convert(self, value: Any, param: Any, context: Any) -> Any:
        seconds = super().convert(value, param, context)
        if math.isnan(seconds):  # it is within any range
            self.fail(f"{value!r} is not a number", param, context)
        return seconds


@click.command()
@click.argument("name", required=False)
@click.option(
    "--sizes", type=_Sizes(), multiple=True, help="Sizes to measure, for example 64x10,1024x100."
)
@click.option(
    "--only",
    multiple=True,
    metavar="NAME",
    help="Measure only this competitor or form. Repeatable.",
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float64"]),
    help="Precision of the inputs.  [default: that of the bench]",
)
@click.option(
    "--repeats",
    type=click.IntRange(1, 10_000),
    default=5,
    help="How many rounds to measure; medians are shown.",
)
@click.option(
    "--budget",
    type=_Seconds(0, 1e6),
    default=60.0,
    metavar="SECONDS",
    help="Time for each competitor at each size; one that is slower gets fewer rounds.",
)
@click.option(
    "--memory/--no-memory",
    default=True,
    help="Measure peak memory too, each in a process of its own.",
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0)
@click.option(
    "--json",
    "json_file",
    metavar="OUT",
    help="Write the figures to this file as JSON, or print them with -.",
)
@click.option(
    "--figure",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    metavar="OUT",
    help="Draw the figures into this file, if the bench can be drawn.",
)
def bench(
    name: str | None,
    sizes: tuple[tuple[tuple[int, ...], ...], ...],
    only: tuple[str, ...],
    device: str,
    dtype: str | None,
    repeats: int,
    budget: float,
    memory: bool,
    seed: int,
    json_file: str | None,
    figure: Path | None,
) -> None:
    """Compare several ways to do the same work, which take turns on the same inputs in one run.

    NAME is a bench, "all" of them, or a node with `bench_inputs`, whose backward forms are compared.
    Without NAME the benches are listed. Only competitors with matching results are timed. Those that
    are not installed are named and left out; to install them: pip install 'ddnkit[bench]'.
    """
    from .. import registry

    if name is None:
        _list(registry.names("benches"))
        return
    import torch

    from ..bench.contract import Request
    from ..bench.forms import resolve

    names = list(registry.working("benches")) if name == "all" else [name]
    benches = [resolve(each) for each in names]
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this machine has no CUDA device that torch can use")
    if json_file is not None and json_file != "-":
        _check_writable(Path(json_file), "--json")
    request = Request(
        device=device,
        dtype=dtype,
        sizes=tuple(size for group in sizes for size in group),
        only=only,
        repeats=repeats,
        budget=budget,
        memory=memory,
        seed=seed,
        progress=lambda text: click.echo(f"measuring {text}", err=True),
    )
    if figure is not None and (len(benches) > 1 or not benches[0].has_figure):
        raise InputError(f"--figure: the bench {name} has no figure")
    if figure is not None:
        _check_figure(figure)
    plain = []
    for each in benches:
        result = call_apart(functools.partial(each.run, request), f"bench {each.name}")
        header = _header(each.name, request)
        tables = [vars(table) for table in result.tables]
        plain.append({"header": header, "tables": tables, "measured": result.measured})
        # What is done is kept, whatever becomes of the benches that follow.
        if json_file is not None and json_file != "-":
            with reaching(json_file, "--json"):
                Path(json_file).write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
        if json_file != "-":
            _print(header, result.tables)
        if figure is not None and result.figure is not None:
            with reaching(figure, "--figure"):
                result.figure(figure)
    if json_file == "-":
        click.echo(json.dumps(plain, indent=1))


def _check_figure(file: Path) -> None:
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = FigureCanvasBase.get_supported_filetypes()
    if file.suffix[1:].lower() not in kinds:
        raise InputError(
            f"--figure {file}: the name must end in one of .{', .'.join(sorted(kinds))}"
        )
    _check_writable(file, "--figure")


def _check_writable(file: Path, option: str) -> None:
    """See now, not after minutes of measuring, that a file can be written; it stays as it is."""
    with reaching(file, option):
        if not file.absolute().parent.is_dir():
            raise InputError(f"{option} {file}: there is no such folder")
        there = file.exists()
        file.open("a").close()
        if not there:
            file.unlink()


def _print(header: str, tables: Any) -> None:
    from ..run.table import align

    click.echo(header)
    for table in tables:
        click.echo(f"\n{table.title}\n{align(list(zip(*table.rows, strict=True)))}")
        if table.note:
            click.echo(table.note)


def _list(names: list[str]) -> None:
    from .. import registry

    click.echo("Benches, for ddnkit bench NAME:")
    for name in names:
        try:
            about = registry.own_text(registry.get("benches", name)).partition("\n")[0]
        except PluginError as error:
            about = f"ignored: {error}"
        click.echo(f"  {name:<18}{about}")


def _header(name: str, request: Any) -> str:
    """What was measured, on what, with which versions."""
    import torch

    from .. import __version__

    cuda = request.device == "cuda"
    where = torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine()
    kind = f", {request.dtype}" if request.dtype else ""
    return (
        f"{name}{kind}, {where}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"ddnkit {__version__}, {datetime.date.today()}, seed {request.seed}, "
        f"medians of up to {request.repeats} rounds"
    )
