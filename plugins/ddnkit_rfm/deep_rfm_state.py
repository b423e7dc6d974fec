"""What an unfinished Deep RFM goes on from: the samples as its last layer left them, in one file.

As with a training's checkpoint, the file is written beside the old one, synchronised to the disk, and
renamed over it: at any moment it is the old or the new one; and it ends in a checksum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from ddnkit_train import cannot_go_on, read_sealed, write_sealed
from torch import Tensor

_FORMAT = 2


@dataclass(frozen=True)
class Saved:
    """A Deep RFM after a layer.

    Attributes:
        layer: its number, and that of the rows recorded by then.
        train, test: training and test samples as the next layer is given them.
        random: state of the generator of the feature maps.
        rows: the checksum of the rows; None in a file of a version that kept none.
    """

    layer: int
    train: Tensor
    test: Tensor
    random: Tensor
    rows: str | None = None


class LayerState:
    """The state in ``folder/state/layer.pt``.

    Args:
        folder: the job's folder.
        variant, seed: of the job; the state of another one is refused.
    """

    def __init__(self, folder: Path, variant: str, seed: int) -> None:
        self.file = folder / "state" / "layer.pt"
        self._job = [variant, seed]

    def save(self, saved: Saved) -> None:
        """Replace the saved state."""
        state = {"format": _FORMAT, "job": self._job, **vars(saved)}
        write_sealed(self.file, lambda part: torch.save(state, part))

    def load(self, device: str, *, layers: int, like: tuple[Tensor, Tensor]) -> Saved | None:
        """The saved state, its samples on ``device``; None where nothing was saved.

        Args:
            layers: of the whole job.
            like: training and test samples as the first layer is given them.

        Raises:
            ddnkit.DamagedFileError: the file is damaged, of another version, or of other samples.
        """
        state = read_sealed(self.file)
        if state is None:
            return None
        try:
            if state.pop("format", None) != _FORMAT:
                raise ValueError(f"its format is not {_FORMAT}")
            if (job := state.pop("job", None)) != self._job:
                raise ValueError(f"it is of another job: {job}, here {self._job}")
            saved = Saved(**state)
            if type(saved.layer) is not int or not 0 < saved.layer < layers:
                raise ValueError(
                    f"it is of layer {saved.layer}; of the {layers} layers of this job, one goes on "
                    f"from 1 to {layers - 1}"
                )
            for given, kept in zip(like, (saved.train, saved.test), strict=True):
                if (len(kept), kept.dtype) != (len(given), given.dtype):
                    raise ValueError(
                        f"it has {len(kept)} samples in {kept.dtype}, the data {len(given)} in "
                        f"{given.dtype}"
                    )
            return replace(saved, train=saved.train.to(device), test=saved.test.to(device))
        except Exception as error:  # whatever is wrong in a file that may hold anything
            raise cannot_go_on(self.file, error) from error
