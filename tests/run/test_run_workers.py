"""`ddnkit run --jobs 2`: real worker processes, their failures, and an interrupt."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PLUGIN = '''
import os
import time
from pathlib import Path
from typing import ClassVar

import numpy as np

from ddnkit import InputError, Job, Pipeline


class Own(BaseException):
    """Of the plugin's own."""


class Toy(Pipeline):
    """Records a known row, or behaves badly in a given way for a given seed."""

    columns: ClassVar[tuple[str, ...]] = ("epoch", "step", "train_loss")
    speed: float = 1.0
    trouble: str = ""

    def run(self, job: Job) -> None:
        print("a plugin that prints")
        if self.trouble and job.seed == 1:
            if self.trouble == "raise":
                raise ValueError("on purpose")
            if self.trouble == "base":
                raise Own("on purpose")
            if self.trouble == "interrupt":
                raise KeyboardInterrupt
            if self.trouble == "exit":
                os._exit(7)
            if self.trouble == "input":
                raise InputError("the data are missing")
            while self.trouble == "hang" and not Path("go").exists():
                Path("hanging").touch()
                time.sleep(0.02)
        for step in range(1, 4):
            job.progress(step, 3, {"loss": np.float32(1 / step)})
            job.record({"epoch": step, "step": step, "train_loss": self.speed / step + job.seed})


class Saves(Toy):
    """Runs until it is asked to stop, and saves its state then."""

    resumable: ClassVar[bool] = True

    def run(self, job: Job) -> None:
        (job.folder / "state").mkdir(exist_ok=True)
        while not job.stopping():
            Path(f"running-{job.seed}").touch()
            time.sleep(0.02)
        (job.folder / "state" / "saved").touch()
        raise KeyboardInterrupt
'''
RECIPE = "pipeline: toy_workers\nseeds: [0, 1, 2]\nsweep: {speed: [1.0, 2.0]}\n"
#: A shell leaves its background jobs deaf to an interrupt, and they their children.
LISTENING = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
MAIN = LISTENING + "from ddnkit.cli import main; main()"
COMMAND = [sys.executable, "-c", MAIN, "run", "race.yaml"]


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """A folder with a recipe, and an environment in which the pipeline is an installed plugin."""
    site = tmp_path / "site"
    info = site / "toy-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[ddnkit.pipelines]\ntoy_workers = toy_workers:Toy\ntoy_saves = toy_workers:Saves\n"
    )
    (site / "toy_workers.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    Path("race.yaml").write_text(RECIPE)
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path}


def run(environment, *arguments):
    return subprocess.run(
        [*COMMAND, *arguments], env=environment, capture_output=True, text=True, timeout=60
    )


def metrics(folder):
    root = Path(folder) / "runs"
    return {str(f.relative_to(root)): f.read_text() for f in root.glob("*/seed-*/metrics.csv")}


def test_workers_write_what_one_process_writes(environment):
    one = run(environment, "--jobs", "1", "--out", "one")
    two = run(environment, "--jobs", "2", "--out", "two")
    assert (one.returncode, two.returncode) == (0, 0), two.stderr
    assert len(metrics("two")) == 6
    assert metrics("one") == metrics("two")
    assert "a plugin that prints" not in two.stdout
    assert "[6/6] done" in two.stdout
    assert json.loads(Path("two/runs/2.0/seed-2/done.json").read_text())["status"] == "done"


@pytest.mark.parametrize(
    ("trouble", "status", "done", "message"),
    [
        pytest.param("raise", 1, 4, "ValueError: on purpose", marks=pytest.mark.long),
        ("exit", 1, 4, "status 7"),
        pytest.param("base", 1, 4, "Own: on purpose", marks=pytest.mark.long),
        pytest.param("interrupt", 1, 4, "KeyboardInterrupt", marks=pytest.mark.long),
        ("input", 2, None, "the data are missing"),
    ],
)
def test_trouble_in_a_worker_is_told_and_the_others_go_on(
    environment, trouble, status, done, message
):
    result = run(environment, "--jobs", "2", "--out", "x", "-s", f"trouble={trouble}")
    assert result.returncode == status
    assert message in result.stderr
    if done is not None:
        assert len(list(Path("x").glob("runs/*/seed-*/done.json"))) == done
    if trouble == "input":  # each variant is refused once; only seeds already begun were run
        assert result.stderr.count("error: the data are missing") == 1


def test_an_interrupt_ends_the_workers_and_the_run_can_be_resumed(environment):
    process = subprocess.Popen(
        [*COMMAND, "--jobs", "2", "--out", "x", "-s", "trouble=hang"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 30
    while not Path("hanging").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the whole group
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "--resume" in errors
    assert "Traceback" not in errors
    Path("go").touch()
    resumed = run(environment, "--jobs", "2", "--out", "x", "--resume", "-s", "trouble=hang")
    assert resumed.returncode == 0, resumed.stderr
    assert len(list(Path("x").glob("runs/*/seed-*/done.json"))) == 6


@pytest.mark.long
@pytest.mark.parametrize("ask", [os.kill, os.killpg], ids=["one", "all"])
def test_sigterm_saves_what_runs_side_by_side(environment, ask):
    """A cluster sends it to the process that it knows, or to all of its group."""
    Path("saves.yaml").write_text("pipeline: toy_saves\nseeds: [0, 1]\n")
    process = subprocess.Popen(
        [*COMMAND[:-1], "saves.yaml", "--jobs", "2", "--out", "x"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 30
    while not all(Path(f"running-{seed}").exists() for seed in (0, 1)):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    ask(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "--resume" in errors
    assert len(list(Path("x").glob("runs/*/seed-*/state/saved"))) == 2


def test_cores_are_used_by_default(environment):
    result = run(environment, "--out", "x")
    assert result.returncode == 0
    command = json.loads(Path("x/environment.json").read_text())["command"]
    assert "--jobs" not in command
    assert len(metrics("x")) == 6
