"""Two processes over gloo train what one trains on the same global batches."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from bounds import rounding
from safetensors.torch import load_file

RECIPE = """
pipeline: {pipeline}
data: {{name: {data}}}
backbone: {backbone}
head: {{name: {head}}}
optimizer: {optimizer}
train: {{iterations: 20, evaluate_every: 5}}
engine: {{precision: {precision}, measure_steps: 0, strategy: {strategy}}}
{more}
"""
AGD = "{name: agd, gain: 2}"
ADAMW = "{name: adamw, weight_decay: 0.1}"
SGD = "{name: sgd}"
MLP = "{name: mlp, width: 32, depth: 3}"
CNN = "{name: cnn, channels: [8, 16]}"
UNEVEN = "{name: cnn, channels: [8, 15]}"  # 8 and 7 rows of the last kernel
FREE = "{name: free_features, dimension: 32}"
# 1437 digits in 15 batches of 95 or 96 samples: shares are uneven.
DIGITS = "digits, batch_size: 97"
# 20 classes in batches of 13: most are on one process only, or on none.
SPARSE = "digit_pairs, batch_size: 13, train_per_class: 3, test_per_class: 1"
UFM = "free_features, classes: 10, samples: 101"
# Pairs from all over the batch are mixed, and the rarest class has a tenth of the samples.
MIXED = "imbalance: {ratio: 0.1}\nmixup: {alpha: 1}\nloss: {name: dot_regression}"
WEIGHTED = "imbalance: {ratio: 0.1}\nloss: {name: weighted_cross_entropy}"


def recipe_of(
    head: str,
    data: str = DIGITS,
    backbone: str = MLP,
    precision: str = "float64",
    strategy: str = "auto",
    optimizer: str = AGD,
    more: str = "",
) -> str:
    pipeline = "long_tailed" if more else "classification"
    return RECIPE.format(**locals())


CASES = [
    ("nearest_etf", DIGITS, MLP, "float64", "ddp", AGD),
    ("nearest_etf", DIGITS, CNN, "float64", "ddp", AGD),  # batch norm over both processes
    ("nearest_etf", SPARSE, MLP.replace("32", "100"), "float64", "ddp", AGD),
    ("standard", DIGITS, MLP, "float64", "ddp", AGD),
    ("fixed_etf", DIGITS, CNN, "float64", "ddp", AGD),
    ("nearest_etf", UFM, FREE, "float32", "ddp", AGD),
    ("nearest_etf", DIGITS, MLP, "float64", "fsdp", AGD),
    ("nearest_etf", DIGITS, UNEVEN, "float64", "fsdp", AGD),
    ("standard", DIGITS, UNEVEN, "float64", "fsdp", AGD),
    ("fixed_etf", DIGITS, MLP, "float64", "fsdp", AGD),
    ("standard", DIGITS, MLP, "float64", "fsdp", ADAMW),
    ("nearest_etf", UFM, FREE, "float32", "fsdp", AGD),  # weights of the backbone itself
    ("batch_norm_etf", DIGITS, CNN, "float64", "ddp", SGD, MIXED),
    ("nearest_etf, centre: classes", DIGITS, MLP, "float64", "ddp", AGD, MIXED),
    ("standard", DIGITS, MLP, "float64", "ddp", AGD, WEIGHTED),
]
#: Each shows with other heads or networks what one that is left shows as well.
LONG = {0, 3, 4, 5, 6, 8, 9, 13, 14}
#: The one that torchrun starts too.
BY_TORCHRUN = 6
TOO_SMALL = recipe_of(head="fixed_etf", data="digits, batch_size: 2", precision="auto")


OPTIMIZERS = {"agd": AGD, "sgd": SGD}


class Work(NamedTuple):
    """A job for the processes: to its end, or to its first chance to stop."""

    recipe: Path
    folder: Path
    how: str = "go"


@pytest.fixture(scope="module")
def recorded(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> dict[str, Work]:
    """What the tests that were asked for compare: each job run by one process and by two, by its name.

    All in as few processes as there can be: to start one takes longer than most of its jobs.
    """
    root = tmp_path_factory.mktemp("cases")
    works = {}

    def work(name: str, text: str, how: str = "go") -> Work:
        folder = root / name
        folder.mkdir()
        recipe = folder / "recipe.yaml"
        recipe.write_text(text)
        works[name] = Work(recipe, folder, how)
        return works[name]

    asked = " ".join(item.name for item in request.session.items)
    cases = [
        n
        for n in range(len(CASES))
        if f"[{named(n)}]" in asked or (n == BY_TORCHRUN and "torchrun" in asked)
    ]
    compared = [work(named(n), recipe_of(*CASES[n])) for n in cases]
    # Test samples, 180 and 179 of them, 179 at a time: two forward passes and one.
    uneven = recipe_of(head="fixed_etf", strategy="fsdp")
    compared += [work("uneven", uneven.replace("every: 5", "every: 20, evaluation_batch: 179"))]
    for name, optimizer in OPTIMIZERS.items():
        if f"bit_for_bit[{name}]" in asked:
            text = recipe_of("nearest_etf", DIGITS, UNEVEN, "float32", "fsdp", optimizer)
            work(f"whole {name}", text)
            work(f"stopped {name}", text, "stop")
    work("too small", TOO_SMALL)
    moved = [w._replace(how="moved") for w in compared if "float64" in w.recipe.read_text()]
    run_all(compared + moved, 1)
    run_all(list(works.values()), 2)
    return works


def bounds_of(folder: Path) -> tuple[list[float], float]:
    """What a training on several processes may be off by, at each step and in its rows, in float64.

    Each step rounds other sums, and every later one, every kink of a ReLU, amplifies it. How much, a
    third run shows, that began off by as much as one step rounds: as many times that as there are steps.
    """
    (alone,) = read(folder, 1)
    moved = torch.load(folder / "moved" / "recorded.pt", weights_only=True)
    pairs = [zip(one.values(), two.values(), strict=True)
             for one, two in zip(alone["steps"], moved["steps"], strict=True)]  # fmt: skip
    apart = [
        max(float((a - b).abs().max() / a.abs().max().clamp(min=1)) for a, b in step)
        for step in pairs
    ]
    so_far = [len(apart) * max(apart[: number + 1]) for number in range(len(apart))]
    rows = max(
        abs(row[name] - value) / max(1, abs(value))
        for one, row in zip(alone["rows"], moved["rows"], strict=True)
        for name, value in one.items()
        if value is not None
    )
    return so_far, len(apart) * rows


def named(case: int) -> str:
    return f"{CASES[case][0]}-{CASES[case][4]}-{case}"


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(n, id=named(n), marks=[pytest.mark.long] if n in LONG else [])
        for n in range(len(CASES))
    ],
)
def test_two_processes_train_as_one(case: int, recorded: dict[str, Work]) -> None:
    data, precision = CASES[case][1], CASES[case][3]
    folder = recorded[named(case)].folder
    (alone,) = read(folder, 1)
    first, second = read(folder, 2)
    if precision == "float32":  # free features, which no ReLU amplifies the rounding of
        steps, rows = [rounding(torch.float32, 101)] * 20, 100 * rounding(torch.float32, 101)
    else:
        steps, rows = bounds_of(folder)
    assert len(alone["steps"]) == len(first["steps"]) == len(second["steps"]) == 20
    for number, (one, mine, other) in enumerate(
        zip(alone["steps"], first["steps"], second["steps"], strict=True)
    ):
        assert any(name.startswith("grad.") for name in one)
        for name, value in one.items():
            if name == "loss":  # each process has its weighted share; their mean is the batch's
                found = (mine["loss"] + other["loss"]) / 2
            else:
                assert torch.equal(mine[name], other[name]), (number, name)
                found = mine[name]
            if name == "state.prox" and precision == "float32":
                # Only δ = 1e-3 holds U along 1, where no ETF sees it: rounding is 1/δ larger there.
                value, found = (u - u.mean(dim=-1, keepdim=True) for u in (value, found))
            scale = float(value.abs().max().clamp(min=1))
            assert float((found - value).abs().max()) <= steps[number] * scale, (number, name)
    for one, mine in zip(alone["rows"], first["rows"], strict=True):
        for name, value in one.items():
            if value is not None:
                assert mine[name] == pytest.approx(value, rel=rows, abs=rows), name
    assert not list((folder / "1-of-2").glob("*.csv")), "the first process alone writes"
    assert not list((folder / "1-of-2").glob("model.*")), "the first process alone writes"
    one, both = (load_file(folder / f"0-of-{n}" / "model.safetensors") for n in (1, 2))
    assert one.keys() == both.keys()
    for name, value in one.items():
        scale = float(value.abs().max().clamp(min=1))
        assert float((both[name] - value).abs().max()) <= steps[-1] * scale, name
    assert (folder / "0-of-2" / "model.pt2").exists() == (data != UFM)


@pytest.mark.long
@pytest.mark.parametrize("optimizer", ["agd", "sgd"])
def test_split_weights_go_on_bit_for_bit(optimizer: str, recorded: dict[str, Work]) -> None:
    whole, stopped = (recorded[f"{how} {optimizer}"] for how in ("whole", "stopped"))
    state = torch.load(stopped.folder / "0-of-2" / "state" / "checkpoint.pt", weights_only=True)
    assert state["step"] == 2
    assert state["model"]["backbone.layers.3.weight"].shape == (15, 8, 3, 3), "whole weights"
    assert not (stopped.folder / "0-of-2" / "model.safetensors").exists()
    run_all([stopped._replace(how="go")], 2)
    one, other = (load_file(w.folder / "0-of-2" / "model.safetensors") for w in (whole, stopped))
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(other[name], value), name


def test_shares_of_unlike_length_are_evaluated_with_split_weights(
    recorded: dict[str, Work],
) -> None:
    (alone,) = read(recorded["uneven"].folder, 1)
    first, _ = read(recorded["uneven"].folder, 2)
    _, bound = bounds_of(recorded["uneven"].folder)
    for name, value in alone["rows"][-1].items():
        if value is not None:
            assert first["rows"][-1][name] == pytest.approx(value, rel=bound, abs=bound), name


def test_compile_is_refused_with_split_weights(tmp_path: Path) -> None:
    from ddnkit_train.engine import Engine
    from ddnkit_train.settings import EngineSettings

    from ddnkit import InputError, Job

    job = Job(
        variant="v", seed=0, folder=tmp_path, device="cpu", smoke=False, rank=0, world=2,
        record=lambda row: None, progress=lambda *_: None,
    )  # fmt: skip
    with pytest.raises(InputError, match=r"engine\.compile .*fsdp"):
        Engine(EngineSettings(strategy="fsdp", compile="default"), job)


def test_a_single_number_cannot_be_split() -> None:
    from ddnkit_train.processes import split

    from ddnkit import InputError

    model = torch.nn.Module()
    model.backbone = torch.nn.Module()
    model.backbone.gain = torch.nn.Parameter(torch.ones(()))
    with pytest.raises(InputError, match="gain"):
        split(model, torch.device("cpu"))


def test_batches_of_less_than_two_samples_a_process_are_refused(recorded: dict[str, Work]) -> None:
    for refused in read(recorded["too small"].folder, 2):
        assert "data.batch_size" in refused["refused"]


@pytest.mark.long
def test_the_command_refuses_them_before_there_is_a_folder(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(TOO_SMALL)
    out = tmp_path / "run"
    command = [sys.executable, "-m", "ddnkit", "run", str(recipe), "--devices", "2"]
    done = subprocess.run(
        [*command, "--out", str(out)], capture_output=True, text=True, timeout=300
    )  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    assert "data.batch_size" in done.stderr
    assert not out.exists()


@pytest.mark.long
def test_torchrun_starts_a_run_too(recorded: dict[str, Work], tmp_path: Path) -> None:
    recipe, folder, _ = recorded[named(BY_TORCHRUN)]
    out = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port",
         str(free_port()), "-m", "ddnkit", "run", str(recipe), "--out", str(out)],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (out / "runs/default/seed-0/done.json").is_file()
    (alone,) = read(folder, 1)
    last = (out / "runs/default/seed-0/metrics.csv").read_text().splitlines()[-1].split(",")
    _, bound = bounds_of(folder)
    # Nine digits are written.
    assert float(last[2]) == pytest.approx(alone["rows"][-1]["train_loss"], rel=bound + 5e-9)


def test_a_process_that_dies_takes_its_job_with_it(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    text = recipe_of(head="fixed_etf", precision="auto")
    recipe.write_text(text.replace("iterations: 20", "iterations: 100000"))
    out = tmp_path / "run"
    command = [sys.executable, "-m", "ddnkit", "run", str(recipe), "--devices", "2"]
    process = subprocess.Popen(
        [*command, "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    metrics = out / "runs/default/seed-0/metrics.csv"
    wait_until(lambda: metrics.is_file() and metrics.read_text().count("\n") > 1)
    workers = workers_of(process.pid)
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert re.search(r"^error: .*(-9|default seed 0)", errors, re.MULTILINE)
    wait_until(lambda: not any(Path(f"/proc/{worker}/cmdline").exists() for worker in workers))


def workers_of(parent: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(parent)], capture_output=True, text=True)
    return sorted(int(line) for line in found.stdout.split())


def wait_until(condition: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def run_all(works: list[Work], world: int) -> None:
    port = str(free_port())
    script = str(Path(__file__).with_name("two_processes.py"))
    jobs = [str(part) for work in works for part in (work.how, work.recipe, work.folder)]
    processes = []
    for rank in range(world):
        environment = {
            **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0",
            "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        }  # fmt: skip
        command = [sys.executable, script, str(rank), str(world), *jobs]
        processes.append(subprocess.Popen(command, env=environment))
    assert [process.wait(timeout=600) for process in processes] == [0] * world


def read(folder: Path, world: int) -> list[dict[str, Any]]:
    files = [folder / f"{rank}-of-{world}" / "recorded.pt" for rank in range(world)]
    return [torch.load(file, weights_only=True) for file in files]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
