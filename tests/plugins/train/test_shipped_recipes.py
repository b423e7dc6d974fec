"""The shipped recipes say what the papers say, and each takes its first steps."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from ddnkit_train.settings import Classification
from training_stand_ins import run_job

from ddnkit import registry

RECIPES = Path(__file__).parents[3] / "recipes"
UFM = {"ufm10": (10, 1000, 512), "ufm100": (100, 5000, 1024), "ufm200": (200, 5000, 1024),
       "ufm1000": (1000, 10000, 1024)}  # fmt: skip
# Those of larger networks are in tests/recipe/test_paper_recipes.py.
NAMES = ["digit_pairs", "digits", "fashion_mnist_cnn", *UFM]
GROUPS = {"data": "datasets", "backbone": "backbones", "optimizer": "optimizers", "head": "heads"}


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))


def pipelines(name: str) -> dict[str, Classification]:
    """Each variant of a recipe; a head takes those of the swept settings that are its own."""
    recipe = read(name)
    variants = {}
    for head in recipe["sweep"]["head.name"]:
        sections: dict[str, Any] = {"train": recipe["train"]}
        for section, group in GROUPS.items():
            given = dict(recipe[section])
            kind = registry.get(group, given.pop("name", head))
            if section == "head":
                given = {key: given[key] for key in given if key in kind.model_fields}
            sections[section] = kind(**given)
        sections["loss"] = registry.get("losses", "cross_entropy")()
        sections["metrics"] = registry.get("metrics", "neural_collapse")()
        variants[head] = Classification(**sections)
    return variants


def test_all_recipes_of_the_first_slice_are_there() -> None:
    assert set(NAMES) <= {path.stem for path in RECIPES.glob("*.yaml")}


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_validates_and_describes_itself(name: str) -> None:
    recipe = read(name)
    assert recipe["pipeline"] == "classification"
    assert len(recipe["description"]) > 30
    assert set(pipelines(name)) == {"standard", "fixed_etf", "nearest_etf"}


@pytest.mark.parametrize("name", UFM)
def test_the_ufm_recipes_have_the_paper_s_sizes(name: str) -> None:
    recipe = read(name)
    sizes = recipe["data"]["classes"], recipe["data"]["samples"], recipe["backbone"]["dimension"]
    assert sizes == UFM[name]
    assert recipe["train"]["iterations"] == 2000
    assert recipe["optimizer"] == {"name": "agd", "gain": 10}
    assert recipe["head"] == {"temperature": 5, "delta": 1e-3}


@pytest.mark.parametrize(
    "name",
    [
        # Of the same kind as ufm10, and larger.
        pytest.param(name, marks=[pytest.mark.long] if name in ("ufm100", "ufm200") else [])
        for name in NAMES
        if name != "ufm1000"
    ],
)
@pytest.mark.parametrize("head", ["standard", "fixed_etf", "nearest_etf"])
def test_every_recipe_takes_its_first_steps(name: str, head: str, tmp_path: Path) -> None:
    rows = run_job(pipelines(name)[head], tmp_path, smoke=True)
    assert rows[-1]["step"] == 3
    assert rows[-1]["ce_gap"] > 0
    assert rows[-1]["train_loss"] < 8


def test_the_nearest_etf_leads_early_on_digit_pairs(tmp_path: Path) -> None:
    """The race that `make run` shows, at its first evaluation."""
    heads = pipelines("digit_pairs")
    top1 = {}
    for head, settings in heads.items():
        short = settings.model_copy(
            update={"train": type(settings.train)(iterations=5, evaluate_every=5)}
        )
        top1[head] = run_job(short, tmp_path)[-1]["test_top1"]
    assert top1["nearest_etf"] > 40 > 25 > max(top1["standard"], top1["fixed_etf"])
