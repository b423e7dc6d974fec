"""An axis of a sweep whose options have names and set several keys each."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ddnkit.cli import main
from ddnkit.recipe.load import load
from ddnkit.recipe.recipe import Recipe

Loader = Callable[..., Recipe]
Errors = Callable[..., list[str]]

BASE = """
    pipeline: toy_load
    head: {name: toy_plain, temperature: 7, delta: 2e-3}
    train: {epochs: 3}
"""
METHODS = f"""{BASE}
    sweep:
      method:
        same: {{}}
        hot: {{head.name: toy_rich, head.temperature: 50, loss.smoothing: 0.5}}
        picky: {{loss.name: toy_picky}}
"""
WHOLE = f"""{BASE}
    sweep:
      method:
        rich: {{head.name: toy_rich}}
        whole:
          head: {{name: toy_rich, share: 0.9}}
"""


def names(recipe: Recipe) -> list[str]:
    return [variant.name for variant in recipe.variants]


def settings(recipe: Recipe) -> dict[str, dict[str, Any]]:
    return {variant.name: variant.settings for variant in recipe.variants}


def swept(recipe: Recipe) -> Any:
    return recipe.mapping.get("sweep")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["run", *arguments])


@pytest.fixture
def file(recipe: Loader) -> str:
    """The file of the recipe METHODS."""
    return str(recipe(METHODS).path)


def test_an_option_sets_its_keys_and_leaves_the_others(recipe: Loader) -> None:
    found = settings(recipe(METHODS))
    assert list(found) == ["same", "hot", "picky"]
    assert found["same"]["head"] == {"name": "toy_plain", "temperature": 7.0, "share": 0.1}
    assert (found["hot"]["head"]["name"], found["hot"]["head"]["temperature"]) == ("toy_rich", 50)
    assert found["hot"]["loss"] == {"name": "toy_loss", "smoothing": 0.5}
    assert found["picky"]["loss"] == {"name": "toy_picky", "one": 1, "other": 2}
    assert {one["train"]["epochs"] for one in found.values()} == {3}


def test_an_option_may_replace_a_whole_section(recipe: Loader) -> None:
    found = settings(recipe(WHOLE))
    assert found["rich"]["head"]["temperature"] == 7.0
    assert (found["whole"]["head"]["temperature"], found["whole"]["head"]["share"]) == (5.0, 0.9)


@pytest.mark.parametrize(
    ("sweep", "expected"),
    [
        ("{method: {a: {note: x}}}", ["a"]),
        ("{method: {a: {}, b c: {}, B-c: {}}}", ["a", "b-c", "B-c-2"]),
        (
            "{method: {a: {}, b: {}}, train.epochs: [1, 2]}",
            ["method=a,epochs=1", "method=a,epochs=2", "method=b,epochs=1", "method=b,epochs=2"],
        ),
        (
            "{train.epochs: [1, 2], method: {a: {}, b: {}}}",
            ["epochs=1,method=a", "epochs=1,method=b", "epochs=2,method=a", "epochs=2,method=b"],
        ),
        ("{method: {a: {}}, my-loss_2: {b: {}}}", ["method=a,my-loss_2=b"]),
        ("{epochs: {few: {train.epochs: 1}}, head.share: [1]}", ["epochs=few,share=1"]),
    ],
)
def test_an_option_s_name_stands_for_it(recipe: Loader, sweep: str, expected: list[str]) -> None:
    text = BASE.replace("toy_plain", "toy_rich")
    assert names(recipe(f"{text}    sweep: {sweep}\n")) == expected


def test_a_key_that_only_another_option_s_head_knows_is_left_out(recipe: Loader) -> None:
    found = settings(recipe(METHODS, "head.share=0.3"))
    assert "delta" not in found["same"]["head"]
    assert found["hot"]["head"]["delta"] == 2e-3
    text = BASE.replace("name: toy_plain, ", "")
    found = settings(
        recipe(f"{text}    sweep: {{m: {{a: {{head: toy_open}}, b: {{head.name: toy_rich}}}}}}\n")
    )
    assert found["a"]["head"] == {"name": "toy_open"}
    assert found["b"]["head"]["delta"] == 2e-3


def test_a_key_that_no_option_s_head_knows_is_told_once(errors: Errors) -> None:
    (line,) = errors(METHODS.replace("delta:", "detla:"))
    assert line.startswith("x.yaml:2: head.detla: ") and "'delta'" in line


@pytest.mark.parametrize("text", [METHODS, WHOLE])
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("sweep.train.epochs=[1, 2]",),
        ("head=toy_plain",),
        ("head={name: toy_rich, delta: 1}", "loss=toy_loss"),
        ("sweep={m: {a: {head: toy_rich, note: other}, b: {head.temperature: 9}}}",),
        ("sweep.method={a: {head.name: toy_rich, head.delta: 5}, b: {}}", "train.epochs=4"),
        ("sweep.method={a: {head.temperature: 5}, b: {note: other}, c: {metrics: null}}",),
        ("sweep.method={a: {train: {iterations: 2}}, b: {}}", "sweep.head.share=[0.1, 0.2]"),
    ],
)
def test_the_resolved_recipe_loads_to_the_same(
    recipe: Loader, text: str, overrides: tuple[str, ...]
) -> None:
    loaded = recipe(text, *overrides)
    again = recipe(loaded.to_yaml())
    assert settings(again) == settings(loaded)
    assert names(again) == names(loaded)
    assert again.to_yaml() == loaded.to_yaml()


def test_the_base_of_a_key_that_only_some_options_set_is_kept(recipe: Loader) -> None:
    text = BASE.replace(", delta: 2e-3", "")
    some = "{head.temperature: 50, train: {iterations: 2}}"
    mapping = recipe(text, f"sweep.method={{a: {some}, b: {{}}}}").mapping
    assert mapping["head"] == {"name": "toy_plain", "temperature": 7.0, "share": 0.1}
    assert mapping["train"]["epochs"] == 3
    mapping = recipe(text, f"sweep.method={{a: {some}, b: {{head.temperature: 1}}}}").mapping
    assert mapping["head"] == {"name": "toy_plain", "share": 0.1}


def test_an_override_applies_where_no_option_sets_its_key(recipe: Loader) -> None:
    found = settings(recipe(METHODS, "head.share=0.3"))
    assert {one["head"]["share"] for one in found.values()} == {0.3}


def test_an_override_goes_before_the_options(recipe: Loader) -> None:
    loaded = recipe(METHODS, "head.temperature=1")
    assert {one["head"]["temperature"] for one in settings(loaded).values()} == {1.0}
    assert swept(loaded)["method"]["hot"] == {"head.name": "toy_rich", "loss.smoothing": 0.5}
    loaded = recipe(METHODS, "head=toy_rich")
    assert {one["head"]["name"] for one in settings(loaded).values()} == {"toy_rich"}
    assert swept(loaded)["method"]["hot"] == {"loss.smoothing": 0.5}


def test_an_override_of_all_that_the_options_set_ends_the_axis(recipe: Loader) -> None:
    assert names(recipe(METHODS, "head=toy_rich", "loss=toy_loss")) == ["default"]
    assert names(recipe(METHODS, "sweep.method={a: {}, b: {}}", "head.share=1")) == ["a", "b"]


def test_a_key_of_a_head_that_an_override_replaced_goes_from_the_resolved_options(
    recipe: Loader,
) -> None:
    text = f"{BASE}    sweep: {{m: {{a: {{head.name: toy_rich, head.flag: true, note: x}}}}}}\n"
    loaded = recipe(text, "head.name=toy_plain")
    assert swept(loaded) == {"m": {"a": {"note": "x"}}}
    assert settings(recipe(loaded.to_yaml())) == settings(loaded)


def test_axes_of_the_command_line_go_before_those_of_the_file(recipe: Loader) -> None:
    loaded = recipe(METHODS, "sweep.method={a: {head.name: toy_rich}}")
    assert swept(loaded) == {"method": {"a": {"head.name": "toy_rich"}}}
    loaded = recipe(METHODS, "sweep.head.name=[toy_plain, toy_rich]")
    assert swept(loaded)["method"]["hot"] == {"head.temperature": 50, "loss.smoothing": 0.5}
    assert names(loaded)[:2] == ["method=same,name=toy_plain", "method=same,name=toy_rich"]
    plain = f"{BASE}    sweep: {{head.name: [toy_plain, toy_rich], head.share: [0.1]}}\n"
    loaded = recipe(plain, "sweep.m={a: {head: toy_rich}, b: {}}")
    assert swept(loaded) == {"m": {"a": {"head": "toy_rich"}, "b": {}}}


def test_an_override_below_a_section_that_an_option_replaces_is_told(errors: Errors) -> None:
    (line,) = errors(WHOLE, "head.share=1")
    assert line.startswith("-s head.share=1: head.share: ")
    assert "'method'" in line and line.endswith(" head=... or sweep.method=...")


@pytest.mark.parametrize(
    ("axis", "place", "part"),
    [
        # Each with what was given, or with an example of what is expected, as one writes it.
        ("method: {}", "6: sweep.method: ", " {}"),
        ("method: 5", "6: sweep.method: ", " 5"),
        ("method: {a: 5}", "6: sweep.method.a: ", " 5"),
        ("method: {a: }", "6: sweep.method.a: ", "{head.name: fixed_etf}"),
        ("method: {a: [x]}", "6: sweep.method.a: ", " [x]"),
        ("method: {a: {seeds: 1}}", "6: sweep.method.a.seeds: ", "'seeds'"),
        ("method: {a: {sweep.x: 1}}", "6: sweep.method.a.sweep.x: ", "'sweep'"),
        ("method: {a: {.x: 1}}", "6: sweep.method.a..x: ", "head.name"),
        (
            "method: {a: {head.name: toy_rich, head: toy_rich}}",
            "6: sweep.method.a.head: ",
            "head.name",
        ),
        (
            "head.name: {a: {head.name: toy_rich}}",
            "6: sweep.head.name: ",
            "method: {etf: {head.name: fixed_etf}}",
        ),
        ("head: {name: [toy_rich]}", "6: sweep.head: ", "{name: [toy_rich]}"),
        ("seeds: {a: {}}", "6: sweep.seeds: ", "{a: {}}"),
        ("a b: {a: {}}", "6: sweep.a b: ", "{a: {}}"),
        ("method: {a: {}, a: {}}", "6: sweep.method.a: ", "line 6"),
        ("method: {a: {train.epochs.x: 1}}", "6: sweep.method: train.epochs ", "3"),
    ],
)
def test_a_wrong_axis_is_named(errors: Errors, axis: str, place: str, part: str) -> None:
    (line,) = errors(f"{BASE}\n    sweep:\n      {axis}\n".replace(", delta: 2e-3", ""))
    assert line.startswith(f"x.yaml:{place}")
    assert part in line.removeprefix(f"x.yaml:{place}")


def test_what_is_wrong_in_an_option_is_told_with_its_line(errors: Errors) -> None:
    told = errors(
        f"""{BASE}
    sweep:
      method:
        a: {{head.name: toy_rich}}
        b: {{head.tempreture: 1}}
        c: {{hed.name: toy_rich}}
        d: {{loss.name: toy_los}}
        e:
          note: n
          train: {{epohcs: 1}}
        f: {{head.temperature: -1}}
        g: {{train.epochs: few}}
"""
    )
    wanted = [
        ("8: head.tempreture: ", "'temperature'"),
        ("9: hed: ", "'head'"),
        ("10: loss.name: ", "'toy_loss'"),
        ("13: train.epohcs: ", "'epochs'"),
        ("14: head.temperature: ", "-1"),
        ("15: train.epochs: ", "'few'"),
    ]
    assert len(told) == len(wanted)
    for line, (place, part) in zip(told, wanted, strict=True):
        assert line.startswith(f"x.yaml:{place}")
        assert part in line.removeprefix(f"x.yaml:{place}")


@pytest.mark.parametrize(
    ("axis", "own", "other"),
    [
        ("head.name: [toy_plain]", "head.name", "head.name"),
        ("other: {a: {note: x}, b: {head.name: toy_plain}}", "head.name", "head.name"),
        ("head: [toy_plain]", "head", "head.name"),
        ("loss.smoothing.x: [1]", "loss.smoothing.x", "loss.smoothing"),
    ],
)
def test_two_axes_that_share_a_key_are_named(
    errors: Errors, axis: str, own: str, other: str
) -> None:
    line = errors(f"{METHODS}      {axis}\n")[-1]
    place = f"x.yaml:10: sweep.{axis.partition(':')[0]}: "
    assert line.startswith(place)
    assert re.search(rf" {own}, .* 'method' .* {other};", line[len(place) - 1 :])


def test_a_plain_axis_below_another_is_refused(errors: Errors) -> None:
    (line,) = errors(f"{BASE}    sweep: {{head: [toy_rich], head.delta: [1]}}\n")
    assert line.startswith("x.yaml:4: sweep.head.delta: ") and "'head'" in line


def test_too_many_variants_are_refused(errors: Errors) -> None:
    lines = errors(METHODS, f"sweep.train.epochs={list(range(1, 3335))}")
    assert any(" sweep: " in line and "10000" in line for line in lines)


def test_a_dry_run_shows_the_options(file: str) -> None:
    result = run(file, "--dry-run")
    assert result.exit_code == 0
    assert "jobs: 3\n" in result.output
    _, same, hot, _ = result.output.split("# variant ")
    assert same.startswith("same\n")
    assert hot.startswith("hot\n")
    assert "loss: {name: toy_loss, smoothing: 0.5}\n" in hot
    result = run(file, "--dry-run", "--only", "hot", "-s", "loss.smoothing=0.25")
    assert result.output.count("# variant ") == 1
    assert "loss: {name: toy_loss, smoothing: 0.25}\n" in result.output


@pytest.mark.parametrize(
    ("arguments", "place", "part"),
    [
        (["--only", "hto"], "--only hto: ", "'hot'"),
        (["-s", "sweep.method={a: 5}"], "-s sweep.method={a: 5}: sweep.method.a: ", " 5"),
        (["-s", "sweep.method=hot"], "-s sweep.method=hot: sweep.method: ", "'hot'"),
    ],
)
def test_wrong_input_has_exit_status_2(
    file: str, arguments: list[str], place: str, part: str
) -> None:
    result = run(file, "--dry-run", *arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {place}") and part in line.removeprefix(f"error: {place}")


def test_a_run_folder_holds_the_options(file: str) -> None:
    result = run(file, "--out", "o", "--device", "cpu", "--jobs", "1")
    assert result.exit_code == 0, result.output
    assert settings(load("o/recipe.yaml")) == settings(load(file))
    assert {folder.name for folder in Path("o/runs").iterdir()} == {"same", "hot", "picky"}
    assert "- sweep over method:\n  - same: -\n  - hot: " in Path("o/report.md").read_text("utf-8")
