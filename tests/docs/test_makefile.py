"""``make`` on a machine that has nothing yet: what it says, and what it leaves when it is cut off.

In a copy of the Makefile, with a stand-in for Python that installs nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="there is no make here")

#: Makes a .venv whose Python is this script again; of pip it does what PIP_DOES says.
PYTHON = f"""#!/bin/sh
case "$1 $2" in
  "--version "*) echo Python 3.8.10 ;;
  "-c "*ensurepip*) [ "$LACKS" != venv ] ;;
  "-c "*version_info*) if [ "$LACKS" = version ]; then echo False; else echo True; fi ;;
  "-c "*torch*) [ ! -e .venv/torch ] ;;
  "-m venv") mkdir -p "$3/bin"; touch "$3/pyvenv.cfg"; cp "$0" "$3/bin/python"
    echo made >> log; [ "$LACKS" != disk ] ;;
  "-m pip") [ "$LACKS" != pip ] || exit 1
    [ "$3" != --version ] || exit 0
    echo "$@" >> log
    case "$PIP_DOES" in
      fail) echo no network >&2; exit 1 ;;
      die) touch .venv/half; kill -9 $PPID ;;
    esac
    touch .venv/torch
    printf '#!/bin/sh\\necho ran "$@"\\n' > .venv/bin/ddnkit; chmod +x .venv/bin/ddnkit ;;
  *) exec {sys.executable} "$@" ;;
esac
"""


@dataclass
class Folder:
    """A fresh copy of the project, as far as make needs it."""

    path: Path
    environment: dict[str, str] = field(default_factory=dict)

    def make(self, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["make", "--no-print-directory", *words],
            cwd=self.path,
            env={**self.environment, **settings},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def log(self) -> list[str]:
        """The virtual environments made and the calls of pip, in order."""
        file = self.path / "log"
        return file.read_text().splitlines() if file.exists() else []

    def replace(self, name: str) -> None:
        """Put the stand-in for Python there."""
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(PYTHON)
        file.chmod(0o755)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    # What a make around this test hands down (its flags, its variables) is no part of it.
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    for name in ("TORCH", "PIP_ARGS", "PYTHON", "VENV", "GNUMAKEFLAGS"):
        kept.pop(name, None)
    made = Folder(tmp_path, {**kept, "PATH": f"{tmp_path / 'path'}{os.pathsep}{kept['PATH']}"})
    made.replace("path/python3")
    return made


def test_the_first_run_says_what_it_installs_and_the_second_nothing(folder: Folder) -> None:
    first = folder.make("run")
    assert first.returncode == 0, first.stderr
    said = first.stdout.splitlines()
    assert "PyTorch" in said[0]
    assert said[-1] == "ran run recipes/digit_pairs.yaml"
    assert len(folder.log()) == 2
    assert "--quiet" in folder.log()[1]
    assert not (folder.path / ".venv/.unfinished").exists()
    assert folder.make("run").stdout.splitlines() == said[-2:]
    assert len(folder.log()) == 2


@pytest.mark.skipif(os.uname()[::4] != ("Linux", "x86_64"), reason="another PyTorch is installed")
def test_the_size_is_said_before_pip_begins(folder: Folder) -> None:
    failed = folder.make("run", PIP_DOES="fail")
    assert "GB" in failed.stdout
    assert "make run TORCH=cpu" in failed.stdout
    assert "GB" not in folder.make("run", "TORCH=cpu").stdout


def test_pip_shows_its_progress_on_a_terminal(folder: Folder) -> None:
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            ["make", "run"],
            cwd=folder.path, env=folder.environment, stdout=theirs, stderr=theirs, timeout=60,
        )  # fmt: skip
    finally:
        os.close(theirs)
        os.close(ours)
    assert done.returncode == 0
    assert "--quiet" not in folder.log()[1]


def test_the_build_of_pytorch_and_pips_options_can_be_chosen(folder: Folder) -> None:
    assert folder.make("run", "TORCH=cpu", "PIP_ARGS=--no-cache-dir").returncode == 0
    _, torch, rest = folder.log()
    assert "--index-url https://download.pytorch.org/whl/cpu torch torchvision" in torch
    assert "--index-url" not in rest
    assert "--no-cache-dir" in torch
    assert "--no-cache-dir" in rest


def test_what_else_is_needed_later_is_added(folder: Folder) -> None:
    folder.make("run")
    later = folder.make(".venv/.installed-test")
    assert later.returncode == 0
    assert "GB" not in later.stdout
    assert ".[test,vision,tensorboard]" in folder.log()[-1]
    # pyproject.toml has other requirements than those that were installed
    stamp = (folder.path / ".venv/.installed").stat().st_mtime
    os.utime(folder.path / "pyproject.toml", (stamp + 5, stamp + 5))
    assert folder.make("run").returncode == 0
    assert folder.log().count("made") == 1
    assert len(folder.log()) == 4


@pytest.mark.parametrize("how", [{"LACKS": "disk"}, {"PIP_DOES": "fail"}, {"PIP_DOES": "die"}])
def test_a_first_installation_that_was_cut_off_is_made_anew(
    folder: Folder, how: dict[str, str]
) -> None:
    broken = folder.make("run", **how)
    assert broken.returncode != 0
    assert "ran" not in broken.stdout.split()
    (folder.path / ".venv/left").touch()
    again = folder.make("run")
    assert again.returncode == 0
    assert folder.log().count("made") == 2
    assert not (folder.path / ".venv/left").exists()


def test_an_installation_that_another_make_is_at_is_left_alone(folder: Folder) -> None:
    folder.make("run", PIP_DOES="fail")
    mark = folder.path / ".venv/.unfinished"
    mark.write_text(f"{os.getpid()}\n")  # this process, which is alive
    refused = folder.make("run")
    assert refused.returncode == 2
    assert str(os.getpid()) in refused.stderr.splitlines()[0]
    assert mark.exists()


def test_goals_side_by_side_install_one_after_the_other(folder: Folder) -> None:
    both = folder.make("-j4", ".venv/.installed", ".venv/.installed-test", "run")
    assert both.returncode == 0, both.stderr
    assert folder.log().count("made") == 1
    assert len(folder.log()) == 3


def test_a_later_installation_that_fails_costs_nothing_that_is_there(folder: Folder) -> None:
    folder.make("run")
    assert folder.make(".venv/.installed-test", PIP_DOES="fail").returncode != 0
    assert not (folder.path / ".venv/.installed-test").exists()
    assert folder.make("run").returncode == 0
    assert folder.log().count("made") == 1


def test_a_virtual_environment_of_the_users_own_is_kept(folder: Folder) -> None:
    folder.replace(".venv/bin/python")
    (folder.path / ".venv/mine").touch()
    assert folder.make("run").returncode == 0
    assert (folder.path / ".venv/mine").exists()
    assert "made" not in folder.log()


def test_a_python_that_is_gone_is_replaced(folder: Folder) -> None:
    folder.make("run")
    (folder.path / ".venv/bin/python").unlink()
    (folder.path / ".venv/bin/python").symlink_to("gone")
    assert folder.make("run").returncode == 0
    assert len(folder.log()) == 4
    assert not (folder.path / ".venv/bin/python").is_symlink()


@pytest.mark.parametrize(
    ("lacks", "named"), [("version", "3.8.10"), ("venv", "python3-venv"), ("pip", ".venv")]
)
def test_what_is_missing_is_told_in_one_line(folder: Folder, lacks: str, named: str) -> None:
    refused = folder.make("run", LACKS=lacks)
    assert refused.returncode == 2
    line, of_make = refused.stderr.splitlines()
    assert named in line
    assert of_make.startswith("make: ***")
    if lacks != "pip":
        assert not (folder.path / ".venv").exists()


def test_python_is_what_was_named(folder: Folder) -> None:
    folder.replace("other/python3.12")
    assert folder.make("run", "PYTHON=other/python3.12", PATH=os.environ["PATH"]).returncode == 0
    refused = folder.make("run", "VENV=another", "PYTHON=other/python3.99")
    assert refused.returncode == 2
    assert "other/python3.99" in refused.stderr.splitlines()[0]
