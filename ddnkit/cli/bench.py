"""``ddnkit bench``: time and memory of a node's backward forms, as ratios in one run."""

from __future__ import annotations

import datetime
import json
import platform
from dataclasses import asdict
from typing import Any

import click

from ..errors import InputError, nearest_choice


class _Size(click.ParamType):
    name = "SIZE"

    def convert(self, value: Any, param: Any, context: Any) -> tuple[int, ...]:
        try:
            return tuple(int(n) for n in str(value).split(","))
        except ValueError:
            self.fail(f"expected numbers such as 1024,100, was given {value!r}", param, context)


@click.command()
@click.argument("name", default="nearest_etf")
@click.option("--size", "sizes", type=_Size(), multiple=True, help="Size of y, e.g. 1024,100.")
@click.option(
    "--form", "forms", multiple=True, help="Backward form; repeatable. Default: all but unrolled."
)
@click.option("--dtype", type=click.Choice(["float32", "float64"]), default="float32")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--repeats", default=3, show_default=True, help="The median of so many is reported.")
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def bench(
    name: str,
    sizes: tuple[tuple[int, ...], ...],
    forms: tuple[str, ...],
    dtype: str,
    device: str,
    repeats: int,
    seed: int,
    as_json: bool,
) -> None:
    """Time a node's forward and backward in each form, each in a process of its own.

    NAME is a registered node with `bench_inputs`, or a bench such as train_step (see: ddnkit list
    benches), which takes --device, --repeats and --seed alone. A dense form that does not fit in
    memory is extrapolated from a half and a quarter of the size.
    """
    import torch

    from .. import registry
    from ..backward.form import applicable_forms
    from ..bench.compare import Entry, compare, table

    names = [*registry.names("nodes"), *registry.names("benches")]
    if name not in names:
        raise InputError(f"no node or bench '{name}'.{nearest_choice(name, names)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this machine has no CUDA device that torch can use")
    if name not in registry.names("nodes"):
        if sizes or forms:
            raise InputError(f"--size and --form are for nodes; '{name}' is a bench")
        _run_bench(name, device, repeats, seed, as_json)
        return
    node = registry.get("nodes", name)()
    if not hasattr(node, "bench_inputs"):
        raise InputError(f"node '{name}' has no `bench_inputs(self, *size)` to draw inputs from")
    known = applicable_forms(node)
    for form in forms:
        if form not in known:
            raise InputError(f"no form '{form}' for {name}.{nearest_choice(form, known)}")
    entries = compare(
        name,
        list(sizes) or list(node.bench_sizes),
        list(forms) or [form for form in known if form != "unrolled"],
        progress=lambda text: click.echo(f"measuring {text}", err=True),
        dtype=dtype,
        device=device,
        repeats=repeats,
        seed=seed,
    )
    header = _header(f"{name}, {dtype}", device, repeats, seed)
    if as_json:
        data = [asdict(entry) if isinstance(entry, Entry) else entry for entry in entries]
        click.echo(json.dumps({"header": header, "entries": data}, indent=2))
    else:
        click.echo(header)
        click.echo(table(entries))


def _run_bench(name: str, device: str, repeats: int, seed: int, as_json: bool) -> None:
    from .. import registry
    from ..run.table import aligned

    tables = registry.get("benches", name)().run(
        device=device,
        repeats=repeats,
        seed=seed,
        progress=lambda text: click.echo(f"measuring {text}", err=True),
    )
    header = _header(name, device, repeats, seed)
    if as_json:
        click.echo(json.dumps({"header": header, "tables": [asdict(t) for t in tables]}, indent=2))
        return
    click.echo(header)
    for table in tables:
        click.echo(f"\n{table.title}\n{aligned(list(zip(*table.rows, strict=True)))}")
        if table.note:
            click.echo(table.note)


def _header(what: str, device: str, repeats: int, seed: int) -> str:
    """What was measured, on what, with which versions."""
    import torch

    from .. import __version__

    where = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or "CPU"
    return (
        f"{what}, {where}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"ddnkit {__version__}, {datetime.date.today()}, seed {seed}, median of {repeats}"
    )
