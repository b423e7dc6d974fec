"""The command line as its user meets it: help, list, describe, and one line for any error."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import click
import pytest
from click.testing import CliRunner, Result

from ddnkit import DeclarativeNode, Job, Pipeline, Settings, component, registry
from ddnkit import __version__ as VERSION
from ddnkit.cli import group, main
from ddnkit.errors import DdnkitError, UntrustedGradientError
from ddnkit.recipe import find

Command = Callable[..., Result]


class Below(Settings):
    depth: int = 2


class Width(Settings):
    """Layers of one width.

    Second paragraph.
    """

    width: int | None = None
    kinds: tuple[int, ...] = (1,)
    below: Below = Below()
    must: float


class Undocumented(Settings):
    pass


class Sketch(Pipeline):
    """A pipeline to describe."""

    columns: ClassVar[tuple[str, ...]] = ("epoch", "step")
    backbone: Settings = component("backbones", "cli_toy", "the network")
    head: Settings = component("heads")

    def run(self, job: Job) -> None:
        raise AssertionError("never run")


class Halfway(DeclarativeNode):
    """y halfway to x."""

    def __init__(self, factor: float = 0.5, *more: int) -> None:
        super().__init__()
        self.factor = factor

    def objective(self, x: Any, *, y: Any) -> Any:
        return ((y - self.factor * x) ** 2).sum()


class Careless(Settings):
    """A stranger's settings, whose own code fails before anything runs."""

    def doubts(self) -> Any:
        raise RuntimeError("oops")

    def build(self, *, feature_dim: int, classes: int) -> None: ...


@pytest.fixture(scope="module", autouse=True)
def _plugins() -> None:
    registry.register("backbones", "cli_toy", Width)
    registry.register("heads", "cli_toy", Undocumented)
    registry.register("heads", "cli_careless", Careless)
    registry.register("pipelines", "cli_sketch", Sketch)
    registry.register("nodes", "cli_halfway", Halfway)


@pytest.fixture
def ddnkit() -> Command:
    def call(*arguments: str) -> Result:
        return CliRunner().invoke(main, list(arguments))

    return call


def test_help_names_every_command(ddnkit: Command) -> None:
    output = ddnkit("--help").output
    for name in ("run", "check", "list", "describe", "report", "bench"):
        assert f"\n  {name} " in output
    assert ddnkit("-h").output == output


def test_version(ddnkit: Command) -> None:
    (line,) = ddnkit("--version").output.splitlines()
    assert line.startswith("ddnkit") and line.endswith(f" {VERSION}")


def test_list_shows_groups_plugins_and_recipes(ddnkit: Command) -> None:
    result = ddnkit("list")
    assert result.exit_code == 0
    for line in ("heads", "  nearest_etf", "recipes", "  digits", "  trust_regions"):
        assert f"\n{line}\n" in result.output
    assert "  cli_toy  (from register())  Layers of one width.\n" in result.output
    assert "  cli_toy  (from register())\n" in result.output


def test_list_of_one_group(ddnkit: Command) -> None:
    output = ddnkit("list", "losses").output
    assert output.startswith("losses\n")
    assert "cross_entropy" in output
    assert "heads" not in output
    assert ddnkit("list", "recipes").output.startswith("recipes\n  ")


def test_an_empty_group_is_listed_too(ddnkit: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddnkit.cli.list.shipped_recipes", dict)
    result = ddnkit("list", "recipes")
    assert result.exit_code == 0
    assert result.output.startswith("recipes\n")
    assert "digits" not in result.output


def test_list_sets_aside_what_does_not_work(
    ddnkit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = registry.Plugin("heads", "broken", "mod:Broken", "stranger 1.0")
    monkeypatch.setattr(registry, "check_foreign", lambda: {plugin: "RuntimeError: no"})
    for arguments in (["list"], ["list", "heads"]):
        (line,) = ddnkit(*arguments).output.partition("\nignored\n")[2].splitlines()
        for part in ("broken", "ddnkit.heads", "mod:Broken", "stranger 1.0", "RuntimeError: no"):
            assert part in line
    assert "ignored" not in ddnkit("list", "losses").output


def test_describe_a_settings_class(ddnkit: Command) -> None:
    output = ddnkit("describe", "backbones/cli_toy").output
    assert output.startswith("backbones/cli_toy\n  target: test_cli_commands:Width\n  from: reg")
    table = [line.split() for line in output.splitlines()[-6:]]
    assert table == [
        ["key", "type", "default"],
        ["width", "int", "|", "None", "nothing"],
        ["kinds", "tuple[int,", "...]", "(1,)"],
        ["below", "Below", "see", "below"],
        ["below.depth", "int", "2"],
        ["must", "float", "required"],
    ]


def test_describe_shows_all_that_have_the_name(ddnkit: Command) -> None:
    output = ddnkit("describe", "cli_toy").output
    _, first, second = re.split(r"^(?=\w+/cli_toy$)", output, flags=re.MULTILINE)
    assert first.startswith("backbones/cli_toy\n") and "must" in first
    assert second.startswith("heads/cli_toy\n")
    assert not re.search(r"^ *key +type", second, re.MULTILINE)  # it has none


def test_describe_a_pipeline(ddnkit: Command) -> None:
    lines = ddnkit("describe", "cli_sketch").output.splitlines()
    assert " ".join(lines[-2].split()) == "backbone one of ddnkit.backbones cli_toy the network"
    assert " ".join(lines[-1].split()) == "head one of ddnkit.heads required"


def test_describe_a_node(ddnkit: Command) -> None:
    output = ddnkit("describe", "nodes/cli_halfway").output
    assert "y halfway to x." in output
    assert "factor  float  0.5" in output
    assert "more" not in output
    assert "backward forms: auto, closed_form, dense, embedded_field" in output


def test_long_descriptions_are_wrapped_in_their_column(ddnkit: Command) -> None:
    output = ddnkit("describe", "datasets/digits").output
    assert max(map(len, output.splitlines())) <= 120
    assert "batch_size" in output


@pytest.mark.parametrize("name", ["digits", "recipes/digits"])
def test_describe_a_recipe(ddnkit: Command, name: str) -> None:
    output = ddnkit("describe", name).output
    assert "recipes/digits\n" in output
    assert "  variants:\n    standard\n    fixed_etf\n    nearest_etf\n" in output
    assert "ddnkit run digits" in output


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["lits"], ["'lits'", "'list'"]),
        (["list", "hedas"], ["'hedas'", "'heads'"]),
        (["describe", "nearst_etf"], ["'nearst_etf'", "'nearest_etf'"]),
        (["describe", "heads/nearst_etf"], ["'nearst_etf'", "heads", "'nearest_etf'"]),
        (["describe", "hedas/x"], ["'hedas'", "'heads'"]),
        (["describe", "recipes/digist"], ["'digist'", "recipes", "'digits'"]),
        (["run", "digits", "--sedes", "1"], ["--sedes", "--seeds"]),
        (["--verison"], ["--verison", "--version"]),
        (["run"], ["'RECIPE'"]),
        (["report"], ["'RUN_DIR"]),
        (["run", "digist"], ["'digist'", "'digits'"]),
        (["run", "digits", "-s", "head.detla=1"], ["head.detla=1: head.detla: ", "'delta'"]),
        (["run", "digits", "--seeds", "x"], ["--seeds x: seeds: ", "'x'"]),
        (["run", "digits", "--device", "gpu"], ["--device", "'gpu'", "'auto', 'cpu', 'cuda'"]),
    ],
)
def test_wrong_input_exits_2_and_names_the_nearest(
    ddnkit: Command, arguments: list[str], parts: list[str]
) -> None:
    result = ddnkit(*arguments)
    assert result.exit_code == 2
    assert not [part for part in parts if part not in result.stderr], result.stderr
    assert "Traceback" not in result.output


def test_several_errors_are_lines_under_one_heading(ddnkit: Command) -> None:
    result = ddnkit("run", "digits", "-s", "x=1", "-s", "y=1")
    first, second = result.stderr.splitlines()
    assert first.startswith("error: -s x=1: x: ")
    assert second.startswith("       -s y=1: y: ")


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Make ``ddnkit bench`` a command that raises."""

    def install(error: BaseException) -> None:
        @click.command()
        def bench() -> None:
            raise error

        monkeypatch.setattr(group.LazyGroup, "get_command", lambda *_: bench)

    return install


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (DdnkitError("no good"), 1, r"error: no good\n"),
        (UntrustedGradientError("not stationary"), 1, r"error: not stationary\n"),
        (KeyboardInterrupt(), 130, r"interrupted\n"),
        (ValueError("odd"), 1, r"error: .*ValueError: odd\b.* ddnkit --debug bench .*\n"),
        (BrokenPipeError(32, "gone"), 1, ""),
        (OSError(errno.EDQUOT, "over quota", "outputs/x"), 2, r"error: .*outputs/x.*over quota\n"),
    ],
)
def test_errors_become_one_line_and_a_status(
    ddnkit: Command,
    failing: Callable[[BaseException], None],
    error: BaseException,
    status: int,
    told: str,
) -> None:
    failing(error)
    result = ddnkit("bench")
    assert result.exit_code == status
    assert re.fullmatch(told, result.stderr)


def test_an_error_of_a_strangers_code_says_where_it_is(ddnkit: Command) -> None:
    result = ddnkit("run", "digits", "-s", "head=cli_careless", "--dry-run")
    assert result.exit_code == 1, result.output
    assert f"{__file__}:" in result.stderr and "oops" in result.stderr


def test_debug_gives_the_traceback(
    ddnkit: Command, failing: Callable[[BaseException], None]
) -> None:
    failing(ValueError("odd"))
    result = ddnkit("--debug", "bench")
    assert isinstance(result.exception, ValueError)


def test_every_shipped_recipe_loads(ddnkit: Command) -> None:
    assert "digit_pairs" in find.shipped_recipes()
    for name in find.shipped_recipes():
        result = ddnkit("run", name, "--dry-run")
        assert result.exit_code == 0, result.output


def test_recipes_by_path_too(ddnkit: Command, tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(find.shipped_recipes()["digits"].read_text(encoding="utf-8"), encoding="utf-8")
    assert f"recipe: {file}\n" in ddnkit("run", str(file), "--dry-run").output
