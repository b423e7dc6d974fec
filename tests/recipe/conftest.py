"""A pipeline without training, and a way to load a recipe from its text."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Literal

import pydantic
import pytest

from ddnkit import Settings, component, registry
from ddnkit.errors import InputError
from ddnkit.recipe.load import load
from ddnkit.recipe.pipeline import Job, Pipeline
from ddnkit.recipe.recipe import Recipe


class Plain(Settings):
    temperature: float = pydantic.Field(5.0, gt=0, le=100)
    share: float = 0.1


class Inner(Settings):
    alpha: float = 0.5


class Rich(Settings):
    temperature: float = pydantic.Field(5.0, gt=0, le=100)
    delta: float = 1e-3
    share: float = 0.2
    backward: Literal["dense", "closed_form"] = "closed_form"
    dims: tuple[int, ...] = (1, 2)
    inner: Inner = Inner()
    more: Inner | None = None
    size: int | Literal["full"] = 3
    flag: bool = False


class Open(Settings):
    model_config = pydantic.ConfigDict(extra="allow")


class Loss(Settings):
    smoothing: float = 0.0


class Picky(Settings):
    one: int = 1
    other: int = 2

    @pydantic.model_validator(mode="after")
    def _not_both(self) -> Picky:
        if {"one", "other"} <= self.model_fields_set:
            raise ValueError("give one or other")
        return self


class Colour(Enum):
    RED = "red"


class Train(Settings):
    epochs: int | None = None
    iterations: int | None = None
    colour: Colour = Colour.RED

    @pydantic.model_validator(mode="after")
    def _one_length(self) -> Train:
        if self.epochs is not None and self.iterations is not None:
            raise ValueError("give epochs or iterations, not both")
        return self


class Toy(Pipeline):
    columns: ClassVar[tuple[str, ...]] = ("epoch", "step", "loss")
    head: Settings = component("heads")
    loss: Settings = component("losses", "toy_loss")
    metrics: Settings | None = component("metrics", "toy_metric")
    train: Train = Train()
    note: str = "n"

    @classmethod
    def presets(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        if given.get("note") == "wrong":
            return {"head.share": "much"}
        if given.get("note") != "other":
            return {}
        delta = {"toy_rich": 0.25}.get(given["head"]["name"], 1)
        return {"head.delta": delta, "head.inner.alpha": 0.75, "loss.smoothing": 0.5, "a.b": 1}

    def run(self, job: Job) -> None:
        job.record({"step": 1})


@pytest.fixture(scope="session", autouse=True)
def _plugins() -> None:
    for group, name, value in [
        ("pipelines", "toy_load", Toy),
        ("heads", "toy_plain", Plain),
        ("heads", "toy_rich", Rich),
        ("heads", "toy_open", Open),
        ("losses", "toy_loss", Loss),
        ("losses", "toy_picky", Picky),
        ("metrics", "toy_metric", Loss),
    ]:
        registry.register(group, name, value)


Loader = Callable[..., Recipe]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loader:
    """``recipe(text, *overrides)`` loads the text as x.yaml."""
    monkeypatch.chdir(tmp_path)

    def loader(text: str, *overrides: str, **options: Any) -> Recipe:
        Path("x.yaml").write_text(textwrap.dedent(text).lstrip("\n"), encoding="utf-8")
        return load("x.yaml", overrides, **options)

    return loader


@pytest.fixture
def errors(recipe: Loader) -> Callable[..., list[str]]:
    """``errors(text, *overrides)`` gives the lines of the error that loading raises."""

    def lines(text: str, *overrides: str, **options: Any) -> list[str]:
        with pytest.raises(InputError) as caught:
            recipe(text, *overrides, **options)
        assert caught.value.exit_status == 2
        return str(caught.value).split("\n")

    return lines
