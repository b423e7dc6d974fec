"""Every code block of README.md and docs runs, on its page in order, as its reader would copy it.

What a block is follows from its language and its first line:

* ``# name.py`` (or ``.yaml``, ``.toml``), a comment that is a file's name alone: that file, written
  into the folder where the page's commands are run;
* python: executed, all of a page in one namespace;
* yaml: a recipe; one without ``pipeline`` is a part, laid over the page's last recipe;
* toml: parsed, and its entry points' groups are ones that ddnkit has;
* console: its ``$`` lines are run, and what is shown below one is compared, numbers aside;
  ``...`` stands for any lines. The status is 1 where what is shown says that something failed, else 0;
* text: output or a synopsis (``ddnkit COMMAND [--option ...]``), whose options exist.

A command that would take long is not run but taken as far as shows that it can be (`_planned`). A
block that cannot run has ``<!-- not run: REASON -->`` above it.
"""

from __future__ import annotations

import ast
import re
import shlex
import sys
import types
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import pytest
import torch
import yaml
from click.testing import CliRunner
from markdown_it import MarkdownIt

from ddnkit import registry
from ddnkit.cli import main
from ddnkit.errors import InputError
from ddnkit.recipe.load import load

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *sorted(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md"))]
#: The blocks that a page says cannot be run, as PAGE:LINE.
NOT_RUN: list[str] = []

_FILE = re.compile(r"# ([\w.-]+\.(?:py|yaml|toml))\n")
_EXCUSE = re.compile(r"<!--\s*not run:\s*(\S.*?)\s*-->", re.DOTALL)
_NUMBER = re.compile(r"[-+]?\d[\d.,_]*(?:e[-+]?\d+)?")
_ELIDED = "..."


@dataclass(frozen=True)
class Block:
    """A fenced block: where its text begins, what it is, and why it cannot run, if it says so."""

    page: str
    line: int
    language: str
    text: str
    excuse: str | None

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str | None:
        """The name of the file that the block is."""
        found = _FILE.match(self.text)
        return found[1] if found else None


def blocks(page: str) -> list[Block]:
    tokens = MarkdownIt().parse((ROOT / page).read_text(encoding="utf-8"))
    indented = [token.map for token in tokens if token.type == "code_block"]
    assert not indented, f"{page}: indented code has no language: {indented}"
    found = []
    for before, token in zip([None, *tokens], tokens, strict=False):
        if token.type == "fence" and token.map:
            above = before.content if before is not None and before.type == "html_block" else ""
            excuse = _EXCUSE.search(above)
            language = token.info.split()[0] if token.info.strip() else ""
            found.append(
                Block(page, token.map[0] + 2, language, token.content, excuse and excuse[1])
            )
    return found


@dataclass
class Reader:
    """Who copies the blocks of a page, one after the other, into an empty folder of a clone."""

    folder: Path
    namespace: types.ModuleType
    recipe: dict[str, Any] = field(default_factory=dict)
    done: Counter[str] = field(default_factory=Counter)

    def read(self, page: str) -> None:
        for block in blocks(page):
            if not block.excuse:
                self.take(block)

    def take(self, block: Block) -> None:
        if block.file:
            (self.folder / block.file).write_text(block.text, encoding="utf-8")
        do = getattr(self, f"_take_{block.language}", None)
        assert do, f"{block.place}: no way to try a block of the language {block.language!r}"
        do(block)
        self.done[block.language] += 1

    def _take_python(self, block: Block) -> None:
        # So many lines down that a traceback, and an error of syntax, name the page's own line.
        text = "\n" * (block.line - 1) + block.text
        code = compile(text, str(ROOT / block.page), "exec")
        if not block.file:
            exec(code, vars(self.namespace))
            for line, value, said in _claims(text, vars(self.namespace)):
                assert value == pytest.approx(said), f"{block.page}:{line}: {value}, not {said}"
                self.done["claims"] += 1

    def _take_yaml(self, block: Block) -> None:
        part = yaml.safe_load(block.text)
        assert isinstance(part, dict), block.place
        self.recipe = part if "pipeline" in part else {**self.recipe, **part}
        file = self.folder / "block.yaml"
        file.write_text(yaml.safe_dump(self.recipe), encoding="utf-8")
        load(self.folder / block.file if block.file else file)

    def _take_toml(self, block: Block) -> None:
        if sys.version_info < (3, 11):
            import tomli as tomllib  # pytest's own
        else:
            import tomllib

        groups = tomllib.loads(block.text).get("project", {}).get("entry-points", {})
        for group in groups:
            assert group.removeprefix("ddnkit.") in registry.GROUPS, block.place

    def _take_text(self, block: Block) -> None:
        for synopsis in re.findall(r"^ddnkit (\w+) ([A-Z].*(?:\n +.*)*)", block.text, re.M):
            command = main.get_command(click.Context(main), synopsis[0])
            assert command, f"{block.place}: there is no ddnkit {synopsis[0]}"
            known = {option for parameter in command.params for option in parameter.opts}
            asked = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", synopsis[1]))
            assert asked <= known, (block.place, asked - known)

    def _take_console(self, block: Block) -> None:
        for line, typed, shown in commands(block):
            place = f"{block.page}:{line}: {typed}"
            for words in _simple_commands(typed):
                self._run(place, words, shown)
            self.done["commands"] += 1

    def _run(self, place: str, words: list[str], shown: list[str]) -> None:
        program, *rest = words
        if program == "ddnkit":
            self._ddnkit(place, rest, shown)
        elif program == "torchrun":
            from torch.distributed.run import get_args_parser

            given = get_args_parser().parse_args(rest)
            assert (given.module, given.training_script) == (True, "ddnkit"), place
            self._ddnkit(place, [*given.training_script_args, "--dry-run"], shown)
        elif program == "make":
            targets = [word for word in rest if "=" not in word]
            makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
            for target in targets:
                assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), place
            for word in set(rest) - set(targets):
                name = word.partition("=")[0]
                assert re.search(rf"^{name} *\?=", makefile, re.MULTILINE), place
        elif program == "pip":
            extras = re.search(r"ddnkit\[(.*)\]", " ".join(rest))
            assert rest[0] == "install" and extras, place
            declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
            for extra in extras[1].split(","):
                assert re.search(rf"^{extra} = \[", declared, re.MULTILINE), place
        else:
            assert program in ("git", "cd"), f"{place}: no way to try this command"

    def _ddnkit(self, place: str, words: list[str], shown: list[str]) -> None:
        planned = _planned(words)
        if planned is None:
            return
        result = CliRunner().invoke(main, planned)
        error = None if isinstance(result.exception, SystemExit) else result.exception
        assert error is None, f"{place}: {error!r}"
        fails = any(re.match(r"\s*FAIL", line) for line in shown)
        assert result.exit_code == int(fails), f"{place}: {result.exit_code}\n{result.output}"
        if shown:
            assert_shown(shown, result.stdout.splitlines(), place)


def _claims(text: str, namespace: dict[str, Any]) -> Iterator[tuple[int, Any, Any]]:
    """What a comment behind a statement says of it: ``y = layer(x)  # (8, 5)``, ``f.a  # 0.5 (s)``.

    A tuple is the shape of what a name was given, a number the value of an expression.
    """
    lines = text.splitlines()
    for node in ast.parse(text).body:
        _, hash_, comment = lines[(node.end_lineno or 0) - 1].rpartition("#")
        comment = comment.strip() if hash_ else ""
        if isinstance(node, ast.Assign) and re.fullmatch(r"\([\d, ]+\)", comment):
            value = namespace[ast.unparse(node.targets[0])]
            yield node.lineno, tuple(value.shape), ast.literal_eval(comment)
        elif isinstance(node, ast.Expr) and (number := re.match(r"[\d.]+(?= |$)", comment)):
            yield node.lineno, eval(ast.unparse(node), namespace), float(number[0])


def commands(block: Block) -> list[tuple[int, str, list[str]]]:
    """The ``$`` lines of a console block: line, command, and the output that is shown below it."""
    found: list[tuple[int, str, list[str]]] = []
    for number, line in enumerate(block.text.splitlines()):
        if line.startswith("$ "):
            found.append((block.line + number, line[2:], []))
        else:
            assert found, f"{block.place}: output without a command"
            found[-1][2].append(line)
    return found


def _simple_commands(typed: str) -> Iterator[list[str]]:
    """The commands of a line, which ``&&`` joins, as words; without the comment behind them."""
    words: list[str] = []
    for word in [*shlex.split(typed, comments=True), "&&"]:
        if word == "&&":
            yield words
            words = []
        else:
            words.append(word)


def _planned(words: list[str]) -> list[str] | None:
    """What is run in place of ``ddnkit WORDS``; None where its options alone are looked at.

    A training is planned, not run, unless the page goes on with its folder; a check draws fewer
    inputs; a bench is not begun.
    """
    command, *rest = words
    if command == "run" and "--out" not in rest and "--dry-run" not in rest:
        return [*words, "--dry-run"]
    if command == "run" and "--smoke" in rest:
        return [*words, "--jobs", "1"]  # in this process
    if command == "check":
        return [*words, "--examples", "3"]  # the last one given counts
    if command == "bench" and rest:
        kind = main.get_command(click.Context(main), command)
        assert kind
        name = kind.make_context(command, list(rest), resilient_parsing=False).params["name"]
        assert name in [*registry.names("benches"), "all"], f"no bench {name}"
        return None
    return words


def assert_shown(shown: Sequence[str], printed: Sequence[str], place: str) -> None:
    """The lines that a page shows are those that were printed, but for numbers and spaces."""
    wanted, rest = [_masked(line) for line in shown], [_masked(line) for line in printed]
    anywhere = False
    for index, line in enumerate(wanted):
        if line == _ELIDED:
            anywhere = True
            continue
        skipped = 0
        while anywhere and skipped < len(rest) and rest[skipped] != line:
            skipped += 1
        rest = rest[skipped:]
        assert rest and rest[0] == line, (
            f"{place}\nshown:   {shown[index]}\nprinted: {rest[0] if rest else 'nothing more'}\n"
            f"all that was printed:\n" + "\n".join(printed)
        )
        rest, anywhere = rest[1:], False
    assert anywhere or not any(rest), f"{place}: printed beyond what is shown:\n" + "\n".join(rest)


def _masked(line: str) -> str:
    return " ".join(_NUMBER.sub("#", line).split())


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before, dtype = set(sys.modules), torch.get_default_dtype()
    page = types.ModuleType("page_of_the_docs")
    monkeypatch.setitem(sys.modules, page.__name__, page)
    yield Reader(tmp_path, page)
    torch.set_default_dtype(dtype)
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).is_relative_to(tmp_path):
            del sys.modules[name]


@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page_run_in_order(page: str, reader: Reader) -> None:
    reader.read(page)
    print(page, dict(reader.done))  # pytest -s shows how many of each there were


def test_no_block_is_overlooked_and_few_are_excused() -> None:
    found = [block for page in PAGES for block in blocks(page)]
    fences = sum(
        len(re.findall(r"^ *(?:```|~~~)", (ROOT / page).read_text(encoding="utf-8"), re.M))
        for page in PAGES
    )
    assert 2 * len(found) == fences
    assert [block.place for block in found if block.excuse] == NOT_RUN
    assert {"python", "yaml", "console"} <= {block.language for block in found}
    for index, block in enumerate(found):
        if block.file and block.language == "python":
            rest = "".join(later.text for later in found[index + 1 :] if later.page == block.page)
            used = rf"from {Path(block.file).stem} import|ddnkit check {block.file}"
            assert re.search(used, rest), f"{block.place}: the page does nothing with this file"


def test_a_block_may_be_excused_with_a_reason(
    reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "<!-- not run: it needs two machines -->\n\n```console\n$ nonsense\n```\n\n```python\n1\n```\n"
    (tmp_path / "page.md").write_text(text, encoding="utf-8")
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert [block.excuse for block in blocks("page.md")] == ["it needs two machines", None]
    reader.read("page.md")
    assert dict(reader.done) == {"python": 1}


SMOKE = [
    words
    for page in PAGES
    for block in blocks(page)
    if block.language == "console" and not block.excuse
    for _, typed, _ in commands(block)
    for _, *words in _simple_commands(typed)
    if "--smoke" in words and "--out" not in words
]


@pytest.mark.long
@pytest.mark.parametrize("words", SMOKE, ids=" ".join)
def test_the_smoke_runs_of_the_pages_run(words: list[str], reader: Reader) -> None:
    result = CliRunner().invoke(main, [*words, "--jobs", "1"])
    assert result.exit_code == 0, result.output


# The module's own judgement, on pages that are wrong.

WRONG = {
    "an error": ("```python\nx = 1\n1 / (x - 1)\n```", "ZeroDivisionError"),
    "a shape": ("```python\nimport torch\ny = torch.ones(2)  # (3,)\n```", "page.md:3"),
    "a value": ("```python\nx = 2.0\nx  # 2.5\n```", "page.md:3"),
    "an unknown command": ("```console\n$ ddnkit rnu digits\n```", "page.md:2"),
    "an unknown option": ("```console\n$ ddnkit run digits --sede 1\n```", "page.md:2"),
    "an unknown key": ("```console\n$ ddnkit run digits -s head.nam=x\n```", "page.md:2"),
    "an unknown target": ("```console\n$ make cofee\n```", "page.md:2"),
    "an unknown bench": ("```console\n$ ddnkit bench nothing\n```", "nothing"),
    "other output": ("```console\n$ ddnkit --version\nddnkit, version one\n```", "page.md:2"),
    "less output": ("```console\n$ ddnkit list\n```\n```console\n$ ddnkit list\nx\n```", ":5"),
    "a recipe": ("```yaml\npipeline: classification\nhead: {name: nerest_etf}\n```", "nerest"),
    "a part": ("```yaml\nsweep: {head.name: [standard]}\n```", "pipeline"),
    "a synopsis": ("```text\nddnkit run RECIPE [--sedes N]\n```", "--sedes"),
    "a group": ('```toml\n[project.entry-points."ddnkit.node"]\n```', "page.md:2"),
    "a language": ("```pyhton\nx\n```", "pyhton"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_page_fails(
    name: str, reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, told = WRONG[name]
    (tmp_path / "page.md").write_text(text, encoding="utf-8")
    (tmp_path / "Makefile").write_text("run:\n", encoding="utf-8")
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    with pytest.raises((AssertionError, InputError, click.UsageError, ArithmeticError)) as failed:
        reader.read("page.md")
    assert told in f"{failed.value!r} {failed.value}"
    if name == "an error":
        assert failed.traceback[-1].path.name == "page.md"
        assert failed.traceback[-1].lineno == 2


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_every_file_that_is_named_is_there(page: str) -> None:
    text = (ROOT / page).read_text()
    named = set(
        re.findall(r"[`(]((?:ddnkit|plugins|tests|tools|docs|example_parts)/[\w./]+)", text)
    )
    assert len(named) > 10
    places = (ROOT, ROOT / "tests" / "example_plugin")
    missing = [name for name in named if not any((place / name).exists() for place in places)]
    assert not missing
