"""Weights that a network starts from: those published with torchvision, or a file of the user's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ddnkit import InputError

from .settings.backbones import PretrainableSettings
from .sources import Source, require_torchvision

if TYPE_CHECKING:
    from torch import Tensor, nn


def locate_weights(settings: PretrainableSettings, *, download: bool) -> None:
    """Check that the file that a network is to start from exists or may be downloaded.

    Raises:
        ddnkit.InputError: it does not; the text says where it was looked for.
    """
    if isinstance(settings.weights, Path):
        _require_file(settings.weights)
    else:
        _source(settings).locate(None, download=download)


def load_weights(settings: PretrainableSettings, backbone: nn.Module, *, download: bool) -> None:
    """Give a network the weights and buffers of the file.

    Raises:
        ddnkit.InputError: the file is missing, damaged, or of another network.
        ddnkit.DdnkitError: a download failed.
    """
    network = backbone.get_submodule("network") if settings.mlp_depth else backbone
    if isinstance(settings.weights, Path):
        file = _require_file(settings.weights)
    else:
        source = _source(settings)
        file = source.obtain(None, download=download, fetch=_fetch(source)) / source.files[0]
    network.load_state_dict(_matching(settings, network, _read(file), file), strict=False)


def _source(settings: PretrainableSettings) -> Source:
    """The file of torchvision's weights, trained on ImageNet, and where it may be."""
    name = settings.published_network
    require_torchvision(name)
    import torch
    from torchvision.models import get_model_weights

    weights = get_model_weights(name).IMAGENET1K_V1
    return Source(
        "weights",
        f"{name}'s ImageNet weights",
        (weights.url.rpartition("/")[2],),
        round(weights.meta["_file_size"]),
        weights.url,
        system=Path(torch.hub.get_dir()) / "checkpoints",
        instead="a file of such weights with -s backbone.weights=FILE",
    )


def _matching(
    settings: PretrainableSettings, network: nn.Module, tensors: dict[str, Tensor], file: Path
) -> dict[str, Tensor]:
    """The tensors of ``file`` by our names."""
    name = settings.published_network
    matching = {}
    for ours, expected in network.state_dict().items():
        layer, _, tensor = ours.rpartition(".")
        theirs = f"{settings.renamed_layers.get(layer, layer)}.{tensor}"
        found = tensors.pop(theirs, None)
        if found is not None and found.shape == expected.shape:
            matching[ours] = found
        # Files older than these counters have none; nothing is computed from them.
        elif not ours.endswith("num_batches_tracked"):
            has = "is missing" if found is None else f"has the shape {tuple(found.shape)}"
            raise InputError(
                f"{file}: not the weights of {name}: {theirs} {has}, expected "
                f"{tuple(expected.shape)}"
            )
    unknown = [key for key in tensors if not key.startswith(f"{settings.last_layer}.")]
    if unknown:
        raise InputError(f"{file}: not the weights of {name}: {unknown[0]} is not one of its")
    return matching


def _require_file(file: Path) -> Path:
    file = file.expanduser()
    if not file.is_file():
        raise InputError(
            f"backbone.weights: there is no file {file}. Give 'random', 'imagenet', or a file of "
            "weights (.pth, .pt, .safetensors)."
        )
    return file


def _fetch(source: Source) -> Callable[[Path], None]:
    from torch import hub

    (file,) = source.files
    # The name ends with the first digits of the checksum: resnet18-f37072fd.pth.
    checksum = Path(file).stem.rpartition("-")[2]
    return lambda folder: hub.download_url_to_file(
        source.url, str(folder / file), checksum, progress=False
    )


def _read(file: Path) -> dict[str, Tensor]:
    import torch
    from safetensors.torch import load_file

    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    # Archives, pickles and headers fail in many ways.
    except Exception as error:
        raise InputError(f"{file}: cannot be read as weights: {error}") from error
    named = isinstance(tensors, dict) and all(isinstance(name, str) for name in tensors)
    if not (named and all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())):
        raise InputError(f"{file}: holds no tensors by their names (a state dict)")
    return dict(tensors)
