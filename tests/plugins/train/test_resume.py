"""Whatever a recipe is made of: stopped at a drawn step and resumed, it is the undisturbed training.

The recipes are drawn, seeded by their number, from the shipped heads, optimisers, schedules, samplers,
losses, augmentations, precisions and the small backbones. ``DDNKIT_RECIPES=500`` draws as many.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import random
import signal
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ddnkit_train import classification, export
from PIL import Image
from safetensors.torch import load_file
from training_stand_ins import start

from ddnkit import registry
from ddnkit.recipe.load import load
from ddnkit.run.folder import RunFolder
from ddnkit.run.job import run_job
from ddnkit.run.options import JobOptions

RECIPES = int(os.environ.get("DDNKIT_RECIPES", "64"))
#: So many of them are drawn in every run of the suite.
FEW = 8
#: Of these a process is killed, by a signal that nothing can catch.
KILLED = (1, 5, 23, 36)

HEADS = ("nearest_etf", "standard", "batch_norm_etf", "fixed_etf", "standard_unnormalised")
OPTIMIZERS = ("sgd", "adamw", "adam", "agd")
SCHEDULES = ("cosine", "steps", "warmup", "none")
LOSSES = ("cross_entropy", "dot_regression", "weighted_cross_entropy", "mean_squared_error")
DATA = ("digits", "fashion_mnist", "mnist", "free_features", "digit_pairs", "image_folder")
PRECISIONS = ("float32", "bf16", "float64", "auto")
ETF_HEADS = ("nearest_etf", "batch_norm_etf", "fixed_etf")


def drawn(number: int, files: Path) -> dict[str, Any]:
    """The recipe of a number; neighbours differ in most of their components."""
    draw = random.Random(number)
    optimizer = OPTIMIZERS[number % len(OPTIMIZERS)]
    recipe: dict[str, Any] = {
        "pipeline": draw.choice(("classification", "long_tailed")),
        "head": drawn_head(HEADS[number % len(HEADS)], optimizer, draw),
        "optimizer": drawn_optimizer(optimizer, draw),
        "engine": {
            "precision": PRECISIONS[number % 7 % len(PRECISIONS)],
            "checkpoint_every": draw.choice((1, 2, 1000)),
            "measure_steps": 0,
            "channels_last": draw.choice((True, False)),
            "tensorboard": False,
        },
    }
    recipe |= drawn_length(draw)
    if optimizer != "agd":
        recipe["schedule"] = drawn_schedule(SCHEDULES[number // 2 % len(SCHEDULES)], draw)
    loss = draw.choice(LOSSES)
    if loss == "dot_regression" and recipe["head"]["name"] not in ETF_HEADS:
        loss = "cross_entropy"
    recipe["loss"] = {"name": loss}
    if loss == "cross_entropy":
        recipe["loss"]["label_smoothing"] = draw.choice((0.0, 0.1))
    data = DATA[number % 11 % len(DATA)]
    recipe["data"] = {"name": data, **drawn_data(data, files, draw)}
    recipe["data"] |= {
        "batch_size": draw.choice((24, 40, "full")),
        "sampler": draw.choice(("stratified", "shuffled")),
    }
    recipe["backbone"] = drawn_backbone(data, optimizer, draw)
    if number >= FEW and number % 5 == 0 and data in ("mnist", "fashion_mnist", "image_folder"):
        affine = optimizer != "agd" and draw.random() < 0.5
        recipe["backbone"] = {"name": "resnet32", "affine": affine}
        recipe["data"]["batch_size"] = 24
    if recipe["pipeline"] == "long_tailed":
        recipe["imbalance"] = {"ratio": draw.choice((None, 0.2)), "order": "random"}
        alpha = 0.0 if data == "free_features" else draw.choice((0.0, 0.4, 1.0))
        recipe["mixup"] = {"alpha": alpha}
    else:
        recipe["fidelity"] = draw.choice(("paper", "published_code"))
    return recipe


def drawn_length(draw: random.Random) -> dict[str, Any]:
    length: dict[str, Any] = {"iterations": draw.randint(4, 7)}
    return {
        "train": {
            **length,
            "evaluate_every": draw.choice((2, 3, 50)),
            "evaluate_at": [1],
            "evaluation_samples": draw.choice((30, None)),
        }
    }


def drawn_head(name: str, optimizer: str, draw: random.Random) -> dict[str, Any]:
    head: dict[str, Any] = {"name": name}
    norms = ("none", "plain") if optimizer == "agd" else ("none", "plain", "affine")
    if name in ETF_HEADS:
        head["batch_norm"] = draw.choice(norms)
    if name in ("nearest_etf", "fixed_etf"):
        head["evaluation_mean"] = draw.choice(("running", "last_batch", "test_batch"))
    if name == "nearest_etf":
        head["differentiate"] = draw.choice((True, False))
        head["centre"] = draw.choice(("samples", "classes", "none"))
        head["initial"] = draw.choice(("canonical", "haar"))
        head["means"] = {
            "absent": draw.choice(("keep", "zero", "global_mean")),
            "normalise": draw.choice(("after", "before")),
            "weight": draw.choice(("equal", "samples")),
        }
    if name in ("batch_norm_etf", "fixed_etf"):
        head["direction"] = draw.choice(("canonical", "haar"))
    return head


def drawn_optimizer(name: str, draw: random.Random) -> dict[str, Any]:
    if name == "agd":
        return {"name": name, "gain": 2}
    options: dict[str, Any] = {"name": name, "weight_decay": draw.choice((0.0, 1e-3))}
    if name == "sgd":
        momentum = draw.choice((0.0, 0.9))
        options |= {"momentum": momentum, "nesterov": momentum > 0 and draw.random() < 0.5}
    return {**options, "lr": 0.05 if name == "sgd" else 2e-3}


def drawn_schedule(name: str, draw: random.Random) -> dict[str, Any]:
    if name == "steps":
        return {
            "decay": "steps",
            "milestones": [1, 3],
            "factor": 0.3,
            "warmup": draw.choice((0, 1)),
        }
    if name == "cosine":
        return {"decay": "cosine", "warmup": draw.choice((0, 2))}
    return {"warmup": 3} if name == "warmup" else {}


def drawn_data(name: str, files: Path, draw: random.Random) -> dict[str, Any]:
    if name == "free_features":
        return {"classes": 5, "samples": 60}
    if name == "digit_pairs":
        return {"train_per_class": 1, "test_per_class": 1}
    if name == "digits":
        return {"standardise": draw.choice(("global", "pixel")), "test_fraction": 0.9}
    if name == "image_folder":
        return {"root": str(files / name), "image_size": 16, "resize": 20, "workers": 0}
    augmentation = {"flip": draw.choice((True, False)), "crop": draw.choice((0, 2))}
    return {"root": str(files / "mnist"), **augmentation, "rotation": draw.choice((0, 10))}


def drawn_backbone(data: str, optimizer: str, draw: random.Random) -> dict[str, Any]:
    if data == "free_features":
        return {"name": "free_features", "dimension": draw.choice((4, 8))}
    least = 100 if data == "digit_pairs" else 12
    if draw.random() < 0.5:
        return {"name": "cnn", "channels": [8, least]}
    bias = optimizer != "agd" and draw.random() < 0.5
    return {"name": "mlp", "width": least + draw.choice((0, 8)), "depth": 2, "bias": bias}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few images in the formats of MNIST and of an image folder."""
    root, pixels = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    (root / "mnist").mkdir()
    for split, count in (("train", 60), ("t10k", 20)):
        images = pixels.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        for what, array in ((f"{split}-images-idx3", images), (f"{split}-labels-idx1", labels)):
            header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
            content = gzip.compress(header + array.tobytes())
            (root / "mnist" / f"{what}-ubyte.gz").write_bytes(content)
    for split, count in (("train", 10), ("val", 2)):
        for name in ("ant", "bee", "cat"):
            folder = root / "image_folder" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                array = pixels.integers(0, 256, (24 + i, 30 - i, 3), dtype=np.uint8)
                Image.fromarray(array).save(folder / f"{i}.png")
    return root


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Learning rates and loss of every step that is taken, by step."""
    taken: list[tuple[Any, ...]] = []
    take = classification._Training._step

    def recorded(self: Any, step: int, *args: Any) -> None:
        take(self, step, *args)
        groups = [group.get("lr") for group in self.optimizer.param_groups]
        taken.append((step, *groups, self.losses.losses[-1]))

    monkeypatch.setattr(classification._Training, "_step", recorded)
    return taken


@pytest.fixture(autouse=True)
def _weights_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing a program of each model would take most of the time."""

    def untraced(*_: Any) -> Any:
        raise export._UnfitError("not asked for")

    monkeypatch.setattr(export, "_program", untraced)


def session(recipe: Path, out: Path, stop_after: int | None = None) -> Path:
    """Run the job of a recipe, or go on with it, for so many steps; its folder."""
    variant, folder = load(recipe).variants[0], RunFolder(out)
    asked = iter(range(1, 10_000))
    try:
        ended = run_job(
            folder,
            variant,
            0,
            options=JobOptions("cpu"),
            update=lambda *_: None,
            stopping=lambda: next(asked) == stop_after,
        )
    except KeyboardInterrupt:
        assert stop_after
    else:
        assert ended.kind == "done", ended.error
        assert not stop_after
    return folder.job(variant.name, 0).path


def left(folder: Path) -> dict[str, str]:
    """Checksums of what a job leaves."""
    found = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("metrics.csv", "margins.csv", "classes.csv")
    }
    weights = hashlib.sha256()
    for name, tensor in sorted(load_file(folder / "model.safetensors").items()):
        weights.update(name.encode() + str(tensor.dtype).encode() + tensor.numpy().tobytes())
    return {**found, "weights": weights.hexdigest()}


@pytest.mark.parametrize(
    "number",
    [pytest.param(n, marks=[pytest.mark.long] if n >= FEW else []) for n in range(RECIPES)],
)
def test_a_resumed_training_is_the_undisturbed_one(
    number: int, files: Path, tmp_path: Path, rates: list[tuple[Any, ...]]
) -> None:
    file, content = tmp_path / "recipe.yaml", drawn(number, files)
    file.write_text(yaml.safe_dump(content))
    whole = left(session(file, tmp_path / "whole"))
    undisturbed = list(rates)
    total = content["train"]["iterations"]
    assert [step for step, *_ in undisturbed] == list(range(1, total + 1))
    if "lr" in content["optimizer"]:
        full, pipeline = content["optimizer"]["lr"], load(file).variants[0].pipeline
        factors = [pipeline.schedule.at(step, 1, total) for step in range(1, total + 1)]  # type: ignore[attr-defined]
        assert [lr for _, lr, _ in undisturbed] == [full * factor for factor in factors]
    draw = random.Random(-number)
    first = draw.randint(1, total - 1)
    rates.clear()
    session(file, tmp_path / "stopped", stop_after=first)
    if first < total - 1 and draw.random() < 0.3:  # and stopped once more
        session(file, tmp_path / "stopped", stop_after=draw.randint(1, total - 1 - first))
    again = session(file, tmp_path / "stopped")
    assert rates == undisturbed, content
    assert left(again) == whole, content


@pytest.mark.long
@pytest.mark.parametrize("number", KILLED)
def test_so_is_one_whose_process_was_killed(number: int, files: Path, tmp_path: Path) -> None:
    file, content = tmp_path / "recipe.yaml", drawn(number, files)
    content["engine"]["checkpoint_every"] = 1
    content["train"]["iterations"] = 20
    file.write_text(yaml.safe_dump(content))
    out = tmp_path / "killed"
    folder = out / "runs" / "default" / "seed-0"
    checkpoint, step = folder / "state" / "checkpoint.pt", random.Random(number).randint(1, 12)
    process = start(file, out)
    end = time.monotonic() + 60
    seen: set[int] = set()
    while len(seen) < step and process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(FileNotFoundError):  # not yet, or not any more
            seen.add(checkpoint.stat().st_mtime_ns)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert seen and process.returncode == -signal.SIGKILL
    resumed = start(file, out, "--resume")
    text, _ = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, text
    assert left(folder) == left(session(file, tmp_path / "whole")), content


def test_every_shipped_component_is_drawn(files: Path) -> None:
    recipes = [drawn(number, files) for number in range(64)]
    for section, group in (("head", "heads"), ("optimizer", "optimizers"), ("loss", "losses")):
        found = {name: registry.get(group, name) for name in registry.names(group)}  # type: ignore[call-overload]
        shipped = {name for name, kind in found.items() if kind.__module__.startswith("ddnkit_")}
        assert {recipe[section]["name"] for recipe in recipes} == shipped
    first = recipes[:FEW]
    assert {recipe["head"]["name"] for recipe in first} == set(HEADS)
    assert {recipe["optimizer"]["name"] for recipe in first} == set(OPTIMIZERS)
    assert sum(bool(recipe.get("schedule")) for recipe in first) >= 4
    assert {recipe["engine"]["precision"] for recipe in first} == set(PRECISIONS)
    assert {recipe["data"]["name"] for recipe in recipes} == set(DATA)
    assert {recipe["data"]["sampler"] for recipe in recipes} == {"stratified", "shuffled"}
    assert {recipe["backbone"]["name"] for recipe in recipes} == {
        "mlp", "cnn", "resnet32", "free_features",
    }  # fmt: skip
    assert any(recipe.get("mixup", {}).get("alpha") for recipe in recipes)
