"""The published figures, and the tables that set them beside a run's own."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml
from ddnkit_collapse import published_figures, published_names
from ddnkit_train.settings import MLP, Digits
from training_stand_ins import pipeline

from ddnkit import InputError, Table

STANDARD = {"name": "standard", "temperature": 5.0, "centre": False}
FIXED = {"name": "fixed_etf", "temperature": 5.0, "direction": "canonical", "centre": True,
         "batch_norm": "none"}  # fmt: skip
NEAREST = {
    "name": "nearest_etf", "temperature": 5.0, "delta": 1e-3, "solver": "procrustes",
    "backward": "auto", "differentiate": True, "centre": "samples", "batch_norm": "none",
    "means": {"policy": "paper", "alpha": None, "normalise": "after", "weight": "equal"},
}  # fmt: skip


def test_the_figures_are_those_printed() -> None:
    figures = published_figures("cifar100_resnet50")
    assert str(figures.top1["train", 50, "nearest_etf"]) == "72.15 [70.1, 74.1]"
    assert str(figures.top1["test", 200, "standard"]) == "51.29 [50.4, 51.9]"
    assert figures.memory is not None
    assert figures.memory.nearest_etf == 18.9
    assert figures.differentiates


def test_every_experiment_is_whole() -> None:
    names = published_names()
    assert len(names) == 15
    for name in names:
        figures = published_figures(name)
        assert len(figures.top1) in (0, 12)
        assert figures.top1 or figures.memory
    assert published_figures("ufm1000").memory.nearest_etf is None  # type: ignore[union-attr]
    # Either order of the words: the paper uses both.
    assert published_figures("resnet18_cifar10").top1 == published_figures("cifar10_resnet18").top1
    assert published_figures("imagenet_resnet50").memory.standard == 27.5  # type: ignore[union-attr]
    assert not published_figures("imagenet_resnet50").differentiates


def test_one_median_was_printed_outside_of_its_range() -> None:
    odd = [
        (name, at)
        for name in published_names()
        for at, spread in published_figures(name).top1.items()
        if not spread.consistent
    ]
    assert odd == [("stl10_resnet50", ("train", 50, "standard"))]


def test_an_unknown_experiment_names_the_nearest() -> None:
    with pytest.raises(InputError, match="'cifar10_resnet8'"):
        published_figures("cifar10_resnet8")


SECTIONS: dict[str, Any] = {"data": Digits(), "backbone": MLP(width=16, depth=2)}


def test_a_recipe_may_name_an_experiment() -> None:
    assert pipeline({"epochs": 1}, **SECTIONS).published is None
    assert pipeline({"epochs": 1}, published="ufm10", **SECTIONS).published == "ufm10"
    with pytest.raises(pydantic.ValidationError, match="'ufm100'"):
        pipeline({"epochs": 1}, published="ufm-100", **SECTIONS)


def test_validating_it_and_making_tables_cost_no_torch(tmp_path: Path) -> None:
    write_run(tmp_path, {"standard": (STANDARD, "ufm10")})
    code = (
        "import sys; from pathlib import Path; from ddnkit_train.settings import Classification\n"
        "Classification.model_construct().tables(Path(sys.argv[1]))\n"
        "from ddnkit_collapse.published import published_figures; published_figures('ufm10')\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def write_run(
    folder: Path,
    variants: dict[str, tuple[dict[str, Any], str | None]],
    epochs: tuple[float, ...] = (),
    resources: tuple[dict[str, Any], ...] = (),
) -> None:
    """A run folder with 90 + place % of accuracy at each of ``epochs``."""
    with (folder / "summary.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["variant", "metric", "epoch", "step", "median", "min", "max", "n"])
        for place, name in enumerate(variants):
            for metric in ("train_top1", "test_top1"):
                for epoch in epochs:
                    value = 90 + place
                    writer.writerow([name, metric, epoch, 8, value, value - 1, value + 0.25, 5])
    for name, (head, published) in variants.items():
        path = folder / "runs" / name
        path.mkdir(parents=True)
        settings = {"pipeline": "classification", "head": head, "published": published}
        (path / "settings.yaml").write_text(yaml.safe_dump(settings))
        for seed, content in enumerate(resources):
            (path / f"seed-{seed}").mkdir()
            (path / f"seed-{seed}" / "resources.json").write_text(json.dumps(content))


def tables(folder: Path) -> list[Table]:
    made: list[Table] = pipeline({"epochs": 1}, **SECTIONS).tables(folder)
    for table in made:
        assert len({len(row) for row in table.rows}) == 1
    return made


def test_accuracies_stand_beside_the_published_ones(tmp_path: Path) -> None:
    heads = {"standard": STANDARD, "fixed_etf": FIXED, "nearest_etf": NEAREST}
    write_run(
        tmp_path, {k: (h, "stl10_resnet50") for k, h in heads.items()}, (49.0, 50.0, 199.9, 201.0)
    )
    train, test = tables(tmp_path)
    assert train.rows == (
        ("train", "epoch 50, ours", "epoch 50, published", "epoch 200, ours",
         "epoch 200, published"),
        ("standard", "90.00 [89.0, 90.2]", "83.86 [84.5, 90.7]", "not run", "99.42 [99.0, 99.9]"),
        ("fixed_etf", "91.00 [90.0, 91.2]", "86.76 [77.8, 86.8]", "not run", "98.38 [98.1, 99.3]"),
        ("nearest_etf", "92.00 [91.0, 92.2]", "93.54 [91.3, 95.3]", "not run",
         "99.72 [98.0, 99.9]"),
    )  # fmt: skip
    assert "Table 1, stl10_resnet50" in train.note
    assert "83.86" in train.note
    assert test.rows[3][2] == "57.56 [56.4, 59.2]"
    assert "Table 2" in test.note
    assert "as printed" not in test.note


@pytest.mark.parametrize(
    "head",
    [
        {**STANDARD, "temperature": 10.0},
        {**STANDARD, "centre": True},
        {**STANDARD, "name": "standard_unnormalised"},
        {**FIXED, "direction": "haar"},
        {**FIXED, "centre": False},
        {**FIXED, "batch_norm": "plain"},
        {**NEAREST, "centre": "classes"},
        {**NEAREST, "means": {"policy": "paper", "weight": "samples"}},
        {**NEAREST, "delta": 0.0},
        {**NEAREST, "differentiate": False},
        {**NEAREST, "means": {"policy": "constant", "alpha": 0.1}},
    ],
)
def test_a_head_that_the_paper_has_not_is_listed_alone(
    tmp_path: Path, head: dict[str, Any]
) -> None:
    write_run(tmp_path, {"own": (head, "cifar10_vgg13")}, (50.0, 200.0))
    row = tables(tmp_path)[0].rows[1]
    assert row == ("own", "90.00 [89.0, 90.2]", "–", "90.00 [89.0, 90.2]", "–")


@pytest.mark.parametrize(("differentiate", "cell"), [(True, "–"), (False, "74.09 [73.8, 74.5]")])
def test_on_imagenet_the_paper_did_not_differentiate(
    tmp_path: Path, differentiate: bool, cell: str
) -> None:
    head = {**NEAREST, "differentiate": differentiate, "solver": "trust_regions"}
    write_run(tmp_path, {"nearest": (head, "imagenet_resnet50")})
    assert tables(tmp_path)[0].rows[1][2] == cell


def test_a_run_that_names_no_experiment_has_no_such_tables(tmp_path: Path) -> None:
    write_run(tmp_path, {"standard": (STANDARD, None)}, (50.0,))
    assert tables(tmp_path) == []


def resources(forward: float, memory: float) -> dict[str, Any]:
    return {
        "forward_ms": forward, "backward_ms": 2.5, "step_ms": 10.0, "peak_memory_mb": memory,
        "memory_of": "device", "steps": 20, "device": "a GPU", "precision": "bf16",
    }  # fmt: skip


def test_what_a_step_costs_is_the_median_over_seeds(tmp_path: Path) -> None:
    heads = {
        "standard": STANDARD,
        "nearest_etf": NEAREST,
        "without": {**NEAREST, "differentiate": False},
        "own": {"name": "mine"},
    }
    measured = (resources(1.0, 1024.0), resources(4.0, 4096.0), resources(3.0, 2048.0))
    write_run(tmp_path, {k: (h, "ufm1000") for k, h in heads.items()}, (1.0,), measured)
    (table,) = tables(tmp_path)
    assert table.title == "What a step costs"
    assert table.rows[0][-1] == "published GPU memory (GB)"
    assert table.rows[1] == ("standard", "3", "2.5", "10", "2", "3", "1.9")
    assert [row[-1] for row in table.rows[2:]] == ["did not fit", "2.9", "–"]
    assert "20 steps" in table.note
    assert "Table 3" in table.note


def test_costs_need_no_published_experiment(tmp_path: Path) -> None:
    own = {**resources(1.0, 512.0), "memory_of": "process"}
    write_run(tmp_path, {"a": (STANDARD, None), "b": (FIXED, "stl10_vgg13")}, (), (own,))
    table = tables(tmp_path)[-1]
    assert table.rows[0][-1] == "seeds"
    assert table.rows[1] == ("a", "1", "2.5", "10", "0.5", "1")
    assert "of the whole process, data included" in table.note
    assert "Table 3" not in table.note
