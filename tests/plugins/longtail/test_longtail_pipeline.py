"""The long-tailed pipeline end to end: what it trains on, what it leaves, and its shipped recipes."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from ddnkit_longtail import MixedData, class_counts
from ddnkit_train import Dataset

from ddnkit import Job
from ddnkit.cli import main
from ddnkit.recipe.load import load
from ddnkit.recipe.recipe import Recipe

RECIPES = Path(__file__).parents[3] / "recipes"
TABLE_1 = ["cifar10_lt_resnet32", "cifar10_lt_resnet32_mixup"]
TABLE_2 = ["cifar10_lt_densenet", "cifar100_lt_resnet32", "cifar100_lt_densenet",
           "svhn_lt_resnet32", "svhn_lt_densenet", "stl10_lt_resnet32",
           "stl10_lt_densenet"]  # fmt: skip
OTHERS = ["cifar10_lt_nearest", "imagenet_lt_resnet50", "cub200_resnet", "fashion_mnist_lt_cnn",
          "layer_peeled"]  # fmt: skip
DIGITS = """
pipeline: long_tailed
data: {name: digits, batch_size: 50}
imbalance: {ratio: 0.1}
backbone: {name: mlp, width: 32, depth: 2}
head: {name: batch_norm_etf, e_h: 25}
loss: {name: dot_regression}
optimizer: {name: sgd, lr: 0.1}
metrics: {many_above: 60, few_below: 20}
train: {epochs: 6, evaluate_every: 3}
engine: {measure_steps: 0}
"""


def shipped(name: str, *overrides: str) -> Recipe:
    return load(RECIPES / f"{name}.yaml", overrides)


def ran(tmp_path: Path, *options: str, recipe: str = DIGITS) -> tuple[Result, Path]:
    file, out = tmp_path / "recipe.yaml", tmp_path / "out"
    file.write_text(recipe)
    return CliRunner().invoke(main, ["run", str(file), "--out", str(out), *options]), out


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    "options",
    [
        [],
        pytest.param(["-s", "mixup.alpha=1"], marks=pytest.mark.long),
        pytest.param(["-s", "head.name=nearest_etf"], marks=pytest.mark.long),
        pytest.param(["-s", "loss.name=weighted_cross_entropy"], marks=pytest.mark.long),
    ],
)
def test_a_long_tail_of_real_images_is_learned_and_measured_again(
    tmp_path: Path, options: list[str]
) -> None:
    result, out = ran(tmp_path, *options)
    assert result.exit_code == 0, result.output
    job = out / "runs" / "default" / "seed-0"
    classes = rows(job, "classes.csv")
    counts = [int(row["train_samples"]) for row in classes]
    assert counts == class_counts(10, counts[0], 0.1)
    last = rows(job, "metrics.csv")[-1]
    assert float(last["test_top1"]) > 50  # chance is 10 %
    hits = sum(float(row["test_top1"]) * int(row["test_samples"]) / 100 for row in classes)
    tested = sum(int(row["test_samples"]) for row in classes)
    assert float(last["test_top1"]) == pytest.approx(100 * hits / tested, abs=1e-4)
    many = [row for row in classes if int(row["train_samples"]) > 60]
    hits = sum(float(row["test_top1"]) * int(row["test_samples"]) / 100 for row in many)
    tested = sum(int(row["test_samples"]) for row in many)
    assert float(last["test_many"]) == pytest.approx(100 * hits / tested, abs=1e-4)
    assert (job / "model.pt2").is_file()
    again = CliRunner().invoke(main, ["evaluate", str(out)])
    assert again.exit_code == 0, again.output


def test_the_subset_is_the_same_for_every_seed_and_the_split_of_nothing_else() -> None:
    variant: Any = shipped("fashion_mnist_lt_cnn").variants[0].pipeline
    job: Any = {"variant": "v", "folder": Path(), "device": "cpu", "smoke": True,
                "record": print, "progress": print}  # fmt: skip
    one, other = (variant.load_data(Job(seed=seed, **job)) for seed in (0, 1))
    assert isinstance(one, Dataset)
    assert torch.equal(one.inputs, other.inputs)
    counts = torch.bincount(one.labels).tolist()
    assert counts == class_counts(10, counts[0], 0.01)
    mixed: Any = shipped("cifar10_lt_resnet32_mixup").variants[0].pipeline
    assert isinstance(mixed.load_data(Job(seed=0, **job)), MixedData)


def test_free_features_collapse_with_a_learned_classifier_and_not_with_an_etf(
    tmp_path: Path,
) -> None:
    """Theorem 1 and minority collapse, on a tenth of the shipped recipe."""
    angles, worst = {}, {}
    for variant in shipped("layer_peeled", "train.iterations=600", "data.samples=2000").variants:
        if variant.settings["imbalance"]["ratio"] not in (1, 0.005) or "dr" in variant.name:
            continue
        found: list[dict[str, Any]] = []
        folder = tmp_path / variant.name
        folder.mkdir()
        variant.pipeline.run(
            Job(variant=variant.name, seed=0, folder=folder, device="cpu", smoke=False,
                record=found.append, progress=lambda *_: None)
        )  # fmt: skip
        angles[variant.name], worst[variant.name] = found[-1]["rare_angle"], found[-1]["worst_cos"]
    etf = math.degrees(math.acos(-1 / 9))
    assert angles["method=lpm,ratio=1"] == pytest.approx(etf, abs=0.5)
    assert angles["method=lpm,ratio=0.005"] < 5
    for ratio in ("1", "0.005"):
        assert angles[f"method=dlpm,ratio={ratio}"] == pytest.approx(etf, abs=1e-3)
        assert worst[f"method=dlpm,ratio={ratio}"] > 0.999


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("imbalance.ratio=2", "imbalance.ratio"),
        ("imbalance.profil=step", "Did you mean 'profile'"),
        ("head.name=standard", "batch_norm_etf"),
        ("mixup.alpha=-1", "mixup.alpha"),
        ("imbalance.largest=5000", "class 0 is to keep 5000"),
        ("schedule.decay=steps", "milestones"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, option: str, text: str) -> None:
    result, _ = ran(tmp_path, "-s", option)
    assert result.exit_code in (1, 2)
    assert text in result.output
    assert "Traceback" not in result.output


def test_mixup_of_free_features_is_refused(tmp_path: Path) -> None:
    recipe = (RECIPES / "layer_peeled.yaml").read_text()
    only = ["--only", "method=lpm,ratio=1", "--seeds", "1"]
    result, _ = ran(tmp_path, "-s", "mixup.alpha=1", *only, recipe=recipe)
    assert result.exit_code != 0
    assert "mixup" in result.output


@pytest.mark.parametrize("name", [*TABLE_1, *TABLE_2])
def test_the_recipes_of_the_tables_have_the_paper_s_settings(name: str) -> None:
    recipe = shipped(name)
    assert recipe.seeds == (0, 1, 2)
    ratios = {variant.settings["imbalance"]["ratio"] for variant in recipe.variants}
    assert ratios == ({0.005, 0.01, 0.02, 0.1, 1} if name in TABLE_1 else {0.005, 0.01, 0.02})
    methods = {(v.settings["head"]["name"], v.settings["loss"]["name"]) for v in recipe.variants}
    expected = {
        ("standard_unnormalised", "cross_entropy"),
        ("standard_unnormalised", "weighted_cross_entropy"),
        ("batch_norm_etf", "cross_entropy"),
        ("batch_norm_etf", "dot_regression"),
    }
    assert methods == (expected if name in TABLE_1 else {m for m in expected if "d" in m[1][0]} | {
        ("standard_unnormalised", "cross_entropy")})  # fmt: skip
    for variant in recipe.variants:
        settings = variant.settings
        optimizer, schedule = settings["optimizer"], settings["schedule"]
        assert (optimizer["name"], optimizer["lr"], optimizer["momentum"]) == ("sgd", 0.1, 0.9)
        assert optimizer["weight_decay"] == 2e-4
        assert (schedule["warmup"], schedule["factor"]) == (5, 0.1)
        assert list(schedule["milestones"]) == [160, 180]
        assert (settings["train"]["epochs"], settings["data"]["batch_size"]) == (200, 128)
        assert settings["mixup"]["alpha"] == (0 if name == TABLE_1[0] else 1)
        assert settings["imbalance"]["profile"] == "exponential"


def test_every_recipe_of_the_plugin_is_known_here() -> None:
    found = {
        path.stem for path in RECIPES.glob("*.yaml") if "pipeline: long_tailed" in path.read_text()
    }
    assert found == {*TABLE_1, *TABLE_2, *OTHERS}


@pytest.mark.parametrize(
    ("name", "only"),
    [
        ("fashion_mnist_lt_cnn", ["nearest_balanced"]),
        pytest.param(
            "layer_peeled",
            ["method=lpm,ratio=1", "method=dlpm_dr,ratio=0.005"],
            marks=pytest.mark.long,
        ),
        # What takes most of the time is the start of a worker for each core.
        pytest.param("fashion_mnist_lt_cnn", [], marks=pytest.mark.long),
        pytest.param("layer_peeled", [], marks=pytest.mark.long),
    ],
)
def test_a_smoke_run_leaves_all_that_a_run_does(name: str, only: list[str], tmp_path: Path) -> None:
    asked = [str(RECIPES / f"{name}.yaml"), "--smoke", "--out", str(tmp_path / "out")]
    if only:
        asked += ["--jobs", "1", *(part for variant in only for part in ("--only", variant))]
    result = CliRunner().invoke(main, ["run", *asked])
    assert result.exit_code == 0, result.output
    for variant in only or [variant.name for variant in shipped(name).variants]:
        last = rows(tmp_path / "out" / "runs" / variant / "seed-0", "metrics.csv")[-1]
        assert math.isfinite(float(last["train_loss"]))
        assert math.isfinite(float(last["rare_angle"]))
