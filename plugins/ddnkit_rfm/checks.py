"""What is asked of samples, labels and targets before anything is computed."""

from __future__ import annotations

import torch
from torch import Tensor

from ddnkit import InputError


def check_samples(X: Tensor, name: str = "X") -> None:
    """Ask for samples ``(n, d)``, finite, in float32 or float64, at least one of each.

    Raises:
        ddnkit.InputError: they are something else.
    """
    if X.ndim != 2 or 0 in X.shape:
        raise InputError(
            f"{name} has shape {tuple(X.shape)}; expected (n, d), one sample a row, n ≥ 1 and d ≥ 1"
        )
    if X.dtype not in (torch.float32, torch.float64):
        raise InputError(f"{name} is {X.dtype}; expected torch.float32 or torch.float64")
    check_finite(X, name)


def check_finite(X: Tensor, name: str) -> None:
    """Ask for numbers that are neither NaN nor infinite.

    Raises:
        ddnkit.InputError: one is; the text names the first row that holds it.
    """
    finite = X.isfinite()
    if not finite.all():
        row = int((~finite).nonzero()[0, 0])
        raise InputError(f"{name} holds NaN or infinity, first in row {row}")


def check_pair(X: Tensor, Z: Tensor, names: tuple[str, str] = ("X", "Z")) -> None:
    """Ask for two sets of samples of one dimension, dtype and device.

    Raises:
        ddnkit.InputError: they differ.
    """
    for what, x, z in (
        ("dimension", X.shape[1], Z.shape[1]),
        ("dtype", X.dtype, Z.dtype),
        ("device", X.device, Z.device),
    ):
        if x != z:
            raise InputError(f"{names[0]} and {names[1]} differ in {what}: {x} and {z}")


def check_columns(A: Tensor, X: Tensor, name: str) -> None:
    """Ask for one finite row of ``(n, C)`` for each of the n samples X.

    Raises:
        ddnkit.InputError: the shape is another, or a number is not finite.
    """
    if A.ndim != 2 or len(A) != len(X) or A.shape[1] == 0:
        raise InputError(
            f"{name} has shape {tuple(A.shape)}; expected ({len(X)}, C), a row for each sample"
        )
    if A.dtype != X.dtype or A.device != X.device:
        raise InputError(
            f"{name} is {A.dtype} on {A.device}, the samples are {X.dtype} on {X.device}"
        )
    check_finite(A, name)


def check_labels(labels: Tensor, samples: int) -> None:
    """Ask for classes ``(samples,)``, int64, none negative.

    Raises:
        ddnkit.InputError: they are something else.
    """
    if labels.shape != (samples,) or labels.dtype != torch.int64:
        raise InputError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}; "
            f"expected torch.int64 of shape ({samples},)"
        )
    if labels.min() < 0:
        raise InputError(f"labels start at {int(labels.min())}; classes are numbered from 0")
