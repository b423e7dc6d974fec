"""The learning rate over the training: warm-up, steps, cosine; the same after a resumed run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pydantic
import pytest
import torch
from ddnkit_train import classification
from ddnkit_train.settings import AGD, MLP, SGD, Digits, ScheduleSettings
from training_stand_ins import pipeline, run_job

from ddnkit import DdnkitWarning, InputError, Settings

# "Inducing Neural Collapse in Imbalanced Learning": 5 epochs of warm-up, × 0.1 at 160, × 0.01 at 180.
PUBLISHED = ScheduleSettings(warmup=5, decay="steps", milestones=(160, 180))


def test_the_published_schedule() -> None:
    length, total = 98, 200 * 98
    factors = [PUBLISHED.at(step, length, total) for step in range(1, total + 1)]
    assert factors[0] == pytest.approx(1 / 490)
    assert factors[244] == pytest.approx(0.5)
    assert factors[489 : 160 * 98] == [1.0] * (160 * 98 - 489)
    assert factors[160 * 98 : 180 * 98] == pytest.approx([0.1] * (20 * 98))
    assert factors[180 * 98 :] == pytest.approx([0.01] * (20 * 98))


def test_a_cosine_goes_from_one_to_almost_zero() -> None:
    schedule = ScheduleSettings(warmup=1, decay="cosine")
    factors = [schedule.at(step, 10, 110) for step in range(1, 111)]
    assert factors[9] == 1.0 == factors[10]
    assert factors[60] == pytest.approx(0.5)
    assert 0 < factors[-1] < 1e-3
    assert factors[10:] == sorted(factors[10:], reverse=True)


def test_by_default_nothing_changes() -> None:
    assert ScheduleSettings().constant
    assert ScheduleSettings().at(1, 10, 100) == 1.0
    assert not PUBLISHED.constant


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"milestones": [10]}, "decay.*milestones|milestones.*decay"),
        ({"decay": "steps"}, "decay.*milestones|milestones.*decay"),
        ({"decay": "steps", "milestones": [20, 10]}, r"milestones.*\[20, 10\]"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(given: Any, text: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=text):
        ScheduleSettings.model_validate(given)


def test_every_step_is_taken_at_its_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    step_of = classification._Training._step

    def recorded(self: Any, *args: Any) -> None:
        step_of(self, *args)
        taken.append(self.optimizer.param_groups[0]["lr"])

    monkeypatch.setattr(classification._Training, "_step", recorded)
    schedule = ScheduleSettings(warmup=2, decay="steps", milestones=(4, 6), factor=0.5)
    settings = pipeline(
        {"iterations": 8, "evaluate_every": 8},
        data=Digits(batch_size="full"),
        backbone=MLP(width=32, depth=2),
        optimizer=SGD(lr=0.2),
        schedule=schedule,
    )
    run_job(settings, tmp_path)
    assert taken == pytest.approx([0.1, 0.2, 0.2, 0.2, 0.1, 0.1, 0.05, 0.05])
    assert math.isclose(taken[-1], 0.2 * schedule.at(8, 1, 8))


class Rateless(Settings):
    """An optimiser of a plugin, without a learning rate."""

    def build(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        return AGD().build(model)


def test_an_optimiser_without_a_rate_is_named(tmp_path: Path) -> None:
    sections = {"data": Digits(), "backbone": MLP(width=32, depth=2), "schedule": PUBLISHED}
    settings = pipeline({"epochs": 1}, optimizer=Rateless(), **sections)
    with pytest.raises(InputError, match=r"Rateless.*sgd"):
        run_job(settings, tmp_path)
    # AGD is known to have none before anything runs.
    with pytest.raises(pydantic.ValidationError, match=r"optimizer agd.*sgd"):
        pipeline({"epochs": 1}, optimizer=AGD(), **sections)


#: A training of digits: the batch and lengths that nobody but the data can count, and what is doubted.
#: 1,438 samples in batches of 600 are three steps an epoch.
BEYOND: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "a step to evaluate at": ({"evaluate_at": (3, 7)}, {}, "train.evaluate_at: .* 7: .* 6"),
    "a milestone in the last step": ({}, {"milestones": (1, 1.75)}, "schedule.milestones: 1.75 "),
    "a checkpoint after the last step": (
        {},
        {"checkpoint_every": 6},
        "engine.checkpoint_every: 6 ",
    ),
}


@pytest.mark.parametrize("what", BEYOND)
def test_what_lies_beyond_the_last_step_is_told_once_the_data_are_there(
    what: str, tmp_path: Path
) -> None:
    train, more, told = BEYOND[what]
    sections: dict[str, Any] = {
        "data": Digits(batch_size=600),
        "backbone": MLP(width=16, depth=2),
        "optimizer": SGD(lr=0.1),
    }
    if "milestones" in more:
        sections["schedule"] = ScheduleSettings(decay="steps", **more)
    engine: dict[str, Any] = {
        "measure_steps": 0,
        **{k: v for k, v in more.items() if k != "milestones"},
    }
    settings = pipeline({"epochs": 2, **train}, engine=engine, **sections)
    assert not list(settings.doubts()), "it depends on the data"
    with pytest.warns(DdnkitWarning, match=told) as caught:
        run_job(settings, tmp_path)
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("train", "schedule", "doubted"),
    [
        ({"iterations": 4}, {"milestones": (3,)}, set()),
        ({"iterations": 4}, {"milestones": (3.5,)}, {"schedule.milestones"}),
        ({"iterations": 4}, {"milestones": (3, 4)}, {"schedule.milestones"}),
        ({"epochs": 4}, {"milestones": (3.99,)}, set()),
        ({"iterations": 4, "evaluate_at": (4,)}, {"milestones": (1,)}, set()),
        ({"iterations": 4, "evaluate_at": (5,)}, {"milestones": (1,)}, {"train.evaluate_at"}),
    ],
)
def test_a_milestone_acts_where_a_step_follows(
    train: dict[str, Any], schedule: dict[str, Any], doubted: set[str]
) -> None:
    settings = pipeline(
        train,
        data=Digits(batch_size=600),
        backbone=MLP(width=16, depth=2),
        optimizer=SGD(lr=0.1),
        schedule=ScheduleSettings(decay="steps", **schedule),
    )
    assert {doubt.key for doubt in settings.doubts()} == doubted
    if "iterations" in train:  # by the rates themselves
        fallen = settings.schedule.at(4, 1, 4) == pytest.approx(0.1 ** len(schedule["milestones"]))
        assert fallen != ("schedule.milestones" in doubted)


def test_what_lies_within_is_not_told(tmp_path: Path) -> None:
    settings = pipeline(
        {"epochs": 2, "evaluate_at": (1, 4)},
        data=Digits(batch_size=600),
        backbone=MLP(width=16, depth=2),
        optimizer=SGD(lr=0.1),
        schedule=ScheduleSettings(decay="steps", milestones=(1, 1.5)),
        engine={"checkpoint_every": 3, "measure_steps": 0},
    )
    run_job(settings, tmp_path)  # a warning would be an error
