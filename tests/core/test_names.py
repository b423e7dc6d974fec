"""Objects by their dotted names: what settings build, and what was called otherwise before."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ddnkit_train.settings import (
    BackboneSection,
    BackboneSettings,
    DataSection,
    DataSettings,
    HeadSection,
)

from ddnkit import (
    Component,
    InputError,
    PluginError,
    Problem,
    import_object,
    settings_from,
    testing,
)
from ddnkit.backward import Dense
from ddnkit.recipe.contract import missing_members
from ddnkit.renamed import with_old_names


class Shifted(Component):
    builder = f"{__name__}:shift"
    by: float = 1.0


class Needy(Component):
    by: float


class Nothing(Component):
    by: float = 1.0


class Clumsy(Component):
    """Settings whose builder is wrong in some way."""

    by: float = 1.0


def shift(settings: Shifted, number: float, *, times: int = 1) -> float:
    return number + times * settings.by


def test_a_component_is_built_from_its_settings_and_what_is_given() -> None:
    assert Shifted(by=2.0).build(3.0, times=2) == 7.0


def test_a_component_without_builder_and_build_fits_no_section() -> None:
    assert not missing_members(Shifted, HeadSection)
    assert any("builder" in line for line in missing_members(Nothing, HeadSection))


@pytest.mark.parametrize(
    ("base", "section"), [(DataSettings, DataSection), (BackboneSettings, BackboneSection)]
)
def test_data_and_backbones_name_a_builder_or_build_themselves(base: Any, section: Any) -> None:
    def build(self: Any, **given: Any) -> Any: ...

    named = type("Named", (base,), {"builder": f"{__name__}:shift"})
    itself = type("Itself", (base,), {"build": build})
    neither = type("Neither", (base,), {})
    assert not missing_members(named, section)
    assert not missing_members(itself, section)
    assert not missing_members(type("Deeper", (itself,), {}), section)
    assert any("builder" in line for line in missing_members(neither, section))


@pytest.mark.parametrize(
    ("builder", "named"),
    [
        ("shifted", "package.module:name"),
        (f"{__name__}:shiftt", "'shift'"),
        (f"{__name__}:Clumsy.by", "by"),
        ("json.decode:x", "json.decode"),
        ("no_such_package:x", "no_such_package"),
        ("broken_builder:x", "no_such_package"),
        ("ending_builder:x", "SystemExit"),
        (f"{__name__}:__name__", __name__),
        (f"{__name__}:shift", "times=..."),
    ],
)
def test_a_builder_that_is_wrong_is_told_with_the_class_that_names_it(
    builder: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_builder.py").write_text("import no_such_package\n")
    (tmp_path / "ending_builder.py").write_text("raise SystemExit(3)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    kind: type[Component] = type("Clumsy", (Clumsy,), {"builder": builder, "__module__": __name__})
    with pytest.raises(PluginError, match=re.escape(named)) as told:
        kind().build(times=2)
    assert "Clumsy" in str(told.value) and builder in str(told.value)


def test_a_builder_that_can_name_nothing_is_told_before_anything_runs() -> None:
    def build(self: Any, **given: Any) -> Any: ...

    for builder in ("shifted", "json.decode:x", "json:", "a b:c"):
        kind = type("Lost", (Component,), {"builder": builder})
        assert any(builder in line for line in missing_members(kind, HeadSection))
    both = type("Both", (Component,), {"builder": f"{__name__}:shift", "build": build})
    assert any("builder" in line for line in missing_members(both, HeadSection))
    overriding = type("Overriding", (Shifted,), {"build": build})
    assert not missing_members(overriding, HeadSection)


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("ddnkit", "package.module:name"),
        (":x", "package.module:name"),
        ("ddnkit.nowhere:x", "ddnkit.nowhere"),
        ("no_such_package.a:x", "no_such_package"),
        ("ddnkit.errors:InputErorr", "InputError"),
    ],
)
def test_a_path_that_names_nothing_is_told(path: str, named: str) -> None:
    with pytest.raises(PluginError, match=named):
        import_object(path)


def test_what_a_module_itself_fails_on_passes_through(tmp_path: Any, monkeypatch: Any) -> None:
    (tmp_path / "broken_builder.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        import_object("broken_builder:x")


def test_every_dotted_path_in_the_plugins_names_something() -> None:
    plugins = Path(__file__).parent.parent.parent / "plugins"
    paths: set[str] = set()
    for file in plugins.rglob("*.py"):
        paths.update(re.findall(r'(?:builder = |import_object\(\s*)"([^"]+)"', file.read_text()))
    assert len(paths) > 20
    for path in sorted(paths):
        import_object(path)


def test_settings_are_made_of_keywords_checked_as_a_recipe_s_keys() -> None:
    assert settings_from(Shifted, {"by": 2}) == Shifted(by=2.0)
    base = Shifted(by=3.0)
    assert settings_from(Shifted, {}, base) is base
    with pytest.raises(InputError, match=r"Shifted: by: expected a number, was given 'x'"):
        settings_from(Shifted, {"by": "x"}, base)
    with pytest.raises(InputError, match=r"Needy: by: missing"):
        settings_from(Needy, {})
    with pytest.raises(InputError, match=r"bye.*'by'"):
        settings_from(Shifted, {"bye": 1})
    with pytest.raises(InputError, match=r"Shifted.*3\.0"):
        settings_from(Shifted, {}, 3.0)  # type: ignore[arg-type]


def test_an_old_name_answers_and_warns_with_the_new_one() -> None:
    names = {"Old": "new", "Gone": "ddnkit.errors:InputError"}
    attribute = with_old_names("package", {"new": 3}.__getitem__, names)
    assert attribute("new") == 3
    with pytest.warns(DeprecationWarning, match=r"package\.Old is now package\.new"):
        assert attribute("Old") == 3
    with pytest.warns(DeprecationWarning, match=r"ddnkit\.errors\.InputError"):
        assert attribute("Gone").__name__ == "InputError"


def test_settings_of_components_cost_no_torch() -> None:
    code = "import ddnkit, sys; ddnkit.Component; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_old_methods_answer_and_warn() -> None:
    problem = Problem(testing.QuadraticOnSphere(), (), 0)
    with pytest.warns(DeprecationWarning, match=r"Problem\.resized is now Problem\.resize"):
        assert problem.resized == problem.resize
    with pytest.warns(DeprecationWarning, match=r"BackwardForm\.resolve"):
        assert isinstance(Dense().taken(problem, 3), Dense)
    with pytest.warns(DeprecationWarning, match=r"Own\.taken is now BackwardForm\.resolve"):

        class Own(Dense):
            def taken(self, problem: Problem, size: int) -> Dense:
                return Dense(singular="damped")

    assert Own().resolve(problem, 3).singular == "damped"


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        ("ddnkit:Certificate", "reshaped", "reshape"),
        ("ddnkit.backward:Dense", "factorised", "factorise"),
        ("ddnkit_vision:ImageFiles", "chosen", "select"),
        ("ddnkit_rfm:DeepRFMCollapse", "taken", "sample_count"),
        ("ddnkit_rfm:DeepRFMCollapse", "depth", "layer_count"),
    ],
)
def test_old_methods_answer_and_name_the_new_ones(path: str, old: str, new: str) -> None:
    kind = import_object(path)
    with pytest.warns(DeprecationWarning, match=new):
        assert getattr(kind, old) == getattr(kind, new)
