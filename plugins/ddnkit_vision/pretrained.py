"""Weights that a network starts from: those published with torchvision, or a file of the user's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ddnkit import InputError

from .files import Source, require_torchvision

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Published:
    """A network of torchvision, as a file of its weights has it.

    Attributes:
        name: of the network in torchvision.
        last: the layer of the file that a classifier head takes the place of.
        layers: ours that have another name in the file, and that name.
    """

    name: str
    last: str
    layers: Mapping[str, str]

    def source(self) -> Source:
        """The file of torchvision's weights, trained on ImageNet, and where it may be."""
        require_torchvision(self.name)
        import torch
        from torchvision.models import get_model_weights

        weights = get_model_weights(self.name).IMAGENET1K_V1
        return Source(
            "weights",
            f"{self.name}'s ImageNet weights",
            (weights.url.rpartition("/")[2],),
            round(weights.meta["_file_size"]),
            weights.url,
            system=Path(torch.hub.get_dir()) / "checkpoints",
            instead="a file of such weights with -s backbone.weights=FILE",
        )

    def locate(self, weights: str | Path, *, download: bool) -> None:
        """Check that the file of ``weights``, "imagenet" or a path, exists or may be downloaded.

        Raises:
            ddnkit.InputError: it does not; the text says where it was looked for.
        """
        if isinstance(weights, Path):
            _existing(weights)
        else:
            self.source().locate(None, download=download)

    def load(self, network: nn.Module, weights: str | Path, *, download: bool) -> None:
        """Give ``network`` the weights and buffers of ``weights``, "imagenet" or a path.

        Raises:
            ddnkit.InputError: the file is missing, damaged, or of another network.
            ddnkit.DdnkitError: a download failed.
        """
        if isinstance(weights, Path):
            file = _existing(weights)
        else:
            source = self.source()
            file = source.obtain(None, download=download, fetch=_fetch(source)) / source.files[0]
        network.load_state_dict(self._fitting(network, _read(file), file), strict=False)

    def _fitting(
        self, network: nn.Module, tensors: dict[str, Tensor], file: Path
    ) -> dict[str, Tensor]:
        """The tensors of ``file`` by our names."""
        chosen = {}
        for ours, expected in network.state_dict().items():
            theirs = self._theirs(ours)
            found = tensors.pop(theirs, None)
            if found is not None and found.shape == expected.shape:
                chosen[ours] = found
            # Files older than these counters have none; nothing is computed from them.
            elif not ours.endswith("num_batches_tracked"):
                has = "is missing" if found is None else f"has the shape {tuple(found.shape)}"
                raise InputError(
                    f"{file}: not the weights of {self.name}: {theirs} {has}, expected "
                    f"{tuple(expected.shape)}"
                )
        unknown = [name for name in tensors if not name.startswith(f"{self.last}.")]
        if unknown:
            raise InputError(
                f"{file}: not the weights of {self.name}: {unknown[0]} is not one of its"
            )
        return chosen

    def _theirs(self, ours: str) -> str:
        layer, _, tensor = ours.rpartition(".")
        return f"{self.layers.get(layer, layer)}.{tensor}"


def _existing(file: Path) -> Path:
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


__all__ = ["Published"]
