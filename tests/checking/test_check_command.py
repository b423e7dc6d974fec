"""`ddnkit check TARGET`: nodes by name and from files, exit status, JSON."""

import json

import pytest
from click.testing import CliRunner

from ddnkit.cli import main

FILE = '''
import torch
import ddnkit


class Good(ddnkit.DeclarativeNode):
    """min ||y - x||^2 with sum(y) = 1."""

    def objective(self, x, y):
        return ((y - x) ** 2).sum()

    def equality_constraints(self, x, y):
        return y.sum() - 1

    def solve(self, x):
        return x + (1 - x.sum()) / x.numel()


class TwiceTheAdjoint(Good):
    def adjoint(self, x, y, v):
        return (2 * (v - v.mean()),)


class StopsEarly(ddnkit.DeclarativeNode):
    def objective(self, x, y):
        return ((y - x) ** 4).sum() + (y**2).sum()

    def solve(self, x):
        y = torch.zeros_like(x)
        for _ in range(5):
            y = y - 0.05 * (4 * (y - x) ** 3 + 2 * y)
        return y


class Infeasible(Good):
    def solve(self, x):
        return super().solve(x) + 0.01


class NeedsArgument(Good):
    def __init__(self, size):
        self.size = size


class NoNode:
    pass
'''


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "nodes.py"
    path.write_text(FILE)
    return path


def run(*arguments):
    return CliRunner().invoke(main, ["check", *map(str, arguments)])


def test_the_nearest_etf_passes():
    result = run("nearest_etf", "--examples", 3)
    assert result.exit_code == 0, result.output
    assert "closed_form: against dense" in result.output


def test_a_node_in_a_file(file):
    result = run(f"{file}:Good", "--examples", 3, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["ok"] is True


@pytest.mark.parametrize(
    ("name", "diagnosis"),
    [
        ("TwiceTheAdjoint", "own adjoint is wrong: it is off by a factor of 2"),
        ("StopsEarly", "stops"),
        ("Infeasible", "infeasible"),
    ],
)
def test_wrong_nodes_exit_1_and_are_named(file, name, diagnosis):
    result = run(f"{file}:{name}", "--examples", 3)
    assert result.exit_code == 1
    assert diagnosis in result.output
    assert "smallest failing inputs" in result.output


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nearst_etf", "Did you mean 'nearest_etf'?"),
        ("no/such/file.py:Node", "no file no/such/file.py"),
        ("{file}:Goo", "Did you mean 'Good'?"),
        ("{file}:NoNode", "is no ddnkit.DeclarativeNode"),
        ("{file}", "name one node as"),
        ("{file}:NeedsArgument", "without arguments"),
    ],
)
def test_wrong_targets_exit_2(file, target, message):
    result = run(target.format(file=file))
    assert result.exit_code == 2, result.output
    assert message in result.output.replace("\n", " ")
    assert "Traceback" not in result.output


def test_files_that_do_not_import(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("import no_such_module_here\n")
    result = run(f"{path}:Node")
    assert result.exit_code == 2
    assert "failed to import: ModuleNotFoundError" in result.output


def test_a_file_with_one_node_needs_no_class_name(tmp_path):
    path = tmp_path / "one.py"
    path.write_text(FILE[: FILE.index("class TwiceTheAdjoint")])
    assert run(path, "--examples", 2).exit_code == 0
