"""A trained model as files: ``model.safetensors`` to load again, ``model.pt2`` to run anywhere."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

import ddnkit
from ddnkit import InputError, read_yaml, replace_file

from .classifier import Classifier, FinalHead
from .data import Data

WEIGHTS, PROGRAM, WHY_NOT = "model.safetensors", "model.pt2", "model.txt"
#: How far the program's logits may be from the model's own, relative to the largest: rounding of
#: another device, TF32 included.
_ROUNDING = 1e-2


class _UnfitError(Exception):
    """The model cannot be made a program; the text says why."""


def export(model: Any, data: Data, folder: Path, *, example: Tensor | None = None) -> list[Path]:
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
    """Two stored samples: of data in memory its own, else bytes, as images are stored."""
    inputs = getattr(data, "inputs", None)
    if isinstance(inputs, Tensor):
        return inputs[[0, -1]]
    # A generator of its own: an export changes nothing random.
    size, generator = (2, *data.sample_shape), torch.Generator().manual_seed(0)
    return torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)


def _tensors(model: Any, data: Data) -> dict[str, Tensor]:
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
    return {name: _own(tensor) for name, tensor in tensors.items()}


def _classifier(model: Any, data: Data) -> Classifier:
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


def _feature_map(head: Any) -> tuple[Tensor, Tensor] | None:
    """What the head does to features before anything else, where it says so."""
    of_head = getattr(head, "feature_map", None)
    return of_head() if callable(of_head) else None


def _program(model: Any, data: Data, example: Tensor) -> Any:
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


def _logits(model: Any, data: Data, example: Tensor) -> Tensor:
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


def _about(model: Any, data: Data, folder: Path, example: Tensor) -> dict[str, str]:
    """What the weights are of, as text."""
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


def _own(tensor: Tensor) -> Tensor:
    """A tensor with memory of its own, in plain layout, as safetensors asks for."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)
