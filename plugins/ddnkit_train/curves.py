"""Evaluations for TensorBoard, beside ``metrics.csv``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ddnkit import InputError


class Curves:
    """Writes each evaluation's figures as scalars by step into ``folder/tensorboard``.

    Args:
        folder: the job's folder.
        start: the step gone on from; what was logged after it is hidden.

    Raises:
        ddnkit.InputError: the package tensorboard is not installed.
    """

    def __init__(self, folder: Path, start: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError(
                "engine.tensorboard needs the package tensorboard: "
                "pip install 'ddnkit[tensorboard]'"
            ) from error
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)

    def add(self, row: dict[str, Any]) -> None:
        """The figures of one evaluation."""
        for name, value in row.items():
            if value is not None and name != "step":
                self._writer.add_scalar(name, value, row["step"])
        self._writer.flush()

    def close(self) -> None:
        """No more evaluations."""
        self._writer.close()
