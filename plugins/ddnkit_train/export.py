"""A trained model as files: ``model.safetensors`` to measure it again, ``model.pt2`` to run anywhere."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

import ddnkit
from ddnkit import DamagedFileError, InputError, Job, read_yaml, replace_file

from .data import Data
from .engine import PRECISIONS, Engine
from .evaluation import evaluate
from .model import Classifier, FinalHead, Head, Model
from .parts import build_backbone, build_metrics
from .samplers import stratified_subset
from .settings import Classification, EngineSettings
from .tables import read_resources

WEIGHTS, PROGRAM, WHY_NOT = "model.safetensors", "model.pt2", "model.txt"
#: What an exported classifier has in any case.
_CLASSIFIER = ("weight", "global_mean", "temperature")
#: How far the program's logits may be from the model's own, relative to the largest: rounding of
#: another device, TF32 included.
_ROUNDING = 1e-2


class _UnfitError(Exception):
    """The model cannot be made a program; the text says why."""


def export(model: Model, data: Data, folder: Path, *, example: Tensor | None = None) -> list[Path]:
    """Write a trained model into ``folder``: all of its weights, and a program that needs no ddnkit.

    ``model.safetensors`` has weights and buffers of ``prepare``, ``backbone`` and ``head``, the
    final classifier: ``head.weight`` (W, C×d), ``head.global_mean``, ``head.temperature``, and where
    it maps features first ``head.scale`` and ``head.shift``; its metadata says what they are of.
    ``model.pt2`` is the `Classifier` in evaluation mode as `torch.export` wrote it, from stored
    samples to logits, for any number of samples on the CPU:
    ``torch.export.load("model.pt2").module()``. Where there can be no such program, ``model.txt``
    says why. Each file is there whole or not at all.

    Args:
        model: a `Model`; left as it is.
        data: what it was trained on.
        folder: the job's folder.
        example: a few stored samples ``(B, *stored_shape)``; by default the first of the data.

    Returns:
        The files written.
    """
    example = _example(data) if example is None else example
    about = _about(model, data, folder, example)
    # Not by save_file, whose file nobody but its owner may read.
    content = safetensors.torch.save(_tensors(model, data), metadata=about)
    replace_file(folder / WEIGHTS, lambda file: file.write_bytes(content))
    try:
        program = _program(model, data, example.cpu())
    except Exception as error:  # whatever a plugin's network does that cannot be copied or traced
        text = f"There is no {PROGRAM}: {_reason(error)}\n{WEIGHTS} has all weights.\n"
        replace_file(folder / WHY_NOT, lambda file: file.write_text(text, encoding="utf-8"))
        (folder / PROGRAM).unlink(missing_ok=True)
        return [folder / WEIGHTS, folder / WHY_NOT]
    extra = {"metadata.json": json.dumps(about)}
    replace_file(folder / PROGRAM, lambda file: torch.export.save(program, file, extra_files=extra))
    (folder / WHY_NOT).unlink(missing_ok=True)
    return [folder / WEIGHTS, folder / PROGRAM]


def _example(data: Data) -> Tensor:
    """Two stored samples: the data's own if they are in memory, else random bytes in the shape of images."""
    inputs = getattr(data, "inputs", None)
    if isinstance(inputs, Tensor):
        return inputs[[0, -1]]
    # A generator of its own: an export changes nothing random.
    size, generator = (2, *data.sample_shape), torch.Generator().manual_seed(0)
    return torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)


def _tensors(model: Model, data: Data) -> dict[str, Tensor]:
    """Weights and buffers by the names that they have in a `Classifier`."""
    head = model.head
    tensors = {
        f"{part}.{name}": value
        for part, module in (("prepare", data.prepare), ("backbone", model.backbone))
        for name, value in module.state_dict().items()
        if isinstance(value, Tensor)
    }
    tensors["head.weight"], tensors["head.global_mean"] = head.classifier(), head.global_mean
    tensors["head.temperature"] = torch.tensor(float(head.temperature), dtype=torch.float64)
    tensors |= dict(zip(("head.scale", "head.shift"), _feature_map(head) or (), strict=False))
    return {name: _plain_copy(tensor) for name, tensor in tensors.items()}


def _classifier(model: Model, data: Data) -> Classifier:
    """A copy of the trained model, on the CPU, in evaluation mode."""
    head = model.head
    classifier = Classifier(
        copy.deepcopy(data.prepare),
        copy.deepcopy(model.backbone),
        FinalHead(
            head.classifier().detach().clone(),
            head.global_mean.detach().clone(),
            float(head.temperature),
            normalise=bool(getattr(head, "normalise", True)),
            batch_mean=getattr(head, "evaluation_mean", "") == "test_batch",
            feature_map=_feature_map(head),
        ),
    )
    # In plain layout: of others torch.export does not see that they hold all of their memory.
    classifier.to(memory_format=torch.contiguous_format)
    return classifier.cpu().eval().requires_grad_(False)


def _feature_map(head: Head) -> tuple[Tensor, Tensor] | None:
    """The linear map that the head applies to features first, if it has one."""
    of_head = getattr(head, "feature_map", None)
    return of_head() if callable(of_head) else None


def _program(model: Model, data: Data, example: Tensor) -> Any:
    if not data.sample_shape:
        raise _UnfitError("its samples are indices of the training set, there is no other")
    classifier = _classifier(model, data)
    with torch.no_grad():
        expected = _logits(model, data, example)
        found = classifier(example)
    if not torch.allclose(found, expected, rtol=0, atol=_ROUNDING * float(expected.abs().max())):
        raise _UnfitError("its head computes something other than τ W (h − h_G) in evaluation")
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch says to itself while it traces
        return torch.export.export(classifier, (example,), dynamic_shapes=({0: batch},))


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    kind = "" if isinstance(error, _UnfitError) else f"{type(error).__name__}: "
    return f"{kind}{lines[0]}"


def _logits(model: Model, data: Data, example: Tensor) -> Tensor:
    """Of the model itself in evaluation mode, which is set back afterwards."""
    parameter = next(model.parameters())
    inputs = data.prepare(example.to(parameter.device))
    if inputs.is_floating_point():
        inputs = inputs.to(parameter.dtype)
    training = model.training
    model.eval()
    logits: Tensor = model.head(model.backbone(inputs))
    model.train(training)
    return logits.cpu()


def _about(model: Model, data: Data, folder: Path, example: Tensor) -> dict[str, str]:
    """A description of the model, as text."""
    head = model.head
    return {
        "ddnkit": ddnkit.__version__,
        "torch": str(torch.__version__),
        "backbone": _backbone_name(folder) or type(model.backbone).__name__,
        "classes": str(data.classes),
        "feature_dim": str(head.classifier().shape[1]),
        "sample_shape": json.dumps(list(example.shape[1:])),
        "sample_dtype": str(example.dtype).removeprefix("torch."),
        "normalise": json.dumps(bool(getattr(head, "normalise", True))),
        "evaluation_mean": str(getattr(head, "evaluation_mean", "running")),
    }


def _backbone_name(folder: Path) -> str | None:
    """The backbone's name in the variant's settings, which lie beside the job's folder."""
    try:
        return str(read_yaml(folder.parent / "settings.yaml")["backbone"]["name"])
    except (InputError, KeyError, TypeError):
        return None


def _plain_copy(tensor: Tensor) -> Tensor:
    """A tensor with memory of its own, in plain layout, as safetensors asks for."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def reevaluate(settings: Classification, job: Job) -> dict[str, float | None]:
    """The figures of a job's model on its data: `Classification.evaluate`."""
    file = job.folder / WEIGHTS
    tensors, about = _read_weights(file)
    engine = Engine(_training_engine(settings.engine, job.folder), job)
    data = settings.load_data(job).to(engine.device)
    backbone = build_backbone(settings, data)
    head = _final_head(tensors, about)
    if len(head.weight) != data.classes:
        raise InputError(f"'{file}' is of {len(head.weight)} classes; the data have {data.classes}")
    _load(backbone, "backbone", tensors, file)
    # Samples are prepared by the statistics of the data that it was trained on.
    _load(data.prepare, "prepare", tensors, file)
    plain = Model(backbone, head)
    model: Any = engine.fabric.setup_module(plain)
    index = stratified_subset(data.labels, settings.train.evaluation_samples)
    with engine.job():
        row, _ = evaluate(
            model,
            data,
            build_metrics(settings),
            settings.train.evaluation_batch,
            engine=engine,
            index=index,
        )
        row |= settings.measure(plain, data)
    return row


def _final_head(tensors: dict[str, Tensor], about: dict[str, str]) -> FinalHead:
    return FinalHead(
        tensors["head.weight"],
        tensors["head.global_mean"],
        float(tensors["head.temperature"]),
        normalise=json.loads(about["normalise"]),
        batch_mean=about["evaluation_mean"] == "test_batch",
        feature_map=(
            (tensors["head.scale"], tensors["head.shift"]) if "head.scale" in tensors else None
        ),
    )


def _training_engine(engine: EngineSettings, folder: Path) -> EngineSettings:
    """The engine settings with the precision that ``auto`` chose when the job was trained."""
    file = folder / "resources.json"
    precision = read_resources(file).get("precision") if file.exists() else None
    if engine.precision != "auto" or precision is None:
        return engine
    if precision not in PRECISIONS:
        known = ", ".join(PRECISIONS)
        raise DamagedFileError(
            f"{file}: precision: expected one of {known}, was given {precision!r}"
        )
    return engine.model_copy(update={"precision": precision})


def _read_weights(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not file.is_file():
        raise InputError(
            f"'{file}' is not there: a finished job of this version of ddnkit leaves it; run the "
            "recipe again, or copy the file back"
        )
    try:
        with safetensors.safe_open(file, framework="pt") as content:
            about = content.metadata() or {}
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise InputError(f"'{file}' is damaged: {error}") from error
    needed = {f"head.{name}" for name in _CLASSIFIER}
    if not (needed <= tensors.keys() and {"normalise", "evaluation_mean"} <= about.keys()):
        raise InputError(f"'{file}' is not a model that ddnkit wrote: it names no classifier")
    W, mean, temperature = (tensors[f"head.{name}"] for name in _CLASSIFIER)
    fits = W.ndim == 2 and mean.shape == W.shape[1:] and temperature.numel() == 1
    if not fits or about["normalise"] not in ("true", "false"):
        raise InputError(f"'{file}' is damaged: its classifier is of no shape that ddnkit writes")
    return tensors, about


def _load(module: nn.Module, prefix: str, tensors: dict[str, Tensor], file: Path) -> None:
    own = {
        name.removeprefix(f"{prefix}."): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{prefix}.")
    }
    if any(tensor.dtype == torch.float64 for tensor in own.values()):
        module.double()  # so that the copy does not round
    try:
        module.load_state_dict(own)
    except RuntimeError as error:
        first = " ".join(str(error).split())
        raise InputError(
            f"'{file}' does not fit the {prefix} of these settings: {first}"
        ) from error
