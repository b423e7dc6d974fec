"""From a recipe's text to its variants; and everything that can be wrong with one, in one go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ddnkit.errors import InputError
from ddnkit.recipe import find
from ddnkit.recipe.load import load
from ddnkit.recipe.recipe import Recipe

Loader = Callable[..., Recipe]
Errors = Callable[..., list[str]]

MINIMAL = """
    pipeline: toy_load
    head: toy_plain
"""
SWEEP = """
    pipeline: toy_load
    description: Two heads.
    head: {name: toy_rich, temperature: 1e1, delta: 2e-3, dims: [3]}
    train: {epochs: 3}
    seeds: 2
    sweep: {head.name: [toy_plain, toy_rich]}
"""


def variants(recipe: Recipe) -> list[tuple[str, str]]:
    return [(variant.name, repr(variant.settings)) for variant in recipe.variants]


def test_a_minimal_recipe_has_one_variant_and_seed_zero(recipe: Loader) -> None:
    loaded = recipe(MINIMAL)
    assert loaded.name == "x"
    assert loaded.seeds == (0,)
    assert loaded.columns == ("epoch", "step", "loss")
    (variant,) = loaded.variants
    assert variant.name == "default"
    assert variant.settings["head"] == {"name": "toy_plain", "temperature": 5.0, "share": 0.1}
    assert variant.settings["metrics"] == {"name": "toy_metric", "smoothing": 0.0}
    assert type(variant.pipeline.head).__name__ == "Plain"  # type: ignore[attr-defined]
    assert not hasattr(variant.pipeline.head, "name")  # type: ignore[attr-defined]


def test_an_optional_component_may_be_null(recipe: Loader) -> None:
    loaded = recipe(MINIMAL + "    metrics: null\n")
    assert loaded.variants[0].settings["metrics"] is None


def test_a_component_may_take_any_key(recipe: Loader) -> None:
    loaded = recipe("pipeline: toy_load\nhead: {name: toy_open, anything: 1}")
    assert loaded.variants[0].settings["head"] == {"name": "toy_open", "anything": 1}


def test_a_swept_head_takes_the_keys_it_knows(recipe: Loader) -> None:
    loaded = recipe(SWEEP)
    assert loaded.description == "Two heads."
    assert loaded.seeds == (0, 1)
    plain, rich = loaded.variants
    assert (plain.name, rich.name) == ("toy_plain", "toy_rich")
    assert plain.settings["head"] == {"name": "toy_plain", "temperature": 10.0, "share": 0.1}
    assert rich.settings["head"]["delta"] == 2e-3
    assert rich.settings["head"]["dims"] == [3]


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("head.name=toy_plain",),
        ("sweep.train.epochs=[1, 2]", "head.inner.alpha=1"),
        ("sweep.head.inner.alpha=[1, 2]",),
        ("head=toy_rich", "sweep={}"),
        ("train.epochs=null", "loss.smoothing=1e-1"),
    ],
)
def test_the_resolved_recipe_loads_to_the_same(recipe: Loader, overrides: tuple[str, ...]) -> None:
    loaded = recipe(SWEEP, *overrides)
    again = recipe(loaded.to_yaml())
    assert variants(again) == variants(loaded)
    assert (again.seeds, again.description) == (loaded.seeds, loaded.description)
    assert again.to_yaml() == loaded.to_yaml()


def test_shared_defaults_are_filled_in_and_differing_ones_are_not(recipe: Loader) -> None:
    mapping = recipe(SWEEP, "sweep.loss.smoothing=[0, 1]").mapping
    assert mapping["loss"] == {"name": "toy_loss"}
    assert mapping["head"]["backward"] == "closed_form"
    assert "share" not in mapping["head"]
    assert mapping["sweep"] == {"head.name": ["toy_plain", "toy_rich"], "loss.smoothing": [0, 1]}


def test_defaults_stay_out_where_a_component_tells_them_from_what_is_given(recipe: Loader) -> None:
    loaded = recipe(SWEEP, "head.name=toy_plain", "loss={name: toy_picky, other: 5}")
    assert loaded.mapping["loss"] == {"name": "toy_picky", "other": 5}
    assert loaded.mapping["head"] == {"name": "toy_plain", "temperature": 10.0}
    assert variants(recipe(loaded.to_yaml())) == variants(loaded)


def test_a_value_that_variants_read_differently_stays_as_written(recipe: Loader) -> None:
    text = "pipeline: toy_load\nhead: {temperature: 7}\nsweep: {head.name: [toy_plain, toy_open]}"
    loaded = recipe(text)
    assert loaded.mapping["head"] == {"temperature": 7}
    assert variants(recipe(loaded.to_yaml())) == variants(loaded)


def test_each_variant_is_a_recipe_of_its_own(recipe: Loader) -> None:
    loaded = recipe(MINIMAL)
    assert variants(recipe(loaded.variants[0].to_yaml())) == variants(loaded)


@pytest.mark.parametrize(
    ("sweep", "names"),
    [
        ("{head.name: [toy_plain]}", ["toy_plain"]),
        ("{head.temperature: [1, 0.5, 1e1]}", ["1", "0.5", "10.0"]),
        ("{note: [a/b, a b, ../..]}", ["a-b", "a-b-2", "default"]),
        ("{note: [A, a]}", ["A", "a-2"]),
        ("{head: [toy_plain, {name: toy_rich, delta: 1}]}", ["toy_plain", "toy_rich+delta=1"]),
        ("{metrics: [null]}", ["null"]),
        (
            "{head.name: [toy_plain], train.epochs: [1, 2]}",
            ["name=toy_plain,epochs=1", "name=toy_plain,epochs=2"],
        ),
        (
            "{head.name: [toy_plain], loss.name: [toy_loss]}",
            ["head.name=toy_plain,loss.name=toy_loss"],
        ),
        ("{head.name: [toy_rich], head.dims: [[1, 2]]}", ["name=toy_rich,dims=1+2"]),
    ],
)
def test_variant_names(recipe: Loader, sweep: str, names: list[str]) -> None:
    loaded = recipe(MINIMAL + f"    sweep: {sweep}\n")
    assert [variant.name for variant in loaded.variants] == names


def test_an_override_ends_the_sweep_over_its_key(recipe: Loader) -> None:
    loaded = recipe(SWEEP, "head.name=toy_plain")
    assert [variant.name for variant in loaded.variants] == ["default"]
    assert loaded.mapping["head"] == {"name": "toy_plain", "temperature": 10.0, "share": 0.1}


def test_overrides_set_absent_keys_and_expand_bare_names(recipe: Loader) -> None:
    loaded = recipe(MINIMAL, "head.temperature=1e-3", "loss.smoothing=0.5", "note=x=y")
    settings = loaded.variants[0].settings
    assert settings["head"] == {"name": "toy_plain", "temperature": 1e-3, "share": 0.1}
    assert settings["loss"] == {"name": "toy_loss", "smoothing": 0.5}
    assert settings["note"] == "x=y"


def test_presets_fill_in_what_is_not_given_and_known(recipe: Loader) -> None:
    plain, rich = (
        v.settings for v in recipe(SWEEP.replace(", delta: 2e-3", ""), "note=other").variants
    )
    assert plain["head"] == {"name": "toy_plain", "temperature": 10.0, "share": 0.1}
    assert (rich["head"]["delta"], rich["head"]["inner"]) == (0.25, {"alpha": 0.75})
    assert plain["loss"] == rich["loss"] == {"name": "toy_loss", "smoothing": 0.5}


def test_presets_yield_to_what_is_given(recipe: Loader) -> None:
    text = "pipeline: toy_load\nhead: {name: toy_rich, delta: 7, inner: {alpha: 1}}\nnote: other"
    settings = recipe(text, "loss.smoothing=0").variants[0].settings
    assert (settings["head"]["delta"], settings["head"]["inner"]["alpha"]) == (7, 1)
    assert settings["loss"]["smoothing"] == 0


@pytest.mark.parametrize("overrides", [(), ("sweep.note=[n, other]",)])
def test_a_recipe_resolved_with_presets_loads_to_the_same(
    recipe: Loader, overrides: tuple[str, ...]
) -> None:
    loaded = recipe(SWEEP, "note=other", *overrides)
    again = recipe(loaded.to_yaml())
    assert variants(again) == variants(loaded)
    for variant in loaded.variants:
        assert variants(recipe(variant.to_yaml()))[0][1] == repr(variant.settings)


def test_a_section_that_is_wrong_has_no_presets(errors: Errors) -> None:
    (line,) = errors("pipeline: toy_load\nhead: {name: toy_rich, inner: 5}\nnote: other")
    assert line.startswith("x.yaml:2: head.inner: ") and line.endswith(" 5")


def test_a_preset_that_does_not_fit_says_where_it_came_from(errors: Errors) -> None:
    (line,) = errors(MINIMAL + "    note: wrong")
    assert line.startswith("x.yaml:2: head.share: ")
    assert "'much'" in line and "preset" in line  # the word for what the file does not give


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [
        ("3", (0, 1, 2)),
        ("4,2", (4, 2)),
        ("7,", (7,)),
        ("1", (0,)),
        ("[4, 2]", (4, 2)),
        ("[7]", (7,)),
        (str(2**32 - 1) + ",", (2**32 - 1,)),
    ],
)
def test_seeds_of_the_command_line(recipe: Loader, seeds: str, expected: tuple[int, ...]) -> None:
    assert recipe(SWEEP, seeds=seeds).seeds == expected


@pytest.mark.parametrize(
    ("seeds", "part"),
    [
        ("0", "10000"),
        ("-1", "'-1'"),
        ("a", "'a'"),
        ("1,1", "1"),
        ("1.5", "'1.5'"),
        ("", "''"),
        ("[]", "'[]'"),
        ("[1", "'[1'"),
        (f"{2**32},", str(2**32 - 1)),
        ("9" * 5000, "'999"),
    ],
)
def test_wrong_seeds_of_the_command_line(errors: Errors, seeds: str, part: str) -> None:
    (line,) = errors(SWEEP, seeds=seeds)
    place = f"--seeds {seeds}: seeds: "
    assert line.startswith(place) and part in line[len(place) :]


def test_all_errors_are_told_in_the_order_of_the_file(errors: Errors) -> None:
    lines = errors(
        """
        pipeline: toy_load
        description: 5
        head:
          name: toy_rich
          detla: 1
          delta: abc
          temperature: -1
          backward: densee
          dims: [1, x]
          inner: {alhpa: 1}
          flag: 2
          size: []
        hed: 3
        loss: toy_los
        metrics: [1]
        train: {epochs: 1.5, colour: rad}
        note: 5
        seeds: [0, 0]
        """
    )
    wanted = [
        ("2: description: ", ["5"]),
        ("5: head.detla: ", ["'delta'"]),
        ("6: head.delta: ", ["'abc'"]),
        ("7: head.temperature: ", ["> 0", "-1"]),
        ("8: head.backward: ", ["'densee'", "'dense'", "'closed_form'"]),
        ("9: head.dims[1]: ", ["'x'"]),
        ("10: head.inner.alhpa: ", ["'alpha'"]),
        ("11: head.flag: ", ["true", "false", "2"]),
        ("12: head.size: ", ["'full'", "[]"]),
        ("13: hed: ", ["'head'"]),
        ("14: loss.name: ", ["'toy_los'", "ddnkit.losses", "'toy_loss'"]),
        ("15: metrics: ", ["toy_metric", "[1]"]),
        ("16: train.epochs: ", ["1.5"]),
        ("16: train.colour: ", ["'rad'", "'red'"]),
        ("17: note: ", ["5"]),
        ("18: seeds: ", ["0"]),
    ]
    assert len(lines) == len(wanted)
    for line, (key, parts) in zip(lines, wanted, strict=True):
        place = f"x.yaml:{key}"
        assert line.startswith(place)
        assert not [part for part in parts if part not in line[len(place) :]], line


@pytest.mark.parametrize(
    ("text", "place", "parts"),
    [
        ("head: toy_plain", "1: pipeline: ", ["toy_load"]),
        ("pipeline: 5", "1: pipeline: ", ["5", "toy_load"]),
        ("pipeline: toy_lod", "1: pipeline: ", ["'toy_lod'", "ddnkit.pipelines", "'toy_load'"]),
        ("pipeline: toy_load", "1: head: ", ["toy_plain, toy_rich"]),
        ("pipeline: toy_load\nhead:", "2: head: ", ["toy_plain, toy_rich"]),
        ("pipeline: toy_load\nhead: {share: 1}", "2: head.name: ", ["toy_plain, toy_rich"]),
        ("pipeline: toy_load\nhead: {name: 5}", "2: head.name: ", ["toy_plain, toy_rich", "5"]),
        (
            "pipeline: toy_load\nhead: {name: toy_rich, more: {alhpa: 1}}",
            "2: head.more.alhpa: ",
            ["'alpha'"],
        ),
        (MINIMAL + "    train: 5", "3: train: ", ["5"]),
        (
            MINIMAL + "    train: {epochs: 1, iterations: 2}",
            "3: train: ",
            ["give epochs or iterations, not both"],  # in the pipeline's own words
        ),
        (MINIMAL + "    seeds: true", "3: seeds: ", ["true"]),
        (MINIMAL + "    sweep: [1]", "3: sweep: ", ["[1]"]),
        (MINIMAL + "    sweep: {note: a}", "3: sweep.note: ", ["'a'"]),
        (MINIMAL + "    sweep: {note: []}", "3: sweep.note: ", ["[]"]),
        (MINIMAL + "    sweep: {note: [a, a]}", "3: sweep.note: ", ["'a'"]),
        (MINIMAL + "    sweep: {a..b: [a]}", "3: sweep.a..b: ", ["head.name"]),
        (MINIMAL + "    sweep: {seeds: [1]}", "3: sweep.seeds: ", ["'seeds'"]),
        (MINIMAL + "    train: 7\n    sweep: {train.x: [1]}", "4: sweep.train.x: ", ["train", "7"]),
        (
            MINIMAL + "    sweep:\n      head.name:\n      - toy_plain\n      - toy_plian",
            "6: head.name: ",
            ["'toy_plian'", "'toy_plain'"],
        ),
        (
            MINIMAL + f"    sweep: {{note: {list(range(101))}, head.share: {list(range(100))}}}",
            "3: sweep: ",
            ["10000"],
        ),
    ],
)
def test_what_is_wrong_is_named(errors: Errors, text: str, place: str, parts: list[str]) -> None:
    place = f"x.yaml:{place}"
    (line,) = (told for told in errors(text) if told.startswith(place))
    assert not [part for part in parts if part not in line[len(place) :]], line


def test_a_key_that_no_swept_head_knows_is_told_once_with_the_choices_of_all(
    errors: Errors,
) -> None:
    (line,) = errors(SWEEP.replace("dims:", "dmis:"))
    assert line.startswith("x.yaml:3: head.dmis: ") and "'dims'" in line


def test_a_misspelt_head_in_a_sweep_is_the_only_error(errors: Errors) -> None:
    text = """
        pipeline: toy_load
        head: {delta: 1}
        sweep: {head.name: [toy_plain, toy_rcih]}
    """
    (line,) = errors(text)
    assert line.startswith("x.yaml:3: head.name: ")
    assert "'toy_rcih'" in line and "'toy_rich'" in line


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        (["head.detla=1"], [("head.detla=1: head.detla: ", "'delta'")]),
        (["head.delta=abc"], [("head.delta=abc: head.delta: ", "'abc'")]),
        (
            ["head.name=toy_plain", "head.delta=1"],
            [("head.delta=1: head.delta: ", "name, share, temperature")],
        ),
        (["train.epochs=yes"], [("train.epochs=yes: train.epochs: ", "'yes'")]),
        (["train.epochs=true"], [("train.epochs=true: train.epochs: ", "true")]),
        (["head.dims=[true]"], [("head.dims=[true]: head.dims[0]: ", "true")]),
        (["train.epochs.x=1"], [("train.epochs.x=1: train.epochs ", "3")]),
        (["pipeline.x=1"], [("pipeline.x=1: pipeline ", "'toy_load'")]),
        (["foo", "a..b=1"], [("foo: ", "KEY=VALUE"), ("a..b=1: ", "KEY=VALUE")]),
        (["a=[1"], [("a=[1: ", "YAML")]),
        (["a={b: 1, b: 2}"], [("a={b: 1, b: 2}: b: ", "twice")]),
        (["sweep.note=[]"], [("sweep.note=[]: sweep.note: ", "[]")]),
        (
            ["sweep.head=[toy_plain, {name: toy_rich}]", "head.delta=1"],
            [("head.delta=1: head.delta: ", "head=... or sweep.head=...")],
        ),
    ],
)
def test_wrong_overrides_repeat_what_was_typed(
    errors: Errors, overrides: list[str], lines: list[tuple[str, str]]
) -> None:
    told = errors(SWEEP, *overrides)
    assert len(told) == len(lines)
    for line, (typed, part) in zip(told, lines, strict=True):
        assert line.startswith(f"-s {typed}")
        assert part in line.removeprefix(f"-s {typed}")


def test_an_override_for_one_swept_head_is_left_out_for_the_other(recipe: Loader) -> None:
    plain, rich = recipe(SWEEP, "head.delta=7").variants
    assert "delta" not in plain.settings["head"]
    assert rich.settings["head"]["delta"] == 7.0


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = tmp_path / "site" / "ddnkit"
    package.mkdir(parents=True)
    monkeypatch.setattr(find, "_PACKAGE", package)
    return package


def test_shipped_recipes_are_found_by_name(shipped: Path, recipe: Loader) -> None:
    (shipped / "recipes").mkdir()
    (shipped / "recipes" / "mine10.yaml").write_text("pipeline: toy_load\nhead: toy_plain\n")
    assert load("mine10").name == "mine10"
    with pytest.raises(InputError, match=r"'mine11'.*'mine10'") as caught:
        load("mine11")
    assert str(Path("mine11").absolute()) in str(caught.value)


def test_a_checkout_ships_the_recipes_beside_the_package(shipped: Path) -> None:
    beside = shipped.parent / "recipes"
    beside.mkdir()
    (beside / "a.yaml").write_text("")
    assert find.shipped_recipes() == {}
    (shipped.parent / "pyproject.toml").write_text("")
    assert find.shipped_recipes() == {"a": beside / "a.yaml"}


def test_a_missing_file_like_none_there_names_the_shipped_recipes(recipe: Loader) -> None:
    recipe(MINIMAL)
    with pytest.raises(InputError) as error:
        load("quite_another.yaml")
    assert "x.yaml" not in str(error.value)
    assert "digit_pairs" in str(error.value)


def test_a_missing_file_names_its_neighbour(shipped: Path, recipe: Loader) -> None:
    recipe(MINIMAL)
    with pytest.raises(InputError, match=r"'y\.yaml'.*'x\.yaml'"):
        load("y.yaml")
    with pytest.raises(InputError, match=str(Path("nowhere").absolute())):
        load("nowhere/y.yaml")


def test_a_folder_is_no_recipe_but_may_hold_one(tmp_path: Path) -> None:
    inside = tmp_path / "recipe.yaml"
    with pytest.raises(InputError, match=f"'{tmp_path}'") as caught:
        load(tmp_path)
    assert str(inside) not in str(caught.value)
    inside.write_text("")
    with pytest.raises(InputError, match=f"'{tmp_path}'.*{inside}"):
        load(tmp_path)
