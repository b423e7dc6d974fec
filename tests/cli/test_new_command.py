"""`ddnkit new node NAME`: what it writes runs, and passes its check."""

import subprocess
import sys

import pytest
from click.testing import CliRunner

from ddnkit.cli import main


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_a_new_node_runs_and_passes_its_check(tmp_path):
    result = run("new", "node", "my_node", "--dir", tmp_path / "nodes")
    file = tmp_path / "nodes" / "my_node.py"
    assert result.exit_code == 0
    assert f"ddnkit check {file}:MyNode" in result.output
    checked = run("check", f"{file}:MyNode", "--examples", 1)
    assert checked.exit_code == 0, checked.output
    done = subprocess.run([sys.executable, file], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("passed")  # the certificate


@pytest.mark.parametrize(
    ("name", "file", "class_name"),
    [("Projection", "projection.py", "Projection"), ("SVMNode", "svm_node.py", "SVMNode")],
)
def test_names(tmp_path, name, file, class_name):
    assert run("new", "node", name, "--dir", tmp_path).exit_code == 0
    assert f"class {class_name}(" in (tmp_path / file).read_text(encoding="utf-8")


def test_nothing_is_overwritten_and_names_are_checked(tmp_path):
    run("new", "node", "mine", "--dir", tmp_path)
    again = run("new", "node", "mine", "--dir", tmp_path)
    assert again.exit_code == 2
    assert "mine.py" in again.output
    wrong = run("new", "node", "42", "--dir", tmp_path)
    assert wrong.exit_code == 2
    assert "42" in wrong.output


@pytest.mark.parametrize("name", ["torch", "Random", "ddnkit", "numpy"])
def test_a_file_that_hides_a_module_is_not_written(tmp_path, name):
    refused = run("new", "node", name, "--dir", tmp_path)
    assert refused.exit_code == 2
    assert f"{name.lower()}.py" in refused.output
    assert not list(tmp_path.iterdir())
