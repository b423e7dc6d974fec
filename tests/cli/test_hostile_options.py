"""Every option of every command, given what nobody means: it works, or is refused as wrong input.

The options are those of click's own tree of commands, so a new one takes part by itself.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import click
import pytest
from click.testing import CliRunner, Result

from ddnkit import InputError, Job, Pipeline, check, registry
from ddnkit.bench.contract import Bench, Request
from ddnkit.bench.contract import Result as Figures
from ddnkit.cli import main
from ddnkit.recipe.sweep import Option, variant_names
from ddnkit.testing import QuadraticOnSphere

LONG = "n" * 300
HOSTILE = [
    "", " ", "0", "-1", "1.5", "9" * 30, "nan", "inf", "-inf", "1e400", "0x10", "true",
    LONG, f"x/{LONG}", "ä" * 130, "a\0b", "a\udcffb", "a\nb", "a\x1b[31mb", "=", "a=b", "-", "--", "..", "/",
    "file/below", "dangling", "dangling/below", "loop", "/dev/null", "/dev/null/below", "/dev/full",
    "/proc/below", "/sys/below", "0x0", "-1x2", "axb", "99999999999x2", "1,1", "0,", "[]", "{",
]  # fmt: skip
#: What makes a command work, in an empty folder with a recipe and a run.
WORKS: dict[tuple[str, ...], list[str]] = {
    ("run",): ["recipe.yaml", "--jobs", "1"],
    ("check",): ["quadratic_on_sphere", "--examples", "1"],
    ("describe",): ["heads/standard"],
    ("evaluate",): ["a_run"],
    ("report",): ["a_run"],
    ("new", "node"): ["a_node"],
    ("bench",): ["hostile_bench"],
}


class HostilePipeline(Pipeline):
    """One row, at once."""

    columns: ClassVar[tuple[str, ...]] = ("epoch", "step", "loss")
    rate: float = 1.0

    def run(self, job: Job) -> None:
        job.record({"epoch": 1, "step": 1, "loss": self.rate})


class HostileBench(Bench):
    """Nothing to measure."""

    has_figure = True

    def run(self, request: Request) -> Figures:
        list(range(request.repeats))
        return Figures((), (), lambda file: file.write_bytes(b"drawn"))


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def commands(
    group: click.Group, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        elif command is not None:
            yield (*path, name), command


PARAMETERS = [
    pytest.param(path, parameter, id=f"{' '.join(path)} {parameter.opts[-1]}")
    for path, command in commands(main)
    for parameter in command.params
    if not getattr(parameter, "is_flag", False)
]


@pytest.fixture(scope="module", autouse=True)
def _plugins() -> None:
    registry.register("pipelines", "hostile", HostilePipeline)
    registry.register("benches", "hostile_bench", HostileBench)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text("pipeline: hostile\n")
    Path("file").write_text("a file")
    Path("dangling").symlink_to("nowhere")
    Path("loop").symlink_to("loop")


@pytest.mark.parametrize(("path", "parameter"), PARAMETERS)
def test_a_hostile_value_is_refused_or_works(
    path: tuple[str, ...], parameter: click.Parameter
) -> None:
    if path[0] in ("report", "evaluate"):
        assert call("run", "recipe.yaml", "--jobs", "1", "--out", "a_run").exit_code == 0
    works = WORKS.get(path, [])
    for value in HOSTILE:
        if isinstance(parameter, click.Argument):
            result = call(*path, value, *works[1:])
        else:
            result = call(*path, *works, parameter.opts[-1], value)
        told = (path, parameter.opts, value[:40], result.output[-400:])
        assert result.exit_code in (0, 2), told
        assert isinstance(result.exception, SystemExit | None), told
        assert "error: unexpected" not in result.stderr, told
        assert "Traceback" not in result.output, told


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "recipe.yaml", "--out", "/dev/null/run"],
        ["run", "recipe.yaml", "--out", "/proc/run"],
        ["run", "recipe.yaml", "--out", "file/run"],
        ["run", "recipe.yaml", "--out", LONG],
        ["run", "recipe.yaml", "--jobs", "0"],
        ["run", "recipe.yaml", "--devices", "-1"],
        ["run", "recipe.yaml", "-s", "rate"],
        ["run", f"{LONG}.yaml"],
        ["check", "quadratic_on_sphere", "--examples", "0"],
        ["check", "quadratic_on_sphere", "--examples", "-1"],
        ["check", f"{LONG}.py:Node"],
        ["bench", "hostile_bench", "--budget", "inf"],
        ["bench", "hostile_bench", "--budget", "nan"],
        ["bench", "hostile_bench", "--budget", "-1"],
        ["bench", "hostile_bench", "--json", "/dev/full"],
        ["bench", "hostile_bench", "--json", "."],
        ["bench", "hostile_bench", "--json", "nowhere/figures.json"],
        ["bench", "hostile_bench", "--figure", "figure.nothing"],
        ["bench", "hostile_bench", "--seed", "-1"],
        *(
            ["bench", "quadratic_on_sphere", "--sizes", size]
            for size in ("99999999999x2", "99999999x99999999", "0x0", "-1x2", "axb", "8")
        ),
        ["new", "node", "a_node", "--dir", "/dev/null"],
        ["new", "node", "a_node", "--dir", "/proc/below"],
        ["new", "node", "a/b"],
        ["new", "node", "class"],
        ["new", "node", LONG],
        ["report", "/proc/self/mem"],
        ["evaluate", "file/below"],
    ],
)
def test_wrong_input_exits_2_and_names_what_was_given(arguments: list[str]) -> None:
    before = set(Path().iterdir())
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert arguments[-1][:40].split(":")[0] in result.output
    assert set(Path().iterdir()) == before


def test_a_file_that_is_there_stays_even_where_it_is_a_dangling_link() -> None:
    Path("a_node.py").symlink_to("elsewhere.py")
    result = call("new", "node", "a_node")
    assert result.exit_code == 2
    assert "a_node.py" in result.output
    assert not Path("elsewhere.py").exists()


def test_a_variants_name_is_a_folders_name_in_any_script() -> None:
    names = variant_names({"a": [Option("雪" * 200), Option("雪" * 201), Option("n" * 300)]})
    assert len(set(names)) == 3
    assert all(0 < len(os.fsencode(name)) <= 255 for name in names)


@pytest.mark.parametrize("examples", [0, -1])
def test_check_is_told_how_many_examples_there_can_be(examples: int) -> None:
    with pytest.raises(InputError, match=str(examples)):
        check(QuadraticOnSphere(), examples=examples)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_an_output_without_room_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "ddnkit", "list"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_check_leaves_nothing_where_it_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path("empty").absolute()
    folder.mkdir()
    monkeypatch.chdir(folder)
    done = CliRunner().invoke(main, ["check", "quadratic_on_sphere", "--examples", "2"])
    assert done.exit_code == 0, done.output
    assert not list(folder.iterdir())


#: More than any terminal shows: digits, a word, words, a mapping, and names below a folder.
HUGE = ["9" * 5000, "x" * 5000, "x y " * 1250, f"a={'z' * 5000}", f"file/{'n' * 5000}"]


@pytest.mark.parametrize("value", HUGE, ids=lambda text: text[:6])
@pytest.mark.parametrize(("path", "parameter"), PARAMETERS)
def test_an_error_repeats_no_more_than_one_can_read(
    path: tuple[str, ...], parameter: click.Parameter, value: str
) -> None:
    if isinstance(parameter, click.Option):
        result = call(*path, *WORKS.get(path, []), parameter.opts[-1], value)
    else:
        result = call(*path, value)
    if result.exit_code:
        assert result.exit_code == 2, result.output
        longest = max(result.output.split(), key=len)
        assert len(longest) < 300, longest
        assert result.output.count("x y") < 80  # a path may have 200 characters and more


@pytest.mark.parametrize("given", [["x" * 5000], ["--" + "x" * 5000], ["run", "--" + "x" * 5000]])
def test_nor_does_one_of_a_command_or_option_that_there_is_not(given: list[str]) -> None:
    result = call(*given)
    assert result.exit_code == 2 and len(result.output) < 500


def test_a_path_that_is_wrong_is_named_whole() -> None:
    deep = Path(*["a_folder_of_some_length"] * 8)
    result = call("report", deep)
    assert result.exit_code == 2 and str(deep) in result.stderr


@pytest.mark.parametrize("mark", ["\u202e", "\ufeff", "\x1b[31m", "\xa0"])
def test_what_cannot_be_seen_is_shown(mark: str) -> None:
    Path("marked.yaml").write_text(f'pipeline: classification\n"{ascii(mark)[1:-1]}data": digits\n')
    for told in (call("run", "marked.yaml"), call("run", "digits", "-s", f"x{mark}y=1")):
        assert told.exit_code == 2
        assert mark not in told.stderr and ascii(mark)[1:-1] in told.stderr
