"""A finished job measured again, with the model that it left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ddnkit import DamagedFileError, InputError, Job

from .built import backbone_of, metrics_of
from .classifier import FinalHead
from .engine import PRECISIONS, Engine
from .evaluation import evaluate
from .export import WEIGHTS
from .model import Model
from .samplers import stratified_subset
from .tables import read_resources

if TYPE_CHECKING:
    from .settings import Classification, EngineSettings


_CLASSIFIER = ("weight", "global_mean", "temperature")


def reevaluate(settings: Classification, job: Job) -> dict[str, float | None]:
    """The figures of a job's model on its data: `Classification.evaluate`."""
    file = job.folder / WEIGHTS
    tensors, about = _read(file)
    engine = Engine(_as_trained(settings.engine, job.folder), job)
    data = settings.load_data(job).to(engine.device)
    backbone = backbone_of(settings, data)
    head = _head(tensors, about)
    if len(head.weight) != data.classes:
        raise InputError(f"'{file}' is of {len(head.weight)} classes; the data have {data.classes}")
    _load(backbone, "backbone", tensors, file)
    # Samples are prepared by the statistics of the data that it was trained on.
    _load(data.prepare, "prepare", tensors, file)
    plain = Model(backbone, head)
    model = engine.fabric.setup_module(plain)
    index = stratified_subset(data.labels, settings.train.evaluation_samples)
    with engine.job():
        row, _ = evaluate(
            model,
            data,
            metrics_of(settings),
            settings.train.evaluation_batch,
            engine=engine,
            index=index,
        )
        row |= settings.measure(plain, data)
    return row


def _head(tensors: dict[str, Tensor], about: dict[str, str]) -> FinalHead:
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


def _as_trained(engine: EngineSettings, folder: Path) -> EngineSettings:
    """In the precision that the job was trained and evaluated in, where ``auto`` chose it."""
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


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
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


def _load(module: torch.nn.Module, prefix: str, tensors: dict[str, Tensor], file: Path) -> None:
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
