"""``ddnkit new``: a file to start from, that runs and passes its check as it is."""

from __future__ import annotations

import importlib.util
import keyword
import re
import sys
from pathlib import Path

import click

from ..errors import InputError, plain, reaching

_NODE = '''\
"""A declarative node. Check it with: ddnkit check {file}"""

import torch

import ddnkit


class {name}(ddnkit.DeclarativeNode):
    """min Σ wᵢ(yᵢ − xᵢ)² subject to Σ yᵢ = 1: replace it by your problem."""

    # Dimensions of each input of ONE problem; leading dimensions beyond them are batch.
    input_dims = (1, 1)

    def objective(self, x, w, y):
        return (w * (y - x) ** 2).sum()

    def equality_constraints(self, x, w, y):  # leave out if there are none
        return y.sum() - 1

    def initial_point(self, x, w):  # or write solve(self, x, w), which returns the solution
        return x

    def sample_inputs(self):  # what `ddnkit check` draws from
        return torch.randn(5), torch.rand(5) + 0.1


if __name__ == "__main__":
    layer = ddnkit.DeclarativeLayer({name}())
    x, w = torch.randn(8, 5, requires_grad=True), torch.rand(8, 5) + 0.1
    y = layer(x, w)
    y.square().sum().backward()
    print(layer.certificate)
'''


@click.group()
def new() -> None:
    """Write a file to start from."""


@new.command()
@click.argument("name")
@click.option(
    "--dir", "folder", type=click.Path(path_type=Path, file_okay=False), default=Path(),
    help="The folder to write to.  [default: the current one]",
)  # fmt: skip
def node(name: str, folder: Path) -> None:
    """Write a node of this NAME: a class in a file, ready to check and to change."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]{0,99}", name):
        raise InputError(
            f"'{plain(name, 60)}' cannot be made a class name; expected at most 100 letters, digits and _ "
            "such as my_node or MyNode"
        )
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+", name)
    class_name = "".join(word[:1].upper() + word[1:] for word in words)
    if not class_name.isidentifier() or keyword.iskeyword(class_name):
        raise InputError(
            f"'{name}' cannot be made a class name; expected something like my_node or MyNode"
        )
    module = "_".join(words).lower()
    if keyword.iskeyword(module):
        raise InputError(f"'{module}' is a keyword of Python; choose another name")
    file = folder / f"{module}.py"
    if _is_taken(module, folder):
        raise InputError(
            f"a file {file.name} would stand in the way of Python's module '{module}' in every program "
            "that runs beside it; choose another name"
        )
    with reaching(folder, "--dir"):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with reaching(file), file.open("x", encoding="utf-8") as opened:
            opened.write(_NODE.format(name=class_name, file=file))
    except InputError as error:
        if isinstance(error.__cause__, FileExistsError):
            what = f"{file} is there already; choose another name, or --dir"
            raise InputError(what) from error
        raise
    click.echo(f"wrote {file}; now: ddnkit check {file}:{class_name}")


def _is_taken(module: str, folder: Path) -> bool:
    """Whether ``import module`` finds another than the file in ``folder``."""
    if module in sys.stdlib_module_names:
        return True
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:  # nothing, or a mere folder
        return False
    return Path(spec.origin).resolve().parent != folder.resolve()
