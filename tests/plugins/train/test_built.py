"""What other people's plugins build is held against what a training asks of it, and told by its section."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ddnkit_train import Dataset
from ddnkit_train.settings import MLP, DataSettings
from torch import nn
from training_stand_ins import LinearHead, pipeline, run_job

import ddnkit
from ddnkit import DdnkitError, InputError

INPUTS, LABELS = torch.eye(4).repeat(3, 1), torch.arange(12) % 4
RIGHT = Dataset(INPUTS, LABELS, 4)


class Built(ddnkit.Settings):
    """Builds whatever a test says."""

    what: Any = None

    def build(self, *positional: Any, **named: Any) -> Any:
        return self.what(*positional, **named) if callable(self.what) else self.what


class BuiltData(DataSettings):
    """The same for data."""

    what: Any = None

    def build(self, *, seed: int, smoke: bool, download: bool) -> Any:
        return self.what() if callable(self.what) else self.what


def run(folder: Path, section: str = "data", what: Any = RIGHT, **engine: Any) -> list[Any]:
    sections: dict[str, Any] = {"data": BuiltData(batch_size=6, what=RIGHT)}
    kind = BuiltData if section == "data" else Built
    given = {"batch_size": 6} if section == "data" else {}
    sections[section] = kind(what=what, **given)
    if section != "head":
        sections.setdefault("backbone", MLP(width=8, depth=2))
    settings = pipeline(
        {"iterations": 2},
        **{"backbone": MLP(width=8, depth=2), "engine": {"measure_steps": 0, **engine}, **sections},
    )
    return run_job(settings, folder)


class Backbone(nn.Linear):
    """A network of four features, said to be as many as a test says."""

    def __init__(self, feature_dim: Any) -> None:
        super().__init__(4, 4)
        self.feature_dim = feature_dim


class Loss(nn.Module):
    """Gives what a test says of the mean cross-entropy."""

    def __init__(self, of: Callable[[Any], Any]) -> None:
        super().__init__()
        self.of = of

    def forward(self, logits: Any, labels: Any) -> Any:
        return self.of(nn.functional.cross_entropy(logits, labels, reduction="none"))


def a_stranger(model: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)


def of_loss(of: Callable[[Any], Any]) -> Callable[..., Loss]:
    return lambda **named: Loss(of)


WRONG: dict[str, tuple[str, Any]] = {
    "no data": ("data", None),
    "a pair": ("data", (INPUTS, LABELS)),
    "classes of a fraction": ("data", Dataset(INPUTS, LABELS, 4.0)),  # type: ignore[arg-type]
    "float64": ("data", Dataset(INPUTS.double(), LABELS, 4)),
    "float16": ("data", Dataset(INPUTS.half(), LABELS, 4)),
    "no backbone": ("backbone", None),
    "a class": ("backbone", lambda **named: nn.Linear),
    "features without a number": ("backbone", lambda **named: nn.Linear(4, 4)),
    "features of text": ("backbone", lambda **named: Backbone("4")),
    "fewer features than none": ("backbone", lambda **named: Backbone(-1)),
    "no head": ("head", None),
    "a layer": ("head", lambda **named: nn.Linear(8, 4)),
    "no loss": ("loss", None),
    "a function": ("loss", lambda **named: nn.functional.cross_entropy),
    "a loss a sample": ("loss", of_loss(lambda loss: loss)),
    "a loss of Python": ("loss", of_loss(lambda loss: 1.0)),
    "a loss of nothing": ("loss", of_loss(lambda loss: None)),
    "a loss without a gradient": ("loss", of_loss(lambda loss: loss.mean().detach())),
    "no optimizer": ("optimizer", None),
    "an optimizer of no weight": ("optimizer", a_stranger),
    "no metrics": ("metrics", None),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_wrong_input_of_its_section(what: str, tmp_path: Path) -> None:
    section, value = WRONG[what]
    with pytest.raises(InputError) as told:
        run(tmp_path, section, value)
    assert str(told.value).startswith(f"{section}: ")
    assert "\n" not in str(told.value)


def test_arrays_are_no_tensors() -> None:
    with pytest.raises(InputError, match=r"numpy\.ndarray"):
        Dataset(np.eye(4), LABELS[:4], 4)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("dtype", "precision"), [(torch.float64, "float64"), (torch.float16, "bf16")]
)
def test_samples_are_converted_where_the_engine_does(
    dtype: torch.dtype, precision: str, tmp_path: Path
) -> None:
    assert run(tmp_path, "data", Dataset(INPUTS.to(dtype), LABELS, 4), precision=precision)


#: What a metric may give, and what is recorded of it; None: it is refused.
FIGURES: dict[str, tuple[Any, float | None]] = {
    "a number": ({"nc1": 2}, 2.0),
    "a tensor": ({"nc1": torch.tensor(2.0)}, 2.0),
    "a number of numpy": ({"nc1": np.float32(2)}, 2.0),
    "infinity": ({"nc1": math.inf}, math.inf),
    "a list": ([2.0], None),
    "nothing": (None, None),
    "a vector": ({"nc1": torch.ones(2)}, None),
    "text": ({"nc1": "x"}, None),
    "too large": ({"nc1": 10**400}, None),
    "a name that is none": ({1: 2.0}, None),
    "what was measured": ({"train_loss": 0.0}, None),
    "another step": ({"step": 7}, None),
}


@pytest.mark.parametrize("what", FIGURES)
def test_figures_are_numbers_of_columns_of_their_own(what: str, tmp_path: Path) -> None:
    given, expected = FIGURES[what]
    build = lambda: lambda evaluation: given  # noqa: E731
    if expected is not None:
        assert run(tmp_path, "metrics", build)[-1]["nc1"] == expected
        return
    with pytest.raises(DdnkitError) as told:
        run(tmp_path, "metrics", build)
    assert str(told.value).startswith("metrics: ")


def test_a_head_of_another_that_has_the_members_will_do(tmp_path: Path) -> None:
    def build(*, feature_dim: int, classes: int) -> LinearHead:
        return LinearHead(feature_dim, classes, 5.0, learned=True)

    assert run(tmp_path, "head", build)
