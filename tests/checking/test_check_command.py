"""`ddnkit check TARGET`: nodes by name and from files, exit status, JSON."""

import json

import pytest
from click.testing import CliRunner

import ddnkit
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


WELLS = """
import torch
import ddnkit


class Shallower(ddnkit.DeclarativeNode):
    def objective(self, x, y):
        return x * y**4 + 2 * x**2 * y**3 - 12 * y**2

    def solve(self, x):
        return (-3 * x**2 + (9 * x**4 + 96 * x).sqrt()) / (4 * x)

    def sample_inputs(self):
        return (0.5 + torch.rand(()),)
"""


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
        ("TwiceTheAdjoint", "the node's own adjoint is wrong"),
        # Each cause has its own test: test_defects.py.
        pytest.param("StopsEarly", "inexact solve", marks=pytest.mark.long),
        pytest.param("Infeasible", "infeasible", marks=pytest.mark.long),
    ],
)
def test_wrong_nodes_exit_1_and_are_named(file, name, diagnosis):
    result = run(f"{file}:{name}", "--examples", 3)
    assert result.exit_code == 1
    assert f"diagnosis: {diagnosis}" in result.output
    assert "x0 = " in result.output  # the smallest inputs that fail


def test_json_has_the_whole_report_and_its_snippet_runs(file, capsys):
    result = run(f"{file}:TwiceTheAdjoint", "--examples", 2, "--json")
    data = json.loads(result.stdout)
    assert {"rows", "diagnosis", "next", "notes", "verdict", "inputs", "snippet"} <= set(data)
    assert data["ok"] is False
    assert data["verdict"] == "invalid"
    exec(data["snippet"], {})
    assert "diagnosis: the node's own adjoint is wrong" in capsys.readouterr().out


def test_a_node_loaded_by_path_is_loaded_by_path_in_the_snippet(file, capsys):
    report = ddnkit.check(ddnkit.load_target(f"{file}:Infeasible"), examples=1)
    assert f"node = ddnkit.load_target('{file}:Infeasible')" in report.snippet
    exec(report.snippet, {})
    assert "diagnosis: infeasible" in capsys.readouterr().out


def test_a_registered_node_is_made_by_its_name():
    result = run("nearest_etf", "--examples", 1, "--backward", "unrolled")
    assert result.exit_code == 2, result.output
    result = run("nearest_etf", "--examples", 1, "--backward", "auto", "--json")
    assert json.loads(result.stdout)["forms"] == ["auto"]


def test_a_local_minimum_is_accepted_where_it_is_said_to_be_one(tmp_path):
    path = tmp_path / "wells.py"
    path.write_text(WELLS)
    assert run(path, "--examples", 1).exit_code == 1
    assert run(path, "--examples", 1, "--local").exit_code == 0


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nearst_etf", "'nearest_etf'"),
        ("no/such/file.py:Node", "no/such/file.py"),
        ("{file}:Goo", "'Good'"),
        ("{file}:NoNode", "ddnkit.DeclarativeNode"),
        ("{file}", ":Infeasible"),
        ("{file}:NeedsArgument", "NeedsArgument"),
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
    assert "ModuleNotFoundError" in result.output


def test_a_file_with_one_node_needs_no_class_name(tmp_path):
    path = tmp_path / "one.py"
    # An alias of a type is an instance of type in Python 3.10, and no node.
    path.write_text(FILE[: FILE.index("class TwiceTheAdjoint")] + "\nVector = list[float]\n")
    assert run(path, "--examples", 2).exit_code == 0


@pytest.mark.parametrize(
    "raised", ["raise KeyboardInterrupt", "import sys; sys.exit(0)", "raise GeneratorExit"]
)
def test_whatever_a_file_raises_on_import_is_wrong_input(tmp_path, raised):
    file = tmp_path / "raises.py"
    file.write_text(f"print('spoken')\n{raised}\n")
    result = CliRunner().invoke(main, ["check", f"{file}:Node"])
    assert result.exit_code == 2
    assert str(file) in result.stderr
    assert "spoken" not in result.stdout


ENDING = """
import argparse
import sys
import torch
import ddnkit


def end():
    {raised}  # the place


class Ending(ddnkit.DeclarativeNode):
    def objective(self, x, y):
        {objective}
        return ((y - x) ** 2).sum()

    def equality_constraints(self, x, y):
        {constraints}
        return y.sum() - 1

    def solve(self, x):
        {solve}
        return x + (1 - x.sum()) / x.numel()

    def adjoint(self, x, y, v):
        {adjoint}
        return (v - v.mean(),)

    def sample_inputs(self):
        {sample_inputs}
        return (torch.randn(4),)
"""
PARTS = ("objective", "constraints", "solve", "adjoint", "sample_inputs")


#: What is raised, and the parts in which it is in `make test`: a failing example is made small each time.
RAISED = {
    "sys.exit(3)": ("sample_inputs",),
    "argparse.ArgumentParser().error('x')": ("sample_inputs",),
    "raise KeyboardInterrupt": PARTS,
    "raise GeneratorExit": PARTS,
    "raise ValueError('x')": ("constraints",),
}


@pytest.mark.parametrize(
    ("raised", "part"),
    [
        pytest.param(raised, part, marks=[] if part in short else [pytest.mark.long])
        for raised, short in RAISED.items()
        for part in PARTS
    ],
)
def test_what_ends_the_program_is_the_nodes_own(tmp_path, raised, part):
    file = tmp_path / "ends.py"
    does = dict.fromkeys(PARTS, "pass") | {part: "end()"}
    file.write_text(ENDING.format(raised=raised, **does))
    result = CliRunner().invoke(main, ["check", f"{file}:Ending", "--examples", "2"])
    # What the node's functions raise is a finding; what is no error or comes before them, wrong input.
    told = part == "sample_inputs" or "Interrupt" in raised or "GeneratorExit" in raised
    assert result.exit_code == (2 if told else 1), result.output
    text = result.stderr if told else result.stdout
    assert "unexpected" not in result.output and "ends.py" in text
    line = file.read_text().splitlines().index(f"    {raised}  # the place") + 1
    if told or "ValueError" not in raised:
        assert f"{file}:{line}" in text
