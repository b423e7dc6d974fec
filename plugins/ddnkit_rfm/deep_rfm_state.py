"""What an unfinished Deep RFM goes on from: the samples as its last layer left them, in one file.

As with a training's checkpoint, the file is written beside the old one, synchronised to the disk, and
renamed over it: at any moment it is the old or the new one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ddnkit import DdnkitError

_FORMAT = 1


@dataclass(frozen=True)
class Saved:
    """A Deep RFM after a layer.

    Attributes:
        layer: its number, and that of the rows recorded by then.
        train, test: training and test samples as the next layer is given them.
        random: state of the generator of the feature maps.
    """

    layer: int
    train: Tensor
    test: Tensor
    random: Tensor


class LayerState:
    """The state in ``folder/state/layer.pt``.

    Args:
        folder: the job's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / "state" / "layer.pt"

    def save(self, saved: Saved) -> None:
        """Replace the saved state."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        part = self.file.with_suffix(".part")
        with part.open("wb") as stream:
            torch.save({"format": _FORMAT, **vars(saved)}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(self.file)
        if os.name == "posix":  # elsewhere a folder cannot be opened, and need not be
            folder = os.open(self.file.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def load(self, device: str) -> Saved | None:
        """The saved state, its samples on ``device``; None where nothing was saved.

        Raises:
            ddnkit.DdnkitError: the file is damaged, or of another version.
        """
        if not self.file.is_file():
            return None
        try:
            state = torch.load(self.file, map_location="cpu", weights_only=True)
            if state.pop("format") != _FORMAT:
                raise ValueError(f"its format is not {_FORMAT}")
            train, test = (state.pop(name).to(device) for name in ("train", "test"))
            return Saved(train=train, test=test, **state)
        except Exception as error:
            raise DdnkitError(
                f"{self.file}: cannot go on from it: {error}. Remove the file to begin this job anew."
            ) from error
