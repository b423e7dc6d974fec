"""A trained model as files that need no ddnkit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from bounds import rounding
from ddnkit_etf.settings import (
    FixedETFHead,
    NearestETFHead,
    StandardHead,
    StandardUnnormalisedHead,
)
from ddnkit_train import CNN, MLP, Dataset, Model, Standardise
from ddnkit_train.export import export
from ddnkit_train.settings import MLP as MLPSettings  # noqa: N811
from ddnkit_train.settings import Digits, FreeFeatures, FreeFeaturesData
from torch import Tensor, nn
from training_stand_ins import pipeline, run_job

CLASSES = 5

#: Loads programs where nothing of ddnkit can be imported, and runs them.
ALONE = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0].startswith("ddnkit"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
import torch
for folder in sys.argv[1:]:
    program = torch.export.load(f"{folder}/model.pt2").module()
    torch.save([program(batch) for batch in torch.load(f"{folder}/given.pt")], f"{folder}/found.pt")
assert not [name for name in sys.modules if name.startswith("ddnkit")]
"""


def images(channels: int = 1, size: int = 8) -> Dataset:
    """Images as bytes, standardised where they are used."""
    inputs = torch.randint(0, 256, (40, channels, size, size), dtype=torch.uint8)
    labels = torch.arange(40) % CLASSES
    return Dataset(inputs, labels, CLASSES, prepare=Standardise.fit(inputs, "channel"))


def trained(backbone: nn.Module, head: Any, data: Dataset) -> Model:
    """A model whose statistics have seen two batches."""
    model = Model(backbone, head)
    for _ in range(2):
        model(data.prepare(data.inputs), data.labels)
    return model


def logits(model: Model, data: Dataset, samples: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(data.prepare(samples), torch.zeros(len(samples), dtype=torch.int64))


HEADS = {
    "standard": StandardHead(temperature=0.1, centre=True),
    "unnormalised": StandardUnnormalisedHead(),
    "fixed": FixedETFHead(direction="haar", evaluation_mean="test_batch"),
    "nearest": NearestETFHead(),
}


def test_programs_give_their_models_logits_without_ddnkit(tmp_path: Path) -> None:
    data = images(3)
    batches = [data.inputs[:1], data.inputs[:7], data.inputs]
    models = {}
    for name, settings in HEADS.items():
        folder = tmp_path / name
        folder.mkdir()
        head = settings.build(feature_dim=12, classes=CLASSES)
        models[folder] = trained(CNN(3, (6, 12)), head, data)
        files = export(models[folder], data, folder)
        assert [file.name for file in files] == ["model.safetensors", "model.pt2"]
        assert sorted(folder.iterdir()) == sorted(files)
        torch.save(batches, folder / "given.pt")
    subprocess.run([sys.executable, "-c", ALONE, *map(str, models)], check=True, timeout=300)
    for folder, model in models.items():
        for batch, answer in zip(batches, torch.load(folder / "found.pt"), strict=True):
            # Layers of 27, 54 and 12 terms, normalised: logits of size 5 at most
            atol = rounding(answer, 27 + 54 + 12, size=5)
            torch.testing.assert_close(answer, logits(model, data, batch), rtol=0, atol=atol)
            assert not answer.requires_grad


def test_the_weights_are_all_there_with_what_they_are_of(tmp_path: Path) -> None:
    data = images(3)
    job = tmp_path / "runs" / "nearest" / "seed-0"
    job.mkdir(parents=True)
    (job.parent / "settings.yaml").write_text("backbone: {name: cnn, channels: [6, 12]}\n")
    head = NearestETFHead().build(feature_dim=12, classes=CLASSES)
    model = trained(CNN(3, (6, 12)), head, data)
    export(model, data, job)
    with safetensors.safe_open(job / "model.safetensors", framework="pt") as content:
        about, names = content.metadata(), set(content.keys())
        weight = content.get_tensor("head.weight")
        mean, deviation = (content.get_tensor(f"prepare.{name}") for name in ("mean", "std"))
        temperature = content.get_tensor("head.temperature")
        global_mean = content.get_tensor("head.global_mean")
    assert {f"backbone.{name}" for name in model.backbone.state_dict()} < names
    torch.testing.assert_close(weight, head.classifier(), rtol=0, atol=0)
    torch.testing.assert_close(global_mean, head.global_mean, rtol=0, atol=0)
    assert float(temperature) == 5.0
    prepared = (data.inputs - mean) / deviation
    torch.testing.assert_close(prepared, data.prepare(data.inputs))
    assert about["backbone"] == "cnn"
    assert about["classes"] == "5"
    assert json.loads(about["sample_shape"]) == [3, 8, 8]
    assert about["sample_dtype"] == "uint8"
    assert about["ddnkit"]
    extra = {"metadata.json": ""}
    torch.export.load(job / "model.pt2", extra_files=extra)
    assert json.loads(extra["metadata.json"]) == about


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    data = images()
    head = NearestETFHead().build(feature_dim=12, classes=CLASSES)
    model = trained(CNN(1, (12,)), head, data).train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    state = torch.get_rng_state()
    export(model, data, tmp_path)
    assert model.training
    assert model.backbone.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.named_buffers())
    assert torch.equal(torch.get_rng_state(), state)


def test_double_precision_stays_double(tmp_path: Path) -> None:
    data = images()
    model = Model(MLP((1, 8, 8), 12, 2), StandardHead().build(feature_dim=12, classes=CLASSES))
    model.double()
    export(model, data, tmp_path)
    program = torch.export.load(tmp_path / "model.pt2").module()
    with torch.no_grad():
        expected = model.eval()(data.prepare(data.inputs).double(), data.labels)
    torch.testing.assert_close(
        program(data.inputs), expected, rtol=0, atol=rounding(expected, 64 + 12 + 12, size=5)
    )


def test_data_that_are_not_in_memory_are_taken_for_bytes(tmp_path: Path) -> None:
    class Streamed:
        classes, sample_shape = CLASSES, (3, 8, 8)
        prepare = Standardise(torch.tensor(128.0), torch.tensor(40.0))

    head = StandardHead().build(feature_dim=12, classes=CLASSES)
    model = Model(CNN(3, (12,)), head)
    export(model, Streamed(), tmp_path)  # type: ignore[arg-type]
    program = torch.export.load(tmp_path / "model.pt2").module()
    assert program(torch.zeros(4, 3, 8, 8, dtype=torch.uint8)).shape == (4, CLASSES)
    assert program(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)).shape == (1, CLASSES)


class Branching(nn.Module):
    """Goes by the values of its input, which cannot be traced."""

    feature_dim = 12

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 12)

    def forward(self, inputs: Tensor) -> Tensor:
        flat = inputs.flatten(1)
        return self.layer(flat if float(flat.sum()) > 0 else -flat)


class Uncopyable(MLP):
    """Holds what cannot be copied."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        raise RuntimeError("one of a kind\nwith details")


class Squared(nn.Module):
    """A head that is not linear in the end."""

    temperature = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CLASSES, 12))
        self.register_buffer("global_mean", torch.zeros(12))

    def classifier(self) -> Tensor:
        return self.weight.detach()

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        return (features @ self.weight.T).square()


@pytest.mark.parametrize(
    ("backbone", "head", "told"),
    [
        (Branching(), None, "There is no model.pt2: "),
        (
            Uncopyable((1, 8, 8), 12, 2),
            None,
            "There is no model.pt2: RuntimeError: one of a kind\n",
        ),
        (MLP((1, 8, 8), 12, 2), Squared(), "its head computes something other than"),
    ],
)
def test_a_model_that_cannot_be_a_program_keeps_its_weights(
    tmp_path: Path, backbone: nn.Module, head: Any, told: str
) -> None:
    head = head or StandardHead().build(feature_dim=12, classes=CLASSES)
    (tmp_path / "model.pt2").write_bytes(b"of an earlier run")
    files = export(Model(backbone, head), images(), tmp_path)
    assert [file.name for file in files] == ["model.safetensors", "model.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "model.txt"]
    text = (tmp_path / "model.txt").read_text()
    assert told in text
    assert text.endswith("model.safetensors has all weights.\n")


def test_free_features_have_no_program(tmp_path: Path) -> None:
    data = FreeFeaturesData(classes=4, samples=40)
    settings = pipeline({"iterations": 2}, data=data, backbone=FreeFeatures(dimension=16))
    run_job(settings, tmp_path)
    assert (tmp_path / "model.txt").read_text()
    assert (tmp_path / "model.safetensors").is_file()
    assert not (tmp_path / "model.pt2").exists()


def test_a_job_exports_what_it_trained_in_a_smoke_run_too(tmp_path: Path) -> None:
    data = Digits(batch_size=128)
    settings = pipeline(
        {"epochs": 1}, head=NearestETFHead(), data=data, backbone=MLPSettings(width=16, depth=2)
    )
    run_job(settings, tmp_path, smoke=True)
    program = torch.export.load(tmp_path / "model.pt2").module()
    assert program(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


@pytest.mark.parametrize(
    ("name", "dimension"),
    [("resnet18", 512), pytest.param("resnet50", 2048, marks=pytest.mark.long)],
)
def test_a_resnet_is_exported(name: str, dimension: int, tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    from ddnkit_vision.backbones import resnet

    data = images(3, 32)
    model = Model(resnet(name), StandardHead().build(feature_dim=dimension, classes=CLASSES))
    export(model, data, tmp_path)
    answer = torch.export.load(tmp_path / "model.pt2").module()(data.inputs[:3])
    # Fifty layers at most, each of up to 512 · 9 terms, in the mean square.
    atol = rounding(answer, 50 * (512 * 9) ** 0.5)
    torch.testing.assert_close(answer, logits(model, data, data.inputs[:3]), rtol=0, atol=atol)
