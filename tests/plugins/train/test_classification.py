"""The classification pipeline from settings to rows."""

import csv
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pydantic
import pytest
import torch
from bounds import rounding
from ddnkit_collapse import ce_bound
from ddnkit_train import Dataset
from ddnkit_train.loss_watch import non_finite_loss
from ddnkit_train.model import Model
from ddnkit_train.samplers import Shuffled
from ddnkit_train.settings import (
    AGD,
    CNN,
    MLP,
    SGD,
    Adam,
    AdamW,
    Classification,
    CrossEntropy,
    DataSettings,
    Digits,
    FreeFeatures,
    FreeFeaturesData,
    TrainSettings,
)
from training_stand_ins import LinearHeadSettings, pipeline, run_job

import ddnkit
from ddnkit import DdnkitError, InputError

SMALL = {"data": Digits(batch_size=128), "backbone": MLP(width=32, depth=2)}
UFM = {"data": FreeFeaturesData(classes=4, samples=40), "backbone": FreeFeatures(dimension=16)}


def test_the_real_digits_are_learned(tmp_path: Path) -> None:
    settings = pipeline({"epochs": 12, "evaluate_every": 6, "evaluate_at": [3]}, **SMALL)
    rows = run_job(settings, tmp_path)
    assert [tuple(row) for row in rows] == [Classification.columns] * 3
    assert [(row["epoch"], row["step"]) for row in rows] == [(0.25, 3), (6.0, 72), (12.0, 144)]
    last = rows[-1]
    # Chance is 10 %: whatever learns is far above, however it rounds.
    assert last["test_top1"] > 90
    assert last["train_top1"] > 95
    assert last["train_loss"] < rows[0]["train_loss"]
    assert last["ce_gap"] == pytest.approx(last["train_loss"] - ce_bound(10, 5.0))
    assert all(math.isfinite(value) for value in last.values())


def test_free_features_come_down_to_the_bound(tmp_path: Path) -> None:
    settings = pipeline(
        {"iterations": 400, "evaluate_every": 200},
        head=LinearHeadSettings(learned=False),
        **{**UFM, "optimizer": AGD(gain=10)},
    )
    rows = run_job(settings, tmp_path)
    assert [row["step"] for row in rows] == [200, 400]
    assert rows[-1]["epoch"] == 400
    assert rows[-1]["test_top1"] is None
    # Never below the bound but for rounding; whatever stalls is of order one above it.
    assert -rounding(torch.float32, 16) < rows[-1]["ce_gap"] < 1e-4
    assert rows[-1]["nc1"] < 1e-4
    assert rows[-1]["cosine_margin"] == pytest.approx(4 / 3, abs=1e-2)


def test_the_same_seed_gives_the_same_rows(tmp_path: Path) -> None:
    settings = pipeline({"epochs": 1, "evaluate_at": [2]}, **SMALL)
    first, again = (run_job(settings, tmp_path, seed=3) for _ in range(2))
    assert first == again
    assert run_job(settings, tmp_path, seed=4) != first


def test_margins_are_written_sorted_with_their_bound(tmp_path: Path) -> None:
    rows = run_job(pipeline({"iterations": 3}, **UFM), tmp_path)
    with (tmp_path / "margins.csv").open() as file:
        written = list(csv.DictReader(file))
    margins = [float(row["cosine_margin"]) for row in written]
    assert [int(row["example"]) for row in written] == list(range(1, 41))
    assert margins == sorted(margins)
    assert sum(margins) / 40 == pytest.approx(
        rows[-1]["cosine_margin"], abs=rounding(torch.float32, 40)
    )
    assert [float(row["bound"]) for row in written] == pytest.approx([4 / 3] * 40)


def test_margins_of_many_samples_are_thinned(tmp_path: Path) -> None:
    data = FreeFeaturesData(classes=4, samples=5000)
    run_job(pipeline({"iterations": 1}, **{**UFM, "data": data}), tmp_path)
    lines = (tmp_path / "margins.csv").read_text().splitlines()
    assert len(lines) == 2001
    assert lines[1].startswith("1,")
    assert lines[-1].startswith("5000,")


def test_smoke_takes_a_few_steps_on_synthetic_data(tmp_path: Path) -> None:
    settings = pipeline({"epochs": 1000}, **{**SMALL, "backbone": CNN(channels=(4, 8))})
    rows = run_job(settings, tmp_path, smoke=True)
    assert [row["step"] for row in rows] == [1, 3]
    assert (tmp_path / "margins.csv").exists()


def test_progress_shows_the_last_evaluation_and_a_rate(tmp_path: Path) -> None:
    settings = pipeline({"iterations": 250, "evaluate_every": 100}, **UFM)
    reports = run_job(settings, tmp_path).reports
    assert len(reports) <= 130
    assert reports[-1][:2] == (250, 250)
    assert reports[0][2].keys() == {"steps/s"}
    assert reports[-1][2].keys() == {"train_loss", "train_top1", "steps/s"}


@pytest.mark.parametrize("batch", [40, 400, "full"])
def test_a_batch_of_everything_is_one_step_an_epoch(tmp_path: Path, batch: Any) -> None:
    data = FreeFeaturesData(classes=4, samples=40, batch_size=batch)
    rows = run_job(pipeline({"epochs": 2}, **{**UFM, "data": data}), tmp_path)
    assert [(row["epoch"], row["step"]) for row in rows] == [(1.0, 1), (2.0, 2)]


def test_shuffled_batches_train_too(tmp_path: Path) -> None:
    data = Digits(batch_size=500, sampler="shuffled")
    rows = run_job(pipeline({"iterations": 2}, **{**SMALL, "data": data}), tmp_path)
    assert [row["epoch"] for row in rows] == [1 / 3, 2 / 3]


def test_the_gap_is_left_empty_where_the_bound_does_not_hold(tmp_path: Path) -> None:
    class LongRows(LinearHeadSettings):
        def build(self, *, feature_dim: int, classes: int) -> Any:
            head = super().build(feature_dim=feature_dim, classes=classes)
            head.after_step = lambda: None
            head.weight.data *= 2
            return head

    settings = pipeline({"iterations": 1}, head=LongRows(learned=False), **UFM)
    row = run_job(settings, tmp_path)[0]
    assert row["ce_gap"] is None
    assert row["train_loss"] > 0


def test_a_loss_that_is_not_finite_stops_the_job(tmp_path: Path) -> None:
    class Broken(Digits):
        def build(self, *, seed: int, smoke: bool, download: bool = False) -> Any:
            data = super().build(seed=seed, smoke=smoke)
            data.inputs[7] = math.nan
            return data

    settings = pipeline({"iterations": 1}, **{**SMALL, "data": Broken(batch_size=2000)})
    with pytest.raises(
        ddnkit.DdnkitError,
        match=r"step 1\b.* epoch 1 .* 7\.",
    ):
        run_job(settings, tmp_path)


@pytest.mark.parametrize("name", ["nearest_etf", "fixed_etf", "standard"])
def test_features_that_are_not_finite_are_told_with_their_samples(name: str) -> None:
    head = ddnkit.registry.get("heads", name)().build(feature_dim=8, classes=4)
    model = Model(torch.nn.Linear(6, 8), head)
    inputs, labels = torch.randn(12, 6), torch.arange(12) % 4
    inputs[5] = 3.4e38  # a number still, whose sums are none
    with torch.no_grad():
        model.backbone.weight.fill_(1.0)
        assert model(inputs, labels).isnan().any()
    index = torch.arange(100, 112)
    text = str(non_finite_loss(model, inputs, index, [], "step 1", "No checkpoint."))
    assert re.search(r"features .*\b105 ", text)


def test_a_metric_without_a_column_is_named(tmp_path: Path) -> None:
    class Surprise(ddnkit.Settings):
        def build(self) -> Any:
            return lambda evaluation: {"surprise": 1.0}

    settings = pipeline({"iterations": 1}, **{**UFM, "metrics": Surprise()})
    with pytest.raises(ddnkit.DdnkitError, match="surprise"):
        run_job(settings, tmp_path)


def test_a_metric_brings_columns_of_its_own(tmp_path: Path) -> None:
    class Margin(ddnkit.Settings):
        columns: ClassVar[tuple[str, ...]] = ("mean_margin", "nc1")

        def build(self) -> Any:
            return lambda evaluation: {"mean_margin": float(evaluation.margins.mean())}

    settings = pipeline({"iterations": 2, "evaluate_every": 1}, **{**UFM, "metrics": Margin()})
    assert settings.all_columns == (*Classification.columns, "mean_margin")
    rows = run_job(settings, tmp_path)
    assert [tuple(row) for row in rows] == [settings.all_columns] * 2
    assert all(math.isfinite(row["mean_margin"]) and row["nc1"] is None for row in rows)


@pytest.mark.parametrize(
    "columns", ["mean_margin", ("mean margin",), ("train_loss",), ("a,b",), ("",), (3,), None]
)
def test_columns_that_cannot_be_are_refused_before_anything_runs(columns: Any) -> None:
    class Margin(ddnkit.Settings):
        def build(self) -> Any:
            return lambda evaluation: {}

    Margin.columns = columns
    with pytest.raises(pydantic.ValidationError, match="Margin"):
        pipeline({"iterations": 1}, **{**UFM, "metrics": Margin()})


@pytest.mark.parametrize(
    "optimizer",
    [SGD(lr=0.5, nesterov=True), Adam(lr=0.05), AdamW(lr=0.05, weight_decay=1e-4), AGD(gain=5)],
)
def test_each_optimizer_lowers_the_loss(tmp_path: Path, optimizer: ddnkit.Settings) -> None:
    settings = pipeline(
        {"iterations": 30, "evaluate_at": [1], "evaluate_every": 30},
        **{**UFM, "optimizer": optimizer},
    )
    first, last = run_job(settings, tmp_path)
    assert last["train_loss"] < 0.8 * first["train_loss"]


def test_label_smoothing_is_the_loss_that_is_minimised() -> None:
    logits, labels = torch.tensor([[3.0, 0.0]]), torch.tensor([0])
    counts, head = torch.tensor([1, 1]), torch.nn.Identity()
    plain, smooth = (
        CrossEntropy(label_smoothing=s).build(counts=counts, head=head)(logits, labels)
        for s in (0, 0.2)
    )
    assert float(smooth) == pytest.approx(float(plain) + 0.1 * 3)


@pytest.mark.parametrize(
    ("backbone", "sample_shape"),
    [
        (FreeFeatures(), (1, 8, 8)),
        (MLP(), ()),
        (CNN(), (64,)),
    ],
)
def test_data_and_backbone_that_do_not_fit_are_refused(
    backbone: Any, sample_shape: tuple[int, ...]
) -> None:
    with pytest.raises(InputError, match="backbone"):
        backbone.build(sample_shape=sample_shape, samples=10)


def test_a_bias_is_refused_by_agd_before_training(tmp_path: Path) -> None:
    settings = pipeline({"epochs": 1}, **{**SMALL, "backbone": MLP(width=8, depth=1, bias=True)})
    with pytest.raises(InputError, match="bias: false"):
        run_job(settings, tmp_path)


@pytest.mark.parametrize("wrong", [{}, {"epochs": 1, "iterations": 1}, {"epochs": 0}])
def test_training_has_one_length(wrong: dict[str, int]) -> None:
    with pytest.raises(pydantic.ValidationError):
        TrainSettings(**wrong)


@pytest.mark.parametrize("length", ["epochs", "iterations"])
def test_a_training_without_end_is_refused_before_it_fills_the_memory(length: str) -> None:
    for many in (10**7, 10**18, 10**26):
        with pytest.raises(pydantic.ValidationError, match="evaluate_every"):
            TrainSettings(**{length: many})
    settings = TrainSettings(**{length: 10**26, "evaluate_every": 10**25})
    assert len(settings.evaluation_steps(12)) == 10


def test_evaluation_steps() -> None:
    by_epoch = TrainSettings(epochs=5, evaluate_every=2, evaluate_at=(3, 10, 999))
    assert by_epoch.total_steps(10) == 50
    assert sorted(by_epoch.evaluation_steps(10)) == [3, 10, 20, 40, 50]
    by_step = TrainSettings(iterations=25, evaluate_every=10, evaluate_at=(1,))
    assert by_step.total_steps(10) == 25
    assert sorted(by_step.evaluation_steps(10)) == [1, 10, 20, 25]


def test_nesterov_needs_momentum() -> None:
    with pytest.raises(pydantic.ValidationError, match="momentum"):
        SGD(nesterov=True, momentum=0)


def test_every_setting_has_a_help_text() -> None:
    for group in ("datasets", "backbones", "losses", "optimizers", "pipelines", "metrics"):
        for plugin in ddnkit.registry.plugins(group):
            if not plugin.target.startswith(("ddnkit_train", "ddnkit_collapse")):
                continue
            settings = ddnkit.registry.get(group, plugin.name)
            assert settings.__doc__
            for name, field in settings.model_fields.items():
                assert field.description, f"{plugin}: {name}"


def test_settings_do_not_import_torch() -> None:
    code = (
        "import sys, ddnkit_train.settings, ddnkit_collapse.settings; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_public_names_are_what_the_facades_list() -> None:
    import ddnkit_collapse
    import ddnkit_train

    for facade in (ddnkit_collapse, ddnkit_train):
        assert all(getattr(facade, name).__name__ == name for name in facade.__all__)


class BadTest(DataSettings):
    """Four classes apart from each other, and a NaN in two of its test samples of class 0."""

    def build(self, *, seed: int, smoke: bool, download: bool) -> Dataset:
        labels = torch.arange(40) % 4
        inputs = torch.eye(4)[labels]
        test = inputs.clone()
        test[[0, 4], 1] = math.nan
        return Dataset(inputs, labels, 4, test, labels)


def test_a_test_sample_that_is_no_number_is_no_class(tmp_path: Path) -> None:
    """Of logits that are all NaN argmax gives class 0, which is theirs."""
    settings = pipeline(
        {"iterations": 30, "evaluate_every": 30},
        data=BadTest(batch_size="full"),
        backbone=MLP(width=8, depth=2),
    )
    with pytest.warns(ddnkit.DdnkitWarning, match="2 test sample.* 0, 4 "):
        rows = run_job(settings, tmp_path)
    assert rows[-1]["train_top1"] == 100
    assert rows[-1]["test_top1"] == 95
    with (tmp_path / "classes.csv").open() as file:
        assert [float(row["test_top1"]) for row in csv.DictReader(file)] == [80, 100, 100, 100]


class BadTraining(DataSettings):
    """A NaN and an infinity in samples that no batch holds before the first evaluation."""

    def build(self, *, seed: int, smoke: bool, download: bool) -> Dataset:
        labels = torch.arange(40) % 4
        order = Shuffled(labels, 4, seed).order(0)
        inputs = torch.eye(4)[labels]
        inputs[order[-1], 1], inputs[order[-2], 2] = math.nan, -math.inf
        return Dataset(inputs, labels, 4)


def test_a_training_sample_that_is_no_number_is_named_by_the_evaluation(tmp_path: Path) -> None:
    labels = torch.arange(40) % 4
    bad = Shuffled(labels, 4, 0).order(0)[-2:].sort().values.tolist()
    settings = pipeline(
        {"iterations": 5, "evaluate_at": [1]},
        data=BadTraining(batch_size=4, sampler="shuffled"),
        backbone=MLP(width=8, depth=2),
    )
    with pytest.raises(DdnkitError, match=f"samples {bad[0]}, {bad[1]} "):
        run_job(settings, tmp_path)
