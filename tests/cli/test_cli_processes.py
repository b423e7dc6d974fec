"""What only a process of its own can show: what is imported, how fast, what a pipe or plugin does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "numpy", "scipy", "matplotlib", "rich")

PROGRAM = """
import sys
from ddnkit.cli import main
try:
    main(sys.argv[1:], prog_name="ddnkit")
finally:
    print("HEAVY", [name for name in {heavy!r} if name in sys.modules], file=sys.stderr)
"""


def ddnkit(
    *arguments: str, path: Path | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    before = os.environ.get("PYTHONPATH", "")
    environment = {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{before}"} if path else None
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(heavy=HEAVY), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        cwd=cwd,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], 0),
        (["list"], 0),
        (["run", "digits", "-s", "head.detla=1"], 2),
        (["run", "digits", "--dry-run"], 0),
        (["run", "--help"], 0),
    ],
)
def test_light_commands_import_nothing_heavy(arguments: list[str], status: int) -> None:
    result = ddnkit(*arguments)
    assert result.returncode == status, result.stderr
    assert "HEAVY []" in result.stderr


BAD_RECIPES = {
    "misspelt.yaml": (
        "pipeline: classification\nhead: {name: standard, temprature: 3}",
        ":2: head.temprature: ",
    ),
    "type.yaml": ("pipeline: classification\nhead:\n  name: standard\n  temperature: hot", ":4: "),
    "head.yaml": ("pipeline: classification\nhead: standrad", ":2: head.name: "),
    "empty.yaml": ("", ":1: "),
    "syntax.yaml": ("pipeline: [classification\nhead: standard", ":2: "),
    "tag.yaml": ("pipeline: !!python/object/apply:os.mkdir [trace]", ":1: pipeline: "),
}


@pytest.mark.parametrize("name", [*BAD_RECIPES, "missing.yaml"])
def test_a_bad_recipe_exits_2_with_a_readable_message(name: str, tmp_path: Path) -> None:
    text, told = BAD_RECIPES.get(name, (None, str(tmp_path)))
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    result = ddnkit("run", name, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert name in result.stderr
    assert told in result.stderr
    assert "Traceback" not in result.stderr
    assert "HEAVY []" in result.stderr
    assert not (tmp_path / "trace").exists()
    assert not (tmp_path / "outputs").exists()


@pytest.fixture
def strangers(tmp_path: Path) -> Path:
    """A folder with an installed distribution: one plugin works, two do not."""
    (tmp_path / "stranger_good.py").write_text(
        "from ddnkit import Settings\nclass Good(Settings):\n    'A good head.'\n    size: int = 1\n"
        "    def build(self, *, feature_dim, classes): ...\n"
    )
    (tmp_path / "stranger_bad.py").write_text("raise RuntimeError('no licence')\n")
    (tmp_path / "stranger_odd.py").write_text("class Odd:\n    pass\n")
    info = tmp_path / "stranger-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text(
        "[ddnkit.heads]\ngood = stranger_good:Good\nbad = stranger_bad:Bad\n"
        "[ddnkit.losses]\nodd = stranger_odd:Odd\n"
    )
    return tmp_path


def test_broken_plugins_are_named_and_the_rest_works(strangers: Path) -> None:
    result = ddnkit("list", path=strangers)
    assert result.returncode == 0, result.stderr
    listed, aside = result.stdout.split("ignored\n")
    assert "  good  (from stranger 1.5)  A good head.\n" in listed
    assert "  nearest_etf\n" in listed
    assert "  bad" not in listed
    bad, odd = sorted(aside.splitlines())
    for part in (
        "bad",
        "ddnkit.heads",
        "stranger_bad:Bad",
        "stranger 1.5",
        "RuntimeError: no licence",
    ):
        assert part in bad
    for part in ("odd", "ddnkit.losses", "stranger_odd:Odd", "stranger 1.5"):
        assert part in odd

    described = ddnkit("describe", "good", path=strangers)
    assert "from: stranger 1.5" in described.stdout
    dry = ddnkit("run", "digits", "-s", "head=good", "--dry-run", path=strangers)
    assert "head: {name: good, size: 1}" in dry.stdout
    used = ddnkit("run", "digits", "-s", "head=bad", path=strangers)
    assert used.returncode == 2
    assert "bad" in used.stderr and "RuntimeError: no licence" in used.stderr


def test_a_reader_that_stops_is_no_error() -> None:
    command = "import sys; from ddnkit.cli import main; main(['list'], prog_name='ddnkit')"
    with subprocess.Popen(
        [sys.executable, "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        process.wait(timeout=30)
