"""The recipes of the paper's experiments ask for what it says, and its `fidelity` for what its code does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from ddnkit import (
    InputError,
    Job,
    Paper,
    Pipeline,
    PublishedFigure,
    published_figures,
    registry,
)
from ddnkit.recipe.load import load
from ddnkit.recipe.recipe import Recipe

RECIPES = Path(__file__).parents[2] / "recipes"
TABLES = ["cifar10_resnet18", "cifar10_vgg13", "cifar100_resnet50", "cifar100_vgg13",
          "stl10_resnet50", "stl10_vgg13", "imagenet_resnet50"]  # fmt: skip
OTHERS = ["mnist_resnet18", "mnist_vgg13", "fashion_mnist_resnet18", "fashion_mnist_vgg13"]
ABLATIONS = {
    "cifar10_vgg13_ddn_gradient": ("nearest_etf", "differentiate", [True, False]),
    "cifar10_resnet18_normalisation": (None, "name", ["standard", "standard_unnormalised"]),
    "cifar10_resnet18_haar": ("fixed_etf", "direction", ["canonical", "haar"]),
}
IMAGES = {"cifar10": (50_000, 10), "cifar100": (50_000, 100), "stl10": (5_000, 10),
          "mnist": (60_000, 10), "fashion_mnist": (60_000, 10),
          "image_folder": (1_281_167, 1000)}  # fmt: skip
UFM = ["ufm10", "ufm100", "ufm200", "ufm1000"]


def shipped(name: str, *overrides: str) -> Recipe:
    return load(RECIPES / f"{name}.yaml", overrides)


def heads(recipe: Recipe) -> dict[str, dict[str, Any]]:
    return {variant.name: variant.settings["head"] for variant in recipe.variants}


@pytest.mark.parametrize("name", [*TABLES, *OTHERS, *ABLATIONS])
def test_settings_are_the_paper_s(name: str) -> None:
    recipe = shipped(name)
    assert recipe.seeds == (0, 1, 2, 3, 4)
    for variant in recipe.variants:
        settings = variant.settings
        assert settings["paper"]["fidelity"] == "paper"
        assert settings["data"]["batch_size"] == 256
        assert settings["data"]["sampler"] == "stratified"
        assert settings["optimizer"] == {"name": "agd", "gain": 10.0}
        assert settings["train"]["epochs"] == 200
        assert settings["backbone"]["affine"] is False
        assert settings["backbone"].get("bias", False) is False
        assert settings["backbone"].get("stem", "imagenet") == "imagenet"
        head = settings["head"]
        assert head["temperature"] == (1 if head["name"] == "standard_unnormalised" else 5)
        assert head.get("delta", 1e-3) == 1e-3
        assert name.startswith(settings["data"]["name"]) or name == "imagenet_resnet50"
        assert settings["backbone"]["name"] in name
        assert (settings["paper"]["experiment"] or "") == (
            "" if name in OTHERS else "_".join(name.split("_")[:2])
        )


@pytest.mark.parametrize("name", [*TABLES, *OTHERS, *ABLATIONS])
def test_the_published_epochs_are_evaluated_and_so_are_the_first(name: str) -> None:
    recipe = shipped(name)
    for variant in recipe.variants:
        train: Any = variant.pipeline.train  # type: ignore[attr-defined]
        steps = -(-IMAGES[variant.settings["data"]["name"]][0] // 256)
        assert {epoch * steps for epoch in (1, 2, 5, 10, 50, 200)} <= train.evaluation_steps(steps)


@pytest.mark.parametrize("name", [*TABLES[:-1], *OTHERS])
def test_three_heads(name: str) -> None:
    assert [*heads(shipped(name))] == ["standard", "fixed_etf", "nearest_etf"]


@pytest.mark.parametrize("name", TABLES[:-1])
def test_images_are_standardised_by_pixel_and_augmented(name: str) -> None:
    data = shipped(name).variants[0].settings["data"]
    assert data["standardise"] == "pixel"
    assert data["flip"] and data["crop"] and data["rotation"]


def test_imagenet_has_the_paper_s_three_heads_and_the_one_it_could_not_run() -> None:
    recipe = shipped("imagenet_resnet50")
    found = [(head["name"], head.get("differentiate")) for head in heads(recipe).values()]
    assert found == [
        ("standard", None), ("fixed_etf", None), ("nearest_etf", False), ("nearest_etf", True)
    ]  # fmt: skip
    assert all(v.settings["train"]["evaluation_samples"] == 50_000 for v in recipe.variants)


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablations_vary_one_setting(name: str) -> None:
    head, key, values = ABLATIONS[name]
    found = heads(shipped(name)).values()
    assert [one[key] for one in found] == values
    assert head is None or {one["name"] for one in found} == {head}


@pytest.mark.parametrize("name", UFM)
def test_the_ufm_runs_five_seeds(name: str) -> None:
    recipe = shipped(name)
    assert recipe.seeds == (0, 1, 2, 3, 4)
    assert recipe.variants[0].settings["paper"]["experiment"] == name


def test_the_published_code_s_choices() -> None:
    standard, fixed, nearest = (
        v.settings for v in shipped("cifar10_resnet18", "paper.fidelity=published_code").variants
    )
    samplers = [one["data"]["sampler"] for one in (standard, fixed, nearest)]
    assert samplers == ["shuffled", "shuffled", "stratified"]
    assert standard["head"]["evaluation_mean"] == "running"
    assert fixed["head"]["evaluation_mean"] == "test_batch"
    assert nearest["head"]["evaluation_mean"] == "last_batch"
    assert nearest["head"]["means"]["absent"] == "global_mean"
    assert nearest["head"]["means"]["normalise"] == "after"
    for name in ("paper", "published_code"):
        again = shipped("cifar10_resnet18", f"paper.fidelity={name}", "backbone.stem=cifar")
        assert {v.settings["backbone"]["stem"] for v in again.variants} == {"cifar"}


def test_what_a_recipe_gives_stands_against_the_published_code() -> None:
    recipe = shipped(
        "digits",
        "paper={name: guiding_neural_collapse, fidelity: published_code}",
        "head.means.absent=zero",
        "data.sampler=stratified",
    )
    nearest = recipe.variants[2].settings
    assert nearest["head"]["means"]["absent"] == "zero"
    assert nearest["head"]["evaluation_mean"] == "last_batch"
    assert {v.settings["data"]["sampler"] for v in recipe.variants} == {"stratified"}


def test_a_misspelt_fidelity_is_the_only_error() -> None:
    with pytest.raises(Exception, match=r"fidelity.*'published_code'") as error:
        shipped("digits", "paper=guiding_neural_collapse", "paper.fidelity=publishd_code")
    assert len(str(error.value).splitlines()) == 1


# -- the keys of the last release, for one release -------------------------------------------------

OLD = """\
pipeline: classification
data: {name: digits}
backbone: {name: mlp}
head: {name: fixed_etf}
optimizer: {name: agd}
train: {epochs: 2}
"""


def old(folder: Path, text: str, *overrides: str) -> Recipe:
    """The recipe `OLD` with more lines, the first of which is line 7."""
    (folder / "old.yaml").write_text(OLD + text)
    return load(folder / "old.yaml", overrides)


def papers(recipe: Recipe) -> list[tuple[str | None, str]]:
    found = [variant.settings["paper"] for variant in recipe.variants]
    assert {paper["name"] for paper in found} == {"guiding_neural_collapse"}
    return [(paper["experiment"], paper["fidelity"]) for paper in found]


@pytest.mark.parametrize(
    ("text", "overrides", "expected", "told"),
    [
        ("fidelity: published_code\n", (), [(None, "published_code")], ["old.yaml:7"]),
        ("published: ufm10\n", (), [("ufm10", "paper")], ["old.yaml:7"]),
        # As the recipes that the last release wrote into run folders.
        ("published: null\nfidelity: paper\n", (), [(None, "paper")], ["old.yaml:7", "old.yaml:8"]),
        ("", ("fidelity=published_code",), [(None, "published_code")], ["-s fidelity="]),
        ("", ("published=ufm100",), [("ufm100", "paper")], ["-s published="]),
        (
            "paper: guiding_neural_collapse\npublished: ufm10\n",
            ("fidelity=published_code", "paper.experiment=ufm100"),
            [("ufm100", "published_code")],
            ["old.yaml:8", "-s fidelity="],
        ),
        (
            "sweep: {fidelity: [paper, published_code], head.temperature: [5]}\n",
            (),
            [(None, "paper"), (None, "published_code")],
            ["old.yaml:7"],
        ),
        (
            "sweep: {way: {text: {fidelity: paper}, code: {fidelity: published_code}}}\n",
            (),
            [(None, "paper"), (None, "published_code")],
            ["old.yaml:7", "old.yaml:7"],
        ),
        (
            "sweep: {paper.fidelity: [paper, published_code]}\n",
            ("fidelity=published_code",),
            [(None, "published_code")],
            ["-s fidelity="],
        ),
        (
            "fidelity: paper\n",
            ("sweep.fidelity=[paper, published_code]",),
            [(None, "paper"), (None, "published_code")],
            ["old.yaml:7", "-s sweep.fidelity="],
        ),
    ],
)
def test_former_keys_are_taken_with_a_warning(
    text: str,
    overrides: tuple[str, ...],
    expected: list[tuple[str | None, str]],
    told: list[str],
    tmp_path: Path,
) -> None:
    recipe = old(tmp_path, text, *overrides)
    assert papers(recipe) == expected
    for variant, (_, fidelity) in zip(recipe.variants, expected, strict=True):
        code = fidelity == "published_code"
        assert variant.settings["head"]["evaluation_mean"] == ("test_batch" if code else "running")
    assert len(recipe.warnings) == len(told)
    for line, place in zip(recipe.warnings, told, strict=True):
        assert place in line
        assert "paper.experiment" in line or "paper.fidelity" in line
    # What it stands for has the keys of today alone.
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    again = load(tmp_path / "again.yaml")
    assert [v.settings for v in again.variants] == [v.settings for v in recipe.variants]
    assert [v.name for v in again.variants] == [v.name for v in recipe.variants]
    assert not any("paper." in line for line in again.warnings)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (
            "fidelity: paper\npaper: {name: guiding_neural_collapse, fidelity: paper}\n",
            "old.yaml:7",
        ),
        ("sweep: {paper.fidelity: [paper], fidelity: [paper]}\n", "old.yaml:7"),
        ("fidelity: publishd_code\n", "old.yaml:7"),
        ("fidelty: paper\n", "old.yaml:7"),
        ("paper: inducing_neural_collapse\nfidelity: paper\n", "old.yaml:8"),
        ("paper: [fidelity]\nfidelity: paper\n", "old.yaml:8"),
    ],
)
def test_what_is_wrong_with_former_keys_is_told_where_it_stands(
    text: str, place: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=place):
        old(tmp_path, text)


class _OwnFidelity(Pipeline):
    columns: ClassVar[tuple[str, ...]] = ("epoch", "step")
    fidelity: str = "high"

    def run(self, job: Job) -> None: ...


def test_a_key_of_the_pipeline_s_own_is_no_paper_s(tmp_path: Path) -> None:
    registry.register("pipelines", "own_fidelity", _OwnFidelity)
    (tmp_path / "own.yaml").write_text("pipeline: own_fidelity\nfidelity: low\n")
    recipe = load(tmp_path / "own.yaml")
    assert recipe.warnings == ()
    assert recipe.variants[0].settings["fidelity"] == "low"
    assert recipe.variants[0].settings["paper"] is None


class _WrongPaper(Paper):
    """A paper that does what ``does`` says."""

    title: ClassVar[str] = "Wrong (2031)"
    does: str

    def presets(self, given: Mapping[str, Any]) -> Any:
        if self.does == "raises":
            raise KeyError("of its own")
        return {self.does: 0.1} if "." in self.does else {}

    def published(self, settings: Mapping[str, Any]) -> Any:
        if self.does == "figure":
            return [PublishedFigure("nc1", 61.5, "Table 1")]  # type: ignore[arg-type]
        return [1] if self.does == "no figure" else None

    def tables(self, folder: Path) -> Any:
        return ["a table"] if self.does == "table" else []


@pytest.fixture(scope="module")
def _wrong_paper() -> None:
    registry.register("papers", "wrong_paper", _WrongPaper)


@pytest.mark.parametrize(
    ("does", "named"),
    [
        ("raises", "KeyError"),
        ("loss.label_smothing", "label_smoothing"),
        ("loss.label_smoothing.x", "loss.label_smoothing.x"),
    ],
)
@pytest.mark.usefixtures("_wrong_paper")
def test_wrong_presets_are_told_with_the_paper(does: str, named: str) -> None:
    section = f"paper={{name: wrong_paper, does: {does}}}"
    with pytest.raises(InputError, match=named) as told:
        shipped("digits", section)
    assert "wrong_paper" in str(told.value)


@pytest.mark.parametrize("key", ["head.delta", "head.name", "train.nothing", "kernel.bandwidth"])
@pytest.mark.usefixtures("_wrong_paper")
def test_presets_may_be_of_other_plugins_and_pipelines(key: str) -> None:
    section = f"paper={{name: wrong_paper, does: {key}}}"
    recipe = shipped("digits", section, "sweep={head.name: [standard]}")
    assert "delta" not in recipe.variants[0].settings["head"]


@pytest.mark.parametrize("does", ["figure", "no figure", "none at all"])
@pytest.mark.usefixtures("_wrong_paper")
def test_a_paper_whose_figures_are_none_is_told_and_has_none(does: str) -> None:
    told: list[str] = []
    before = registry.tell_by(told.append)
    try:
        settings = {"paper": {"name": "wrong_paper", "does": does}}
        assert published_figures(settings) == ()
    finally:
        registry.tell_by(before)
    assert len(told) == 1 and "wrong_paper" in told[0]


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("cifar10_resnet18", 2),
        pytest.param("mnist_vgg13", 1, marks=pytest.mark.long),
        # The same networks with other settings of the head, which tests of the head hold.
        *(
            pytest.param(name, variant, marks=pytest.mark.long)
            for name, variant in [
                ("fashion_mnist_resnet18", 0), ("cifar10_vgg13_ddn_gradient", 1),
                ("cifar10_resnet18_normalisation", 1), ("cifar10_resnet18_haar", 1),
            ]
        ),
    ],
)  # fmt: skip
def test_the_smaller_ones_take_their_first_steps(name: str, variant: int, tmp_path: Path) -> None:
    recipe = shipped(name, "data.batch_size=64", "engine.precision=float32")
    rows: list[dict[str, Any]] = []
    chosen = recipe.variants[variant]
    chosen.pipeline.run(
        Job(
            variant=chosen.name, seed=0, folder=tmp_path, device="cpu", smoke=True,
            record=rows.append, progress=lambda done, total, figures: None,
        )
    )  # fmt: skip
    assert rows[-1]["step"] == 3
    assert torch.isfinite(torch.tensor(rows[-1]["train_loss"]))
