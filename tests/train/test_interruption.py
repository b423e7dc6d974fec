"""A run that is killed, interrupted or poisoned, with real processes and real signals.

``DDNKIT_KILLS=20`` kills as many runs; the suite kills a few.
"""

from __future__ import annotations

import csv
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

RECIPE = """
pipeline: classification
data: {name: digits, batch_size: 128}
backbone: {name: mlp, width: 64, depth: 3}
head: {name: nearest_etf}
optimizer: {name: agd, gain: 2}
train: {epochs: 15, evaluate_every: 3}
engine: {checkpoint_every: 1}
"""
#: Rounding depends on the number of threads, so all runs here have one.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
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
    process = start(recipe, out)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    return job(out)


def start(recipe: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ddnkit", "run", str(recipe), "--out", str(out), *more]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **ONE_THREAD},
        # A shell may have had its children ignore interrupts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


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
    part = checkpoint.with_suffix(".part")
    if number % 2 == 0:  # during a save: while its temporary file is there
        while not part.exists() and process.poll() is None:
            pass
    process.kill()
    process.communicate()
    killed = not (job(out) / "done.json").exists()
    print(f"kill {number}: during the run {killed}, during a save {part.exists()}")
    again = start(recipe, out, "--resume")
    text, _ = again.communicate(timeout=300)
    assert again.returncode == 0, text
    assert outputs(job(out)) == outputs(whole)
    assert not checkpoint.exists(), "the state of a finished job is removed"


@pytest.mark.parametrize(
    "options", [(), pytest.param(("--jobs", "2", "--seeds", "2"), marks=pytest.mark.long)]
)
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
    again = start(recipe, out, *far, *options, "--resume")
    text, _ = again.communicate(timeout=300)
    assert again.returncode == 0, text
    assert outputs(job(out)) == outputs(whole)


def test_a_run_cannot_go_on_from_a_damaged_checkpoint(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(recipe, out)
    state = job(out) / "state" / "checkpoint.pt"
    wait_for(state, process)
    process.kill()
    process.communicate()
    state.write_bytes(state.read_bytes()[:500])
    again = start(recipe, out, "--resume")
    text, _ = again.communicate(timeout=300)
    assert again.returncode == 1
    assert "checkpoint.pt: cannot go on from it" in text and "Remove the file" in text


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(
    recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    # Steps of this size overflow float32 within a few.
    wild = ("-s", "optimizer={name: sgd, lr: 1.0e+12}", "-s", "head={name: standard_unnormalised}")
    process = start(recipe, out, *wild)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "the training loss is not finite at step" in text
    assert "epoch 1" in text and "training samples" in text
    assert "Likely cause" in text and "lr" in text
    state = job(out) / "state" / "checkpoint.pt"
    if state.exists():
        weights = torch.load(state, weights_only=True)["model"].values()
        assert all(bool(w.isfinite().all()) for w in weights if torch.is_tensor(w))
    with (job(out) / "metrics.csv").open() as stream:
        assert all("nan" not in row for row in csv.reader(stream))
