"""The deep_rfm and rfm_theory pipelines end to end: rows, what is refused, and going on after a stop."""

from __future__ import annotations

import csv
import functools
import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
import torch
from bounds import factorised
from click.testing import CliRunner, Result
from ddnkit_rfm import DeepRFM, FourierFeatures, L1Laplace, Laplace, LayerStages, ReLUFeatures, dnc1
from ddnkit_rfm.deep_rfm_run import write_gram
from ddnkit_rfm.regression import TOLERANCE
from ddnkit_rfm.settings import DeepRFMCollapse, RFMTheory
from ddnkit_train import Dataset, Standardise, read_sealed, write_sealed
from ddnkit_train.settings import DataSettings, Digits, FreeFeaturesData
from ddnkit_vision.settings import ImageFolder
from PIL import Image
from rfm_data import ROOTS, left_by_descent

from ddnkit import DamagedFileError, InputError, Job
from ddnkit.cli import main
from ddnkit.recipe.load import load
from ddnkit.run.folder import RunFolder
from ddnkit.run.job import run_job
from ddnkit.run.options import JobOptions, RunOptions
from ddnkit.run.session import Session

RECIPES = Path(__file__).parents[3] / "recipes"
PAPER = ("cifar10", "mnist", "svhn", "fashion_mnist")
SMALL: dict[str, Any] = {
    "samples": 120, "test_samples": 80, "layers": 4, "features": {"name": "relu", "width": 48},
}  # fmt: skip


class Tensors(DataSettings):
    """Data that a test made."""

    data: Any

    def build(self, *, seed: int, smoke: bool, download: bool = False) -> Any:
        return self.data


@dataclass
class Record:
    """What a job records, over all of its sessions."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    progress: list[int] = field(default_factory=list)

    def run(
        self, settings: DeepRFMCollapse, folder: Path, stop_after: int | None = None, **more: Any
    ) -> None:
        """One session, asked to stop once there are so many rows."""
        folder.mkdir(exist_ok=True)
        job = Job(
            variant="default",
            **{"seed": 0, "folder": folder, "device": "cpu", "smoke": False, **more},
            record=self.rows.append,
            progress=lambda done, total, figures: self.progress.append(done),
            rows=lambda: len(self.rows),
            rewind=lambda count, checksum=None: self.rows.__delitem__(slice(count, None)),
            stopping=lambda: len(self.rows) == stop_after,
        )
        settings.run(job)

    @property
    def figures(self) -> list[dict[str, Any]]:
        """The rows but for the time that they took."""
        return [{key: row[key] for key in row if key != "seconds"} for row in self.rows]


def digits() -> Dataset:
    """In a random order: as they are built, those of a class follow each other."""
    data = Digits().build(seed=0, smoke=False)
    assert data.test_inputs is not None and data.test_labels is not None
    train, test = (torch.randperm(n) for n in (data.samples, data.test_samples))
    return replace(
        data.subset(train), test_inputs=data.test_inputs[test], test_labels=data.test_labels[test]
    )


def pipeline(**more: Any) -> DeepRFMCollapse:
    given = {} if "data" in more else {"data": Tensors(data=digits())}
    return DeepRFMCollapse(**{**SMALL, **given, **more})


def rows(settings: DeepRFMCollapse, folder: Path, **more: Any) -> list[dict[str, Any]]:
    record = Record()
    record.run(settings, folder, **more)
    return record.rows


def command(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["run", *arguments, "--jobs", "1", "--device", "cpu"])


def recorded(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("features", "feature_map"),
    [
        ({"name": "relu", "width": 48}, ReLUFeatures(48)),
        ({"name": "cosine", "width": 40}, FourierFeatures(L1Laplace(20.0), 40)),
    ],
)
def test_a_job_is_algorithm_1_with_the_job_s_seed(
    features: dict[str, Any], feature_map: ReLUFeatures | FourierFeatures, tmp_path: Path
) -> None:
    data = digits()
    found = rows(pipeline(data=Tensors(data=data), features=features), tmp_path, seed=3)
    train = data.inputs[:120].flatten(1).to(torch.float64)
    y = data.labels[:120]
    assert data.test_inputs is not None and data.test_labels is not None
    test = data.test_inputs[:80].flatten(1).to(torch.float64)
    seen: list[LayerStages] = []
    model = DeepRFM(Laplace(2.0), 4, feature_map, seed=3)
    model.fit(train, y, on_layer=seen.append)
    assert [row["step"] for row in found] == [1, 2, 3, 4]
    for row, stages in zip(found, seen, strict=False):
        assert stages.projected is not None and stages.features is not None
        assert row["dnc1_input"] == pytest.approx(float(dnc1(stages.inputs, y)), rel=ROOTS)
        assert row["dnc1_agop"] == pytest.approx(float(dnc1(stages.projected, y)), rel=ROOTS)
        assert row["dnc1_features"] == pytest.approx(float(dnc1(stages.features, y)), rel=ROOTS)
        right = model.predict(test, layer=row["step"]) == data.test_labels[:80]
        assert row["test_top1"] == pytest.approx(100 * float(right.double().mean()))
        assert (row["train_top1"], row["samples"], row["test_samples"]) == (100, 120, 80)
        assert row["residual"] < TOLERANCE and row["solved"] == 1
        assert row["rank"] is None and row["iterations"] is None


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("name", ["relu", "cosine", "identity"])
@pytest.mark.parametrize("after", [1, 3])
def test_a_job_that_was_stopped_goes_on_bit_for_bit(
    name: str, precision: str, after: int, tmp_path: Path
) -> None:
    width = None if name == "identity" else 48
    settings = pipeline(
        features={"name": name, "width": width}, precision=precision, gram_layers=(1, 2, 4)
    )
    whole, stopped = Record(), Record()
    whole.run(settings, tmp_path / "whole")
    folder = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        stopped.run(settings, folder, stop_after=after)
    assert len(stopped.rows) == after
    assert [path.name for path in (folder / "state").iterdir()] == ["layer.pt"]
    stopped.run(settings, folder)
    assert stopped.figures == whole.figures
    assert whole.progress == [0, 1, 2, 3, 4]
    assert stopped.progress == [*range(after + 1), *range(after, 5)]
    for layer in (1, 2, 4):
        pair = (path / f"gram-{layer}.npz" for path in (tmp_path / "whole", folder))
        assert len({path.read_bytes() for path in pair}) == 1


def test_a_row_that_no_state_counts_is_recorded_again(tmp_path: Path) -> None:
    settings, whole, killed = pipeline(), Record(), Record()
    whole.run(settings, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        killed.run(settings, tmp_path / "killed", stop_after=2)
    killed.rows.append(dict(whole.rows[2]))
    killed.run(settings, tmp_path / "killed")
    assert killed.figures == whole.figures


def test_a_damaged_state_is_told_of(tmp_path: Path) -> None:
    record = Record()
    with pytest.raises(KeyboardInterrupt):
        record.run(pipeline(), tmp_path, stop_after=1)
    file = tmp_path / "state" / "layer.pt"
    content = file.read_bytes()
    changed = bytearray(content)
    changed[len(content) // 2] ^= 1
    for wrong in (content[:500], b"", bytes(changed), content + b"x"):
        file.write_bytes(wrong)
        with pytest.raises(DamagedFileError, match=r"layer\.pt"):
            record.run(pipeline(), tmp_path)
    file.write_bytes(content)
    saved = read_sealed(file)
    assert saved is not None
    for key, value in {"format": 1, "layer": 9, "job": ["default", 7], "train": None}.items():
        forged = {**saved, key: value}
        write_sealed(file, functools.partial(torch.save, forged))
        with pytest.raises(DamagedFileError, match=r"layer\.pt"):
            record.run(pipeline(), tmp_path)
    file.write_bytes(content)
    record.run(pipeline(), tmp_path)


def test_an_interrupted_run_goes_on_from_the_command_line(tmp_path: Path) -> None:
    """The state lies where ``--resume`` leaves it, and is removed when the job is done."""
    file, out = tmp_path / "recipe.yaml", tmp_path / "out"
    file.write_text(
        "pipeline: deep_rfm\ndata: {name: digits}\nlayers: 3\nfeatures: {name: relu, width: 48}\n"
    )
    assert command(str(file), "--smoke", "--out", str(out)).exit_code == 0
    job = out / "runs" / "default" / "seed-0"
    assert not (job / "state").exists()
    whole = recorded(job)
    with pytest.raises(KeyboardInterrupt):
        Record().run(load(file).variants[0].pipeline, job, stop_after=2, smoke=True)  # type: ignore[arg-type]
    (job / "done.json").unlink()
    result = command(str(file), "--smoke", "--out", str(out), "--resume")
    assert result.exit_code == 0, result.output
    assert not (job / "state").exists()
    # Rows 1 and 2 are those of the first run, the third is computed anew from the state.
    again = recorded(job)
    assert [row["seconds"] for row in again[:2]] == [row["seconds"] for row in whole[:2]]
    for row in (*whole, *again):
        del row["seconds"]
    assert again == whole


def test_rows_that_were_edited_are_not_gone_on_from(
    tmp_path: Path,
) -> None:
    file, out = tmp_path / "recipe.yaml", tmp_path / "out"
    file.write_text(
        "pipeline: deep_rfm\ndata: {name: digits}\nlayers: 3\nfeatures: {name: relu, width: 48}\n"
    )
    loaded = load(file)
    arguments = (str(file), "--smoke", "--out", str(out))
    Session(loaded, list(loaded.variants), RunOptions(JobOptions("cpu", smoke=True), out))
    asked = iter((False, True))
    with pytest.raises(KeyboardInterrupt):
        run_job(
            RunFolder(out),
            loaded.variants[0],
            0,
            options=JobOptions("cpu", smoke=True),
            update=lambda *_: None,
            stopping=lambda: next(asked),
        )
    rows = out / "runs" / "default" / "seed-0" / "metrics.csv"
    content = rows.read_bytes()
    head, first, second = content.splitlines(keepends=True)
    rows.write_bytes(head + first.replace(b",0.", b",1.", 1) + second)
    assert rows.read_bytes() != content
    result = command(*arguments, "--resume")
    assert result.exit_code == 2 and str(rows) in result.stderr
    rows.write_bytes(content)
    assert command(*arguments, "--resume").exit_code == 0
    assert rows.read_bytes().startswith(content)


def dataset(labels: torch.Tensor, inputs: torch.Tensor, *, tested: bool = False) -> Tensors:
    test = (inputs, labels) if tested else (None, None)
    return Tensors(data=Dataset(inputs, labels, 3, *test, Standardise.fit(inputs, "none")))


def test_images_are_taken_as_bytes_and_a_missing_test_set_leaves_cells_empty(
    tmp_path: Path,
) -> None:
    labels = torch.arange(30) % 3
    images = torch.randint(256, (30, 2, 3, 3), dtype=torch.uint8)
    images[:, 0, 0, 0] = 7  # never varies
    more = {"samples": 50, "layers": 2}
    plain = rows(pipeline(data=dataset(labels, images), **more), tmp_path / "a")
    assert [row["test_top1"] for row in plain] == [None, None]
    assert [row["test_samples"] for row in plain] == [0, 0]
    tested = rows(pipeline(data=dataset(labels, images, tested=True), **more), tmp_path / "b")
    assert [row["test_top1"] for row in tested] == [100, 100]
    assert {row["samples"] for row in tested} == {30}
    raw = rows(
        pipeline(data=dataset(labels, images), standardise=False, labels="one_hot", **more),
        tmp_path / "c",
    )
    assert raw[0]["dnc1_input"] != pytest.approx(plain[0]["dnc1_input"], rel=1e-3)


def test_equations_that_have_no_solution_are_recorded_and_not_warned_of(tmp_path: Path) -> None:
    """Two equal samples of different classes: K is singular, Y not in its range."""
    labels = torch.arange(30) % 3
    inputs = torch.randn(30, 5)
    inputs[1] = inputs[0]
    (row,) = rows(pipeline(data=dataset(labels, inputs), layers=1), tmp_path)
    assert (row["rank"], row["solved"]) == (29, 0)
    assert row["residual"] > 0.01
    (row,) = rows(pipeline(data=dataset(labels, inputs), layers=1, ridge=0.1), tmp_path / "ridge")
    assert (row["rank"], row["solved"]) == (None, 1)
    (row,) = rows(
        pipeline(data=dataset(labels, inputs + torch.randn(30, 5)), layers=1, solver="iterative"),
        tmp_path / "iterative",
    )
    assert row["solved"] == 1 and row["iterations"] > 0


def test_pictures_are_ordered_by_class_and_show_each_with_its_share(tmp_path: Path) -> None:
    settings = pipeline(samples=120, gram_layers=(1, 3, 4, 9))
    rows(settings, tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.npz")) == [
        "gram-1.npz", "gram-3.npz", "gram-4.npz",
    ]  # fmt: skip
    within = []
    for layer in (1, 4):
        content = np.load(tmp_path / f"gram-{layer}.npz")
        gram, labels = content["gram"].astype(np.float64), content["labels"]
        assert gram.shape == (120, 120) and (np.diff(labels) >= 0).all()
        np.testing.assert_allclose(np.diagonal(gram), 1, atol=np.finfo(np.float16).eps)
        within.append(gram[labels[:, None] == labels].mean())
    assert within[0] < 0.6 < 0.7 < within[1]
    labels = torch.tensor([2] * 120 + [0] * 600 + [1] * 280)
    write_gram(tmp_path, 9, torch.randn(1000, 3), labels)
    shown = np.load(tmp_path / "gram-9.npz")["labels"]
    assert (np.diff(shown) >= 0).all() and np.bincount(shown).tolist() == [300, 140, 60]


def test_the_first_process_alone_works(tmp_path: Path) -> None:
    assert rows(pipeline(), tmp_path, rank=1, world=2) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("samples", "dtype"), [(10_000, "float64"), (10_001, "float32")])
def test_automatic_precision_follows_from_the_number_of_samples(samples: int, dtype: str) -> None:
    assert pipeline().dtype(samples) == dtype
    assert pipeline(precision="float64").dtype(samples) == "float64"


def image_folder(root: Path) -> ImageFolder:
    for name in ("train/a", "train/b", "val/a", "val/b"):
        (root / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(root / name / "0.png")
    return ImageFolder(root=root, workers=0)


def test_data_without_a_kernel_matrix_are_refused(tmp_path: Path) -> None:
    refused = {
        "ImageFolder": pipeline(data=image_folder(tmp_path / "images")),
        "FreeFeaturesData": pipeline(data=FreeFeaturesData()),
        r"\b9 samples .*\b10 classes": pipeline(samples=9),
        r"\b120 samples .*\b1\b.*\b10 classes": pipeline(data=Digits()),
    }
    for told, settings in refused.items():
        with pytest.raises(InputError, match=told):
            rows(settings, tmp_path / "job")


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("kernel.bandwidth=0", "kernel.bandwidth"),
        ("kernel.name=laplce", "laplace"),
        ("features.name=cos", "cosine"),
        ("layers=0", "layers"),
        ("ridge=-1", "ridge"),
        ("samples=5", "samples: "),
        ("data.name=free_features", "FreeFeaturesData"),
        ("features.widht=3", "'width'"),
    ],
)
def test_mistakes_are_named(option: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("pipeline: deep_rfm\ndata: {name: digits}\n")
    result = command(str(file), "-s", option, "--out", str(tmp_path / "out"))
    assert result.exit_code == 2, result.output
    assert told in result.output
    assert "Traceback" not in result.output


def test_the_identity_has_no_width() -> None:
    with pytest.raises(pydantic.ValidationError, match="width"):
        pipeline(features={"name": "identity", "width": 3})


@pytest.mark.parametrize("name", PAPER)
def test_the_recipes_have_the_paper_s_settings(name: str) -> None:
    recipe = load(RECIPES / f"{name}_rfm.yaml")
    assert recipe.seeds == (0, 1, 2)
    relu, cosine = (variant.pipeline for variant in recipe.variants)
    assert isinstance(relu, DeepRFMCollapse) and isinstance(cosine, DeepRFMCollapse)
    assert [variant.name for variant in recipe.variants] == ["relu", "cosine"]
    assert repr(relu.features.build()) == "ReLUFeatures(width=1024)"
    expected = "FourierFeatures(L1Laplace(bandwidth=20.0), width=4096)"
    assert repr(cosine.features.build()) == expected
    predictor = "Gaussian" if name == "mnist" else "Laplace"
    assert repr(relu.kernel.build()) == f"{predictor}(bandwidth=2.0)"
    assert repr(cosine.kernel.build()) == "Laplace(bandwidth=2.0)"
    for settings in (relu, cosine):
        assert (settings.samples, settings.layers, settings.ridge) == (50_000, 19, 0)
        assert (settings.labels, settings.standardise) == ("plus_minus", True)
        assert settings.dtype(50_000) == "float32"
        assert not getattr(settings.data, "flip", False)


@pytest.mark.parametrize("name", ["fashion_mnist_rfm_2000", "mnist_rfm"])
def test_a_smoke_run_leaves_all_that_a_run_does(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = command(name, "--smoke", "--out", str(out))
    assert result.exit_code == 0, result.output
    variants = [path.name for path in (out / "runs").iterdir()]
    assert {"relu", "cosine"} <= set(variants)
    for variant in variants:
        found = recorded(out / "runs" / variant / "seed-0")
        assert list(found[0]) == list(DeepRFMCollapse.columns)
        assert [row["step"] for row in found] == ["1", "2", "3"]
        assert {row["samples"] for row in found} == {"300"}
        assert all(math.isfinite(float(row["dnc2_features"])) for row in found)
    report = (out / "report.md").read_text(encoding="utf-8")
    assert "Warning" not in report
    assert re.search(r"\b300 samples\b", report)
    assert "| 1: plain kernel regression | 100.00 |" in report
    for figure in ("collapse", "gram", "accuracy"):
        assert (out / f"figures/{figure}.png").stat().st_size > 10_000
        assert f"(figures/{figure}.png)" in report


def theory(**settings: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    job = Job(
        "v", 0, Path(), "cpu", settings.pop("smoke", False), found.append, progress=lambda *_: None
    )
    RFMTheory(**settings).run(job)
    return found


@pytest.mark.parametrize("ratio", [0.01, 0.1, 1])
def test_the_recursion_has_the_derived_rate_and_not_with_the_paper_s_kappa(ratio: float) -> None:
    found = theory(ratio=ratio)
    assert [row["step"] for row in found] == list(range(2, 14))
    factors = [row["factor"] for row in found if row["factor"] is not None]
    assert found[0]["factor"] is None
    assert factors[-1] == pytest.approx(found[0]["rate"], rel=0.01)
    assert found[-1]["distance"] < 1e-3
    if ratio == 1:
        assert "published_distance" not in found[0]
    else:
        assert found[-1]["published_distance"] > 0.9 * found[0]["published_distance"] > 0.3


def test_the_optimum_is_tried() -> None:
    (row,) = theory(ridge=1, classes=3, samples=4, draws=60, descents=1)
    assert row["value"] == pytest.approx(row["bound"], rel=factorised(torch.float64, 12))
    assert row["least"] > row["bound"]
    assert row["increase"] > 0
    assert row["descent_distance"] < left_by_descent(torch.arange(3).repeat(4), 1.0)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, r"ratio or ridge\b.*neither"),
        ({"ratio": 1, "ridge": 1}, r"ratio or ridge\b.*both"),
        ({"ratio": 1, "dimension": 99}, r"dimension 99\b.*\b100 samples"),
        ({"ridge": 1}, r"\b100 samples .*\b50\b"),
        ({"ridge": 1, "samples": 2, "draws": 2}, r"\b3 descents .*\b2 draws"),
        ({"ratio": 0}, "(?m)^ratio$"),
        ({"ratio": 1, "classes": 1}, "(?m)^classes$"),
    ],
)
def test_a_theory_that_cannot_be_tried_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=told):
        RFMTheory(**settings)


def test_the_theory_s_recipe_runs_in_smoke_mode(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = command("rfm_theory", "--smoke", "--out", str(out))
    assert result.exit_code == 0, result.output
    report = (out / "report.md").read_text(encoding="utf-8")
    assert "Warning" not in report
    assert re.search(r"^## Theorem 5\.3\b", report, re.MULTILINE)
    assert "| 1 | 3 × 4 | 2.40000000 | 2.40000000 |" in report
    assert (out / "figures/collapse_rate.png").stat().st_size > 10_000
