"""A run that is killed, interrupted or poisoned, with real processes and real signals.

``DDNKIT_KILLS=20`` kills as many runs; the suite kills a few.
"""

from __future__ import annotations

import csv
import errno
import functools
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from ddnkit_train import read_sealed, write_sealed
from safetensors.torch import load_file
from training_stand_ins import start

from ddnkit import DamagedFileError, DdnkitError
from ddnkit.cli import main
from ddnkit.recipe.load import load
from ddnkit.run.folder import RunFolder
from ddnkit.run.job import run_job
from ddnkit.run.options import JobOptions, RunOptions
from ddnkit.run.session import Session

RECIPE = """
pipeline: classification
data: {name: digits, batch_size: 128}
backbone: {name: mlp, width: 64, depth: 3}
head: {name: nearest_etf}
optimizer: {name: sgd, lr: 0.05}
schedule: {warmup: 2, decay: cosine}
train: {epochs: 15, evaluate_every: 3}
engine: {checkpoint_every: 1}
"""
KILLS = int(os.environ.get("DDNKIT_KILLS", "2"))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("interruption") / "recipe.yaml"
    file.write_text(RECIPE)
    return file


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    result = run(recipe, out)
    assert result.exit_code == 0, result.output
    return job(out)


def run(recipe: Path, out: Path, *more: str) -> Result:
    """``ddnkit run`` in this process: to start another takes longer than the training."""
    command = ["run", str(recipe), "--out", str(out), "--jobs", "1", "--device", "cpu"]
    return CliRunner().invoke(main, [*command, *more])


def job(out: Path) -> Path:
    return out / "runs" / "default" / "seed-0"


def outputs(folder: Path) -> dict[str, str]:
    found = {
        name: hashlib.sha256((folder / name).read_bytes())
        for name in ("metrics.csv", "margins.csv")
    }
    weights = found["weights"] = hashlib.sha256()
    for name, tensor in sorted(load_file(folder / "model.safetensors").items()):
        weights.update(name.encode() + tensor.numpy().tobytes())
    return {name: digest.hexdigest() for name, digest in found.items()}


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, f"{path} has not appeared"
        time.sleep(0.002)


@pytest.mark.parametrize(
    "number", [0, *(pytest.param(n, marks=pytest.mark.long) for n in range(1, KILLS))]
)
def test_a_killed_run_goes_on_bit_for_bit(
    number: int, recipe: Path, whole: Path, tmp_path: Path
) -> None:
    draw = random.Random(number)
    out = tmp_path / "run"
    process = start(recipe, out)
    checkpoint = job(out) / "state" / "checkpoint.pt"
    wait_for(checkpoint, process)
    time.sleep(draw.uniform(0, 1))

    def saving() -> bool:
        return any(checkpoint.parent.glob(".part-*"))

    if number % 2 == 0:  # during a save: while its temporary file is there
        while not saving() and process.poll() is None:
            pass
    process.kill()
    process.communicate()
    killed = not (job(out) / "done.json").exists()
    print(f"kill {number}: during the run {killed}, during a save {saving()}")
    again = run(recipe, out, "--resume")
    assert again.exit_code == 0, again.output
    assert outputs(job(out)) == outputs(whole)
    assert not checkpoint.exists(), "the state of a finished job is removed"


@pytest.mark.parametrize(
    "options", [(), pytest.param(("--jobs", "2", "--seeds", "2"), marks=pytest.mark.long)]
)
@pytest.mark.filterwarnings("ignore:engine.checkpoint_every. 100000 is not below")
def test_an_interrupt_saves_and_says_how_to_go_on(
    options: tuple[str, ...], recipe: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    # With checkpoints far apart only the interrupt saves one.
    far = ("-s", "engine.checkpoint_every=100000")
    process = start(recipe, out, *far, *options)
    wait_for(job(out) / "metrics.csv", process)
    with (job(out) / "metrics.csv").open() as stream:
        while len(stream.readlines()) == 0 and process.poll() is None:
            time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 130, text
    assert "--resume" in text
    state = job(out) / "state" / "checkpoint.pt"
    assert state.exists(), text
    step = torch.load(state, weights_only=True)["step"]
    assert step > 0
    if options:  # jobs side by side, in processes of their own
        process = start(recipe, out, *far, *options, "--resume")
        text, _ = process.communicate(timeout=300)
        assert process.returncode == 0, text
    else:
        again = run(recipe, out, *far, "--resume")
        assert again.exit_code == 0, again.output
    assert outputs(job(out)) == outputs(whole)


SMALL = """
pipeline: classification
data: {name: digits, batch_size: 600}
backbone: {name: mlp, width: 16, depth: 2}
head: {name: nearest_etf}
optimizer: {name: sgd, lr: 0.05}
train: {iterations: 5, evaluate_every: 2, evaluation_samples: 50}
engine: {measure_steps: 0}
"""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose first job was stopped after its third step."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    recipe = out.with_name("recipe.yaml")
    recipe.write_text(SMALL)
    loaded = load(recipe)
    Session(loaded, list(loaded.variants), RunOptions(JobOptions("cpu"), out, jobs=1))
    asked = iter((False, False, True))
    with pytest.raises(KeyboardInterrupt):
        run_job(
            RunFolder(out),
            loaded.variants[0],
            0,
            options=JobOptions("cpu"),
            update=lambda *_: None,
            stopping=lambda: next(asked),
        )
    return out


@pytest.fixture
def run_of(stopped: Path, tmp_path: Path) -> Path:
    """A copy of it, to damage."""
    shutil.copytree(stopped, tmp_path / "run")
    return tmp_path / "run"


def resume(run_of: Path, stopped: Path, *more: str) -> Result:
    return run(stopped.with_name("recipe.yaml"), run_of, "--resume", *more)


def test_any_flipped_bit_of_a_checkpoint_is_noticed(stopped: Path, tmp_path: Path) -> None:
    content = (job(stopped) / "state" / "checkpoint.pt").read_bytes()
    file = tmp_path / "checkpoint.pt"
    for percent in range(101):
        changed = bytearray(content)
        changed[(len(content) - 1) * percent // 100] ^= 1 << percent % 8
        file.write_bytes(changed)
        with pytest.raises(DamagedFileError) as told:
            read_sealed(file)
        assert str(file) in str(told.value)
    file.write_bytes(content)
    saved = read_sealed(file)
    assert saved is not None and saved["step"] == 3
    assert torch.load(file, weights_only=True)["step"] == 3, "torch alone can read it too"


def spoil(how: str, file: Path) -> None:
    """Make something else of a checkpoint."""
    content = file.read_bytes()
    file.unlink()
    if how == "a folder":
        file.mkdir()
    elif how == "in no folder":
        file.parent.rmdir()
        file.parent.write_bytes(content)
    elif how == "a dangling link":
        file.symlink_to(file.with_name("nowhere"))
    else:
        middle = bytearray(content)
        middle[len(content) // 10] ^= 1
        file.write_bytes(
            {
                "empty": b"",
                "cut short": content[:500],
                "without its checksum": content[:-47],
                "binary": bytes(range(256)) * 40,
                "text": b"not a checkpoint\n",
                "a bit flipped": bytes(middle),
            }[how]
        )


@pytest.mark.parametrize(
    "how",
    ["empty", "cut short", "without its checksum", "binary", "text", "a bit flipped", "a folder",
     "a dangling link", "in no folder"],
)  # fmt: skip
def test_a_run_cannot_go_on_from_a_damaged_checkpoint(
    how: str, run_of: Path, stopped: Path
) -> None:
    file = job(run_of) / "state" / "checkpoint.pt"
    rows = (job(run_of) / "metrics.csv").read_bytes()
    spoil(how, file)
    result = resume(run_of, stopped)
    assert result.exit_code == 2, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    named = file.parent if how == "in no folder" else file
    assert len(errors) == 1 and str(named) in errors[0]
    assert "Traceback" not in result.output
    assert (job(run_of) / "metrics.csv").read_bytes() == rows, "nothing is lost"


def test_a_damaged_checkpoint_leaves_the_other_jobs_alone(run_of: Path, stopped: Path) -> None:
    file = job(run_of) / "state" / "checkpoint.pt"
    file.write_bytes(b"x")
    result = resume(run_of, stopped, "--seeds", "2")
    assert result.exit_code == 2, result.output
    assert str(file) in result.stderr
    assert (run_of / "runs" / "default" / "seed-1" / "done.json").exists()


class Full:
    """A file of which the system takes so many bytes, as a full disk does, whatever torch says of it."""

    def __init__(self, room: int) -> None:
        self.room = room

    def __enter__(self) -> None:
        resource = pytest.importorskip("resource")
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.room, self.before[1]))

    def __exit__(self, *_: object) -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


@pytest.mark.parametrize("room", [0, 500, 50_000, 400_100])
def test_a_state_that_the_disk_has_no_room_for_leaves_the_one_before(
    room: int, tmp_path: Path
) -> None:
    file = tmp_path / "state" / "checkpoint.pt"
    state = {"weights": torch.zeros(100_000)}
    write_sealed(file, functools.partial(torch.save, {"step": 1}))
    before = file.read_bytes()
    with Full(room), pytest.raises(DdnkitError) as told:
        write_sealed(file, functools.partial(torch.save, state))
    assert str(file) in str(told.value)
    assert os.strerror(errno.EFBIG) in str(told.value)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file], "room is given back"
    (file.parent / f".part-1-{file.name}").write_bytes(b"of a process that was killed")
    write_sealed(file, functools.partial(torch.save, state))
    assert list(file.parent.iterdir()) == [file]


FORGED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "a step before the first": ({"step": -5}, ("-5", "5 steps")),
    "no step at all": ({"step": 0}, ("step 0", "5 steps")),
    "a step after the last": ({"step": 10**9}, ("1000000000", "5 steps")),
    "the last step": ({"step": 5}, ("step 5", "5 steps")),
    "more rows than evaluations": ({"rows": 7}, ("7 rows",)),
    "fewer rows than none": ({"rows": -1}, ("-1 rows",)),
    "a step of text": ({"step": "3"}, ("step",)),
    "a step of a truth value": ({"step": True}, ("step",)),
    "rows of a fraction": ({"rows": 1.0}, ("rows",)),
    "a checksum of rows that is none": ({"rows_checksum": 5}, ("rows_checksum",)),
    "no model": ({"model": None}, ("model",)),
    "a model of other weights": ({"model": {"x": torch.zeros(3)}}, ("state_dict",)),
    "an optimiser of nothing": ({"optimizer": {}}, ()),
    "random states of text": ({"random": ["x"]}, ()),
    "too many processes": ({"random": [{}, {}]}, ("--devices 2",)),
    "another format": ({"format": 1}, ("format",)),
    "another seed": ({"plan": {"variant": "default", "seed": 1}}, ("seed",)),
}


@pytest.mark.parametrize("what", FORGED)
def test_a_checkpoint_that_does_not_fit_is_refused(what: str, run_of: Path, stopped: Path) -> None:
    """Even where its checksum is right."""
    change, told = FORGED[what]
    file = job(run_of) / "state" / "checkpoint.pt"
    saved = read_sealed(file)
    assert saved is not None
    write_sealed(file, functools.partial(torch.save, {**saved, **change}))
    result = resume(run_of, stopped)
    assert result.exit_code == 2, result.output
    (error,) = (line for line in result.stderr.splitlines() if line.startswith("error: "))
    assert str(file) in error and all(words in error for words in told), error


@pytest.mark.parametrize(
    "how", ["fewer rows", "other columns", "Windows line ends", "a folder", "gone"]
)
def test_a_checkpoint_does_not_go_with_other_rows(how: str, run_of: Path, stopped: Path) -> None:
    file = job(run_of) / "metrics.csv"
    content = file.read_bytes()
    file.unlink()
    if how == "a folder":
        file.mkdir()
    elif how != "gone":
        head, _, rows = content.partition(b"\n")
        file.write_bytes(
            {
                "fewer rows": head + b"\n",
                "other columns": head.replace(b"nc1", b"nc9") + b"\n" + rows,
                "Windows line ends": content.replace(b"\n", b"\r\n"),
            }[how]
        )
    kept = file.read_bytes() if file.is_file() else b""
    result = resume(run_of, stopped)
    assert result.exit_code == 2, result.output
    (error,) = (line for line in result.stderr.splitlines() if line.startswith("error: "))
    assert str(file) in error
    if how in ("other columns", "Windows line ends"):
        assert file.read_bytes() == kept, "nothing is lost"


def edit_a_row(how: str, file: Path) -> None:
    """Edit the first row of a ``metrics.csv``, that of step 2."""
    head, row, *rest = file.read_bytes().splitlines(keepends=True)
    cells = row.split(b",")
    cells[2] = b"0.5" if how == "another figure" else b" " + cells[2]
    edited = row[:-1] + b"\r\n" if how == "a Windows line end" else b",".join(cells)
    file.write_bytes(b"".join([head, edited, *rest]))


@pytest.mark.parametrize("how", ["another figure", "a space", "a Windows line end"])
def test_rows_that_were_edited_are_not_gone_on_from(how: str, run_of: Path, stopped: Path) -> None:
    file = job(run_of) / "metrics.csv"
    edit_a_row(how, file)
    edited = file.read_bytes()
    result = resume(run_of, stopped)
    assert result.exit_code == 2, result.output
    (error,) = (line for line in result.stderr.splitlines() if line.startswith("error: "))
    assert str(file) in error
    assert file.read_bytes() == edited, "nothing is lost"


def test_a_row_that_a_kill_left_beyond_the_checkpoint_is_written_anew(
    run_of: Path, stopped: Path
) -> None:
    file = job(run_of) / "metrics.csv"
    content = (job(stopped) / "metrics.csv").read_bytes()
    file.write_bytes(content + content.splitlines()[1].replace(b"2", b"4", 2) + b"\n")
    assert resume(run_of, stopped).exit_code == 0
    assert [line.split(",")[1] for line in file.read_text().splitlines()[1:]] == ["2", "4", "5"]
    assert file.read_bytes().startswith(content)


def test_a_checkpoint_of_a_version_that_knew_no_rows_is_gone_on_from(
    run_of: Path, stopped: Path
) -> None:
    file = job(run_of) / "state" / "checkpoint.pt"
    saved = read_sealed(file)
    assert saved is not None and saved.pop("rows_checksum")
    write_sealed(file, functools.partial(torch.save, saved))
    edit_a_row("another figure", job(run_of) / "metrics.csv")
    assert resume(run_of, stopped).exit_code == 0


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(
    recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    # Steps of this size overflow float32 within a few.
    wild = ("-s", "optimizer={name: sgd, lr: 1.0e+12}", "-s", "head={name: standard_unnormalised}")
    result = run(recipe, out, *wild)
    assert result.exit_code == 1
    (error,) = re.findall("^error: .*", result.output, re.MULTILINE)
    assert re.search(r"\bloss\b.* step \d.* epoch 1\b.*\blr\b", error)
    state = job(out) / "state" / "checkpoint.pt"
    if state.exists():
        weights = torch.load(state, weights_only=True)["model"].values()
        assert all(bool(w.isfinite().all()) for w in weights if torch.is_tensor(w))
    with (job(out) / "metrics.csv").open() as stream:
        assert all("nan" not in row for row in csv.reader(stream))
