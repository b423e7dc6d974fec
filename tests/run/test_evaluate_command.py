"""``ddnkit evaluate``: with a pipeline of known figures, then with models that were trained."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
import safetensors.torch
import torch
from click.testing import CliRunner, Result

from ddnkit import InputError, Job, Pipeline, registry
from ddnkit.cli import main
from ddnkit.run.folder import RunFolder
from ddnkit.run.report import rebuild

Command = Callable[..., Result]
Figures = dict[str, "float | None"]

RECIPE = """
pipeline: toy_model
seeds: [0, 1, 2]
sweep: {shift: [0, 10]}
"""
#: What the pipeline measures in addition to what it recorded, by (variant, seed).
CHANGED: dict[tuple[str, int], Figures] = {}
#: The jobs that were measured.
ASKED: list[Job] = []


class ToyModel(Pipeline):
    """Records an accuracy, keeps a model, and measures the accuracy again from it."""

    columns: ClassVar[tuple[str, ...]] = ("epoch", "step", "train_loss", "test_top1", "nc1", "nc2")
    shift: float = 0.0
    where: str = "here"

    def run(self, job: Job) -> None:
        for step in (1, 2):
            job.record({"epoch": step, "step": step, **self._figures(job.seed, step)})

    def evaluate(self, job: Job) -> Figures:
        ASKED.append(job)
        if self.where == "nowhere":
            raise InputError("the data are missing: looked in 'nowhere'")
        return {**self._figures(job.seed, 2), **CHANGED.get((job.variant, job.seed), {})}

    def _figures(self, seed: int, step: int) -> Figures:
        top1 = self.shift + 30 * step + seed / 3
        return {"train_loss": 1 / step, "test_top1": top1, "nc1": None, "nc2": math.nan}


@pytest.fixture(scope="module", autouse=True)
def _pipeline() -> None:
    registry.register("pipelines", "toy_model", ToyModel)


@pytest.fixture(autouse=True)
def _forgotten() -> None:
    CHANGED.clear()
    ASKED.clear()


@pytest.fixture
def run(ddnkit: Command) -> str:
    Path("model.yaml").write_text(RECIPE, encoding="utf-8")
    assert ddnkit("run", "model.yaml", "--out", "o", "--device", "cpu").exit_code == 0
    return "o"


def test_every_finished_job_stands_beside_its_record(ddnkit: Command, run: str) -> None:
    result = ddnkit("evaluate", run, "--device", "cpu")
    assert result.exit_code == 0, result.output
    head, first, *rest = result.stdout.splitlines()
    assert head.split() == ["variant", "seed", "test_top1", "recorded", "train_loss", "recorded"]
    assert first.split() == ["0", "0", "60", "60", "0.5", "0.5"]
    assert [line.split()[:3] for line in rest] == [
        ["0", "1", "60.3333"], ["0", "2", "60.6667"],
        ["10", "0", "70"], ["10", "1", "70.3333"], ["10", "2", "70.6667"],
    ]  # fmt: skip
    assert result.stderr.splitlines()[-1] == "[6/6] 10 seed 2"


def test_variants_and_seeds_are_chosen(ddnkit: Command, run: str) -> None:
    assert ddnkit("evaluate", run, "--only", "10", "--seeds", "2,0").exit_code == 0
    assert [(job.variant, job.seed) for job in ASKED] == [("10", 2), ("10", 0)]
    ASKED.clear()
    Path("o/runs/10/seed-1/done.json").unlink()
    assert ddnkit("evaluate", run, "--only", "10").exit_code == 0
    assert [job.seed for job in ASKED] == [0, 2]


def test_the_job_is_the_one_that_ran(ddnkit: Command, run: str) -> None:
    environment = Path("o/environment.json")
    content = json.loads(environment.read_text())
    environment.write_text(json.dumps({**content, "smoke": True}))
    assert ddnkit("evaluate", run, "--seeds", "1", "--only", "10", "--download").exit_code == 0
    (job,) = ASKED
    assert job.folder == Path("o/runs/10/seed-0")
    assert (job.device, job.smoke, job.download) == ("cpu", True, True)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("runs/10/seed-1/metrics.csv", "epoch,step,train_loss\n1,1,abc\n"),
        ("runs/10/seed-1/metrics.csv", "\0\0"),
        ("runs/10/seed-1/metrics.csv", ""),
        ("environment.json", "[1]"),
        ("environment.json", '{"smoke": "no"}'),
        ("runs/10/settings.yaml", "pipeline: toy_model\nshift: 11\n"),
        ("runs/10/settings.yaml", "\0"),
        ("recipe.yaml", "pipeline: [\n"),
    ],
)
def test_what_was_changed_is_told_before_anything_is_measured(
    ddnkit: Command, run: str, name: str, text: str
) -> None:
    Path("o", name).write_text(text)
    result = ddnkit("evaluate", run)
    assert result.exit_code == 2, result.output
    assert name in result.stderr and "unexpected" not in result.stderr
    assert not ASKED


@pytest.mark.parametrize(
    ("name", "left"), [("10", 3), ("10/seed-1", 5), ("10/seed-1/done.json", 5)]
)
def test_what_is_missing_is_told_and_the_rest_measured(
    ddnkit: Command, run: str, name: str, left: int
) -> None:
    path = Path("o/runs", name)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    result = ddnkit("evaluate", run)
    assert result.exit_code == 0, result.output
    assert len(ASKED) == left
    told = result.stderr.splitlines()[0]
    assert told.startswith("warning: o/runs/10") and ("seed-1" in told) == (name != "10")
    ASKED.clear()
    seeds = "1" if name == "10" else "1,7"
    alone = ddnkit("evaluate", run, "--only", "10", "--seeds", seeds)
    assert alone.exit_code == 2 and not ASKED


def test_a_changed_recipe_is_told_and_the_settings_are_those_run_with(
    ddnkit: Command, run: str
) -> None:
    file = Path("o/recipe.yaml")
    comment = "# a comment is no change\n" + file.read_text()
    file.write_text(comment)
    assert "recipe.yaml" not in ddnkit("evaluate", run).stderr
    file.write_text(comment.replace("where: here", "where: nowhere"))
    result = ddnkit("evaluate", run)
    assert result.exit_code == 0, result.output
    assert "warning: " in result.stderr and "o/recipe.yaml" in result.stderr


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"test_top1": 60.05}, None),  # less than a thousandth
        ({"train_loss": 0.5 + 9e-6}, None),
        ({"nc1": 7.0}, None),  # was not recorded
        ({"test_top1": 60.07}, r"test_top1 .*\b60\b.* 60\.07"),
        ({"test_top1": None}, r"test_top1 .*\b60\b\D*"),
        ({"nc2": 0.5}, r"nc2 .*\bnan\b.* 0\.5"),
        ({"train_loss": math.nan}, r"train_loss .*\b0\.5\b.* nan"),
    ],
)
def test_a_figure_that_differs_fails(
    ddnkit: Command, run: str, changed: Figures, told: str | None
) -> None:
    CHANGED["0", 0] = changed
    result = ddnkit("evaluate", run, "--seeds", "1")
    assert result.exit_code == (0 if told is None else 1)
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == (0 if told is None else 1)
    assert told is None or re.fullmatch(f"error: 0 seed 0: {told}", lines[0])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["o", "--only", "11"], "--only 11: "),
        (["o", "--seeds", "5,6"], r"'o'.*\b4 jobs"),
        (["o", "--seeds", "x"], "seeds.*'x'"),
        (["o", "-s", "wher=there"], "wher=there.*'where'"),
        (["o", "-s", "where=nowhere"], "'nowhere'"),
        (["absent"], "'absent'"),
    ],
)
def test_wrong_input(ddnkit: Command, run: str, arguments: list[str], told: str) -> None:
    result = ddnkit("evaluate", *arguments)
    assert result.exit_code == 2
    assert re.search(told, result.stderr)


def test_a_pipeline_that_keeps_no_model_says_so(ddnkit: Command) -> None:
    ddnkit("run", "race.yaml", "--out", "r", "--seeds", "1")
    result = ddnkit("evaluate", "r")
    assert result.exit_code == 2
    assert "ToyRun" in result.stderr and "evaluate" in result.stderr


# From here on a classification is trained.

TRAINED = """
pipeline: classification
data: {name: digits, batch_size: 256}
backbone: {name: mlp, width: 16, depth: 2}
optimizer: {name: agd, gain: 10}
train: {epochs: 1, evaluation_samples: 500}
engine: {measure_steps: 2}
sweep: {head.name: [standard, fixed_etf, nearest_etf]}
"""


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder, to be copied."""
    recipe = tmp_path_factory.mktemp("training") / "tiny.yaml"
    recipe.write_text(TRAINED, encoding="utf-8")
    out = recipe.parent / "t"
    arguments = ["run", str(recipe), "--out", str(out), "--device", "cpu", "--jobs", "1"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture
def trained(training: Path) -> Path:
    """The model of the nearest ETF, in a copy of the run folder in t."""
    shutil.copytree(training, "t")
    return Path("t/runs/nearest_etf/seed-0/model.safetensors")


def test_trained_models_measure_as_they_did(ddnkit: Command, trained: Path) -> None:
    result = ddnkit("evaluate", "t", "--device", "cpu")
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0][2:] == [
        "test_top1", "recorded", "train_top1", "recorded", "train_loss", "recorded",
    ]  # fmt: skip
    assert [line[0] for line in lines[1:]] == ["standard", "fixed_etf", "nearest_etf"]
    # To every digit shown: the same weights on the same samples.
    assert all(line[2::2] == line[3::2] for line in lines[1:])


def test_a_changed_weight_is_found_out(ddnkit: Command, trained: Path) -> None:
    tensors = safetensors.torch.load_file(trained)
    with safetensors.safe_open(trained, framework="pt") as content:
        about = content.metadata()
    tensors["backbone.layers.1.weight"][:8] *= 3
    safetensors.torch.save_file(tensors, trained, metadata=about)
    result = ddnkit("evaluate", "t", "--device", "cpu")
    assert result.exit_code == 1
    assert "error: nearest_etf seed 0: train_loss " in result.stderr
    assert "fixed_etf seed 0: " not in result.stderr


@pytest.mark.parametrize(
    ("spoil", "arguments", "told"),
    [
        (Path.unlink, [], ""),
        (lambda file: file.write_bytes(b"no"), [], ""),
        (lambda file: file.write_bytes(safetensors.torch.save({})), [], "classifier"),
        (lambda file: None, ["-s", "backbone.width=32"], "backbone"),
        (lambda file: None, ["-s", "data=digit_pairs"], r"\b10\b.*\b100\b"),
        (lambda file: None, ["-s", "data.standardise=pixel"], "prepare"),
    ],
)
def test_a_model_that_cannot_be_measured(
    ddnkit: Command, trained: Path, spoil: Callable[[Path], object], arguments: list[str], told: str
) -> None:
    spoil(trained)
    result = ddnkit("evaluate", "t", "--only", "nearest_etf", "--device", "cpu", *arguments)
    assert result.exit_code == 2, result.output
    assert re.search(rf"nearest_etf/seed-0/model\.safetensors.*{told}", result.stderr)


#: A file of a finished job, what it becomes, and where that is named.
SPOILT = [
    ("margins.csv", b"example,cosine_margin,bound\n1,x,1\n", "margins.csv:2: cosine_margin"),
    ("margins.csv", b"", "margins.csv:1"),
    ("resources.json", b'{"forward_ms": [1]}', "resources.json: forward_ms"),
    ("resources.json", b'{"forward_ms": NaN}', "resources.json: forward_ms"),
    ("resources.json", b"[" * 100_000, "resources.json"),
    ("resources.json", b"\xff\xfe", "resources.json:1"),
    ("../settings.yaml", b"head: {name: nearest_etf\n", "settings.yaml"),
    ("../settings.yaml", b"\xff\xfe\0", "settings.yaml"),
]


@pytest.mark.parametrize(("name", "content", "told"), SPOILT)
def test_a_report_names_what_it_cannot_read_and_has_the_rest(
    trained: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, told: str
) -> None:
    unsaved = "ddnkit_collapse.panels.save"  # rendering takes most of the time
    monkeypatch.setattr(unsaved, lambda figure, folder, stem: folder / f"{stem}.png")
    (trained.parent / name).write_bytes(content)
    folder = RunFolder(Path("t"))
    summary, _ = rebuild(folder)
    assert len(summary.damaged) >= 1 and all(told in line for line in summary.damaged)
    assert told in folder.report.read_text() and "nearest_etf" in folder.report.read_text()


@pytest.mark.parametrize("precision", ['"half"', "5", '["bf16"]', "true"])
def test_a_precision_that_there_is_not(ddnkit: Command, trained: Path, precision: str) -> None:
    (trained.parent / "resources.json").write_text(f'{{"precision": {precision}}}')
    result = ddnkit("evaluate", "t", "--only", "nearest_etf", "--device", "cpu")
    assert result.exit_code == 2, result.output
    assert "resources.json: precision" in result.stderr


@pytest.mark.parametrize("change", ["normalise", "temperature", "weight"])
def test_a_classifier_of_another_shape(ddnkit: Command, trained: Path, change: str) -> None:
    tensors = safetensors.torch.load_file(trained)
    with safetensors.safe_open(trained, framework="pt") as content:
        about = content.metadata()
    if change == "normalise":
        about["normalise"] = "{"
    else:
        tensors[f"head.{change}"] = torch.zeros(3)
    safetensors.torch.save_file(tensors, trained, metadata=about)
    result = ddnkit("evaluate", "t", "--only", "nearest_etf", "--device", "cpu")
    assert result.exit_code == 2, result.output
    assert "model.safetensors" in result.stderr
