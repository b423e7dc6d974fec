"""Runs `make test` with the oldest and with the newest packages that pyproject.toml allows.

    python tests/versions.py [oldest] [newest]

Each set gets an environment of its own (.venv-oldest on the oldest Python from 3.10 on that is found
here, .venv-newest on the newest), filled by uv: `--resolution lowest-direct` takes the least version
of every package that pyproject.toml names. What was found is printed; a Python that is not at hand is
said to be missing, and then its syntax at least is checked. Ends with a table of passed and failed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from kernels import outcome

ROOT = Path(__file__).parent.parent
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
SHOWN = [
    "torch",
    "numpy",
    "scipy",
    "pydantic",
    "geoopt",
    "pymanopt",
    "click",
    "hypothesis",
    "pytest",
]


@dataclass(frozen=True)
class Found:
    """A Python at hand: its version as (major, minor), and where it is."""

    version: tuple[int, int]
    path: str


def main(asked: list[str]) -> int:
    """Run the sets that were asked for; the exit status."""
    pythons = sorted(_pythons(), key=lambda found: found.version)
    present = {found.version for found in pythons}
    missing = [v for v in PYTHONS if tuple(map(int, v.split("."))) not in present]
    print("Python", ", ".join(".".join(map(str, found.version)) for found in pythons), "at hand")
    if missing:
        print(f"Python {', '.join(missing)} is not: its syntax alone is checked")
    status = 0
    for version in missing:
        name = "py" + version.replace(".", "")
        command = [
            _tool("ruff"),
            "check",
            "--quiet",
            "--select",
            "E9,F",
            "--target-version",
            name,
            ".",
        ]
        status |= subprocess.run(command, cwd=ROOT).returncode
    rows = []
    for which in asked:
        python = {"oldest": pythons[0], "newest": pythons[-1]}[which]
        counts, failed = _run(which, python)
        rows.append(f"{which:8} {counts}")
        status |= failed
    print("\n" + "\n".join(rows))
    return int(bool(status))


def _pythons() -> list[Found]:
    """Each minor version from 3.10 on that runs, on the path or among pyenv's."""
    found: dict[tuple[int, int], Found] = {}
    for version in PYTHONS:
        names = [shutil.which(f"python{version}")]
        names += sorted(map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python")))
        for name in [sys.executable, *filter(None, names)]:
            code = "import sys; print(*sys.version_info[:2])"
            done = subprocess.run([name, "-c", code], capture_output=True, text=True)
            if done.returncode == 0:
                major, minor = map(int, done.stdout.split())
                found.setdefault((major, minor), Found((major, minor), name))
    return list(found.values())


def _run(which: str, python: Found) -> tuple[str, int]:
    folder = ROOT / f".venv-{which}"
    inside = str(folder / "bin" / "python")
    if not folder.is_dir():
        subprocess.run([_tool("uv"), "venv", "-q", "--python", python.path, folder], check=True)
    resolution = {"oldest": "lowest-direct", "newest": "highest"}[which]
    command = [_tool("uv"), "pip", "install", "--python", inside, "--resolution", resolution]
    subprocess.run([*command, "-e", ".[test,vision,tensorboard]"], cwd=ROOT, check=True)
    print(f"\n== {which}: Python {'.'.join(map(str, python.version))}, ", end="", flush=True)
    code = "from importlib.metadata import version as v; print(*[f'{n} {v(n)}' for n in names], sep=', ')"
    subprocess.run([inside, "-c", f"names = {SHOWN}; {code}"], check=True)
    return outcome(inside, [], "auto")


def _tool(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["oldest", "newest"]))
