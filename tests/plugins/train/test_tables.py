"""The published figures, and the tables that set them beside a run's own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import ddnkit_collapse
import pydantic
import pytest
import yaml
from ddnkit_gnc import Experiment, GuidingNeuralCollapse, experiment, experiment_names
from ddnkit_train.settings import MLP, Digits
from training_stand_ins import pipeline

from ddnkit import InputError, Table
from ddnkit.recipe.recipe import Recipe, Variant
from ddnkit.run.summary import Summary, SummaryRow
from ddnkit.run.table import beside_published

STANDARD = {"name": "standard", "temperature": 5.0, "centre": False}
FIXED = {"name": "fixed_etf", "temperature": 5.0, "direction": "canonical", "centre": True,
         "batch_norm": "none"}  # fmt: skip
NEAREST = {
    "name": "nearest_etf", "temperature": 5.0, "delta": 1e-3, "solver": "procrustes",
    "backward": "auto", "differentiate": True, "centre": "samples", "batch_norm": "none",
    "means": {"policy": "paper", "alpha": None, "normalise": "after", "weight": "equal"},
}  # fmt: skip


def test_the_figures_are_those_printed() -> None:
    figures = experiment("cifar100_resnet50")
    assert str(figures.top1["train", 50, "nearest_etf"]) == "72.15 [70.1, 74.1]"
    assert str(figures.top1["test", 200, "standard"]) == "51.29 [50.4, 51.9]"
    assert figures.memory is not None
    assert figures.memory.nearest_etf == 18.9
    assert figures.differentiates


def test_every_experiment_is_whole() -> None:
    names = experiment_names()
    assert len(names) == 15
    for name in names:
        figures = experiment(name)
        assert len(figures.top1) in (0, 12)
        assert figures.top1 or figures.memory
    assert experiment("ufm1000").memory.nearest_etf is None  # type: ignore[union-attr]
    # Either order of the words: the paper uses both.
    assert experiment("resnet18_cifar10").top1 == experiment("cifar10_resnet18").top1
    assert experiment("imagenet_resnet50").memory.standard == 27.5  # type: ignore[union-attr]
    assert not experiment("imagenet_resnet50").differentiates


def test_one_median_was_printed_outside_of_its_range() -> None:
    odd = [
        (name, at)
        for name in experiment_names()
        for at, spread in experiment(name).top1.items()
        if not spread.consistent
    ]
    assert odd == [("stl10_resnet50", ("train", 50, "standard"))]


def test_an_unknown_experiment_names_the_nearest() -> None:
    with pytest.raises(InputError, match="'cifar10_resnet8'"):
        experiment("cifar10_resnet8")


SECTIONS: dict[str, Any] = {"data": Digits(), "backbone": MLP(width=16, depth=2)}


def test_a_recipe_may_name_an_experiment() -> None:
    assert pipeline({"epochs": 1}, **SECTIONS).paper is None
    assert GuidingNeuralCollapse(experiment="ufm10").experiment == "ufm10"
    with pytest.raises(pydantic.ValidationError, match="'ufm100'"):
        GuidingNeuralCollapse(experiment="ufm-100")


@pytest.mark.parametrize("name", ["PublishedFigures", "published_figures", "published_names"])
def test_names_that_have_moved_are_found_for_one_release(name: str) -> None:
    with pytest.warns(DeprecationWarning, match="ddnkit_gnc"):
        found = getattr(ddnkit_collapse, name)
    assert found in (Experiment, experiment, experiment_names)


def test_validating_it_and_making_tables_cost_no_torch(tmp_path: Path) -> None:
    write_run(tmp_path, {"standard": (STANDARD, "ufm10")})
    code = (
        "import sys; from pathlib import Path; from ddnkit_train.settings import Classification\n"
        "Classification.model_construct().tables(Path(sys.argv[1]))\n"
        "from ddnkit_gnc import experiment; experiment('ufm10')\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def write_run(
    folder: Path,
    variants: dict[str, tuple[dict[str, Any], str | None]],
    resources: tuple[dict[str, Any], ...] = (),
) -> None:
    """A run folder with what a step of its jobs cost."""
    (folder / "summary.csv").write_text("variant,metric\n")
    for name, (head, printed) in variants.items():
        path = folder / "runs" / name
        path.mkdir(parents=True)
        paper = {"name": "guiding_neural_collapse", "experiment": printed}
        settings = {"pipeline": "classification", "head": head, "paper": printed and paper}
        (path / "settings.yaml").write_text(yaml.safe_dump(settings))
        for seed, content in enumerate(resources):
            (path / f"seed-{seed}").mkdir()
            (path / f"seed-{seed}" / "resources.json").write_text(json.dumps(content))


def tables(folder: Path) -> list[Table]:
    made: list[Table] = pipeline({"epochs": 1}, **SECTIONS).tables(folder)
    for table in made:
        assert len({len(row) for row in table.rows}) == 1
    return made


def beside(
    heads: dict[str, dict[str, Any]], name: str | None, epochs: tuple[float, ...] = ()
) -> list[Table]:
    """The tables of a run with 90 + place % of accuracy at each of ``epochs``."""
    paper = {"name": "guiding_neural_collapse", "experiment": name}
    own = pipeline({"epochs": 1}, **SECTIONS)
    variants = tuple(Variant(k, {"head": head, "paper": paper}, own) for k, head in heads.items())
    rows = tuple(
        SummaryRow(variant, metric, epoch, 8, 90 + place, 89 + place, 90.25 + place, 5)
        for place, variant in enumerate(heads)
        for metric in ("train_top1", "test_top1")
        for epoch in epochs
    )
    summary = Summary(tuple(heads), ("train_top1", "test_top1"), rows)
    return beside_published(Recipe("r", Path("r.yaml"), "", (0,), variants, {}), summary)


def test_accuracies_stand_beside_the_published_ones() -> None:
    heads = {"standard": STANDARD, "fixed_etf": FIXED, "nearest_etf": NEAREST}
    train, test = beside(heads, "stl10_resnet50", (49.0, 50.0, 199.9, 201.0))
    assert train.rows == (
        ("train_top1", "epoch 50, ours", "epoch 50, published", "epoch 200, ours",
         "epoch 200, published"),
        ("standard", "90 [89, 90.25]", "83.86 [84.5, 90.7]", "not run", "99.42 [99.0, 99.9]"),
        ("fixed_etf", "91 [90, 91.25]", "86.76 [77.8, 86.8]", "not run", "98.38 [98.1, 99.3]"),
        ("nearest_etf", "92 [91, 92.25]", "93.54 [91.3, 95.3]", "not run", "99.72 [98.0, 99.9]"),
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
def test_a_head_that_the_paper_has_not_is_listed_alone(head: dict[str, Any]) -> None:
    table = beside({"own": head}, "cifar10_vgg13", (50.0, 200.0))[0]
    assert table.rows[1] == ("own", "90 [89, 90.25]", "–", "90 [89, 90.25]", "–")


@pytest.mark.parametrize(("differentiate", "cell"), [(True, "–"), (False, "74.09 [73.8, 74.5]")])
def test_on_imagenet_the_paper_did_not_differentiate(differentiate: bool, cell: str) -> None:
    head = {**NEAREST, "differentiate": differentiate, "solver": "trust_regions"}
    assert beside({"nearest": head}, "imagenet_resnet50")[0].rows[1][2] == cell


def test_a_run_that_names_no_experiment_has_no_such_tables(tmp_path: Path) -> None:
    assert beside({"standard": STANDARD}, None, (50.0,)) == []
    write_run(tmp_path, {"standard": (STANDARD, None)})
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
    write_run(tmp_path, {k: (h, "ufm1000") for k, h in heads.items()}, measured)
    (table,) = tables(tmp_path)
    assert table.title == "What a step costs"
    assert table.rows[0][-1] == "published memory (GB)"
    assert table.rows[3] == ("standard", "3", "2.5", "10", "2", "3", "1.9")
    assert {row[0]: row[-1] for row in table.rows[1:]} == {
        "standard": "1.9", "nearest_etf": "did not fit", "without": "2.9", "own": "–"
    }  # fmt: skip
    assert "20 steps" in table.note
    assert "Table 3" in table.note


def test_costs_need_no_published_experiment(tmp_path: Path) -> None:
    own = {**resources(1.0, 512.0), "memory_of": "process"}
    write_run(tmp_path, {"a": (STANDARD, None), "b": (FIXED, "stl10_vgg13")}, (own,))
    table = tables(tmp_path)[-1]
    assert table.rows[0][-1] == "seeds"
    assert table.rows[1] == ("a", "1", "2.5", "10", "0.5", "1")
    assert "of the whole process, data included" in table.note
    assert "Table 3" not in table.note
