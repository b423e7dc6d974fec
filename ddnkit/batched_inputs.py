"""The inputs of a layer's call as one batch: of one floating dtype, with one batch dimension in front."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .errors import InputError
from .node import DeclarativeNode


def batched_inputs(
    node: DeclarativeNode, xs: Sequence[Any], batch_dims: int | None, repeat: bool = True
) -> tuple[list[Any], torch.Size]:
    """The inputs with exactly one batch dimension in front and one floating dtype, and the batch shape.

    Args:
        repeat: False to leave those that all items share with a batch dimension of 1.
    """
    tensors = [x for x in xs if isinstance(x, Tensor)]
    if not tensors:
        raise InputError(f"{type(node).__name__} was given no tensor")
    for x in tensors:
        if x.is_complex():
            raise InputError(f"{type(node).__name__}: complex inputs are not supported")
        if x.device != tensors[0].device:
            raise InputError(
                f"{type(node).__name__}: inputs on {tensors[0].device} and {x.device}; "
                "bring them to one device"
            )
    floating = [x.dtype for x in tensors if x.is_floating_point()]
    dtype = torch.float64 if torch.float64 in floating else torch.float32
    lead = [_leading(node, i, x, len(xs), batch_dims) for i, x in enumerate(xs)]
    try:
        shapes = {s for s in lead if s is not None}
        batch_shape = shapes.pop() if len(shapes) == 1 else torch.broadcast_shapes(*shapes)
    except RuntimeError:
        told = ", ".join(str(tuple(s)) for s in lead if s is not None)
        raise InputError(
            f"{type(node).__name__}: the batch dimensions of the inputs differ: {told}"
        ) from None
    inputs: list[Any] = []
    for x, shape in zip(xs, lead, strict=True):
        if shape is not None:
            own = x.shape[len(shape) :]
            x = x.clone() if x.is_inference() else x
            x = x.to(dtype) if x.is_floating_point() else x
            if repeat or (shape != batch_shape and shape.numel() > 1):
                x = x.expand(batch_shape + own).reshape(batch_shape.numel(), *own)
            elif len(shape) != 1:
                x = x.reshape(shape.numel(), *own)
        inputs.append(x)
    return inputs, batch_shape


def _leading(
    node: DeclarativeNode, index: int, x: Any, count: int, batch_dims: int | None
) -> torch.Size | None:
    if not isinstance(x, Tensor):
        return None
    name = type(node).__name__
    if batch_dims is not None or node.input_dims is None:
        lead = batch_dims or 0
        if x.ndim < lead:
            raise InputError(
                f"{name}: input {index} has shape {tuple(x.shape)}, fewer dimensions than "
                f"batch_dims = {lead}"
            )
        return x.shape[:lead]
    if len(node.input_dims) != count:
        raise InputError(
            f"{name}.input_dims names {len(node.input_dims)} inputs, but {count} were given"
        )
    own = node.input_dims[index]
    if own is None or x.ndim < own:
        raise InputError(
            f"{name}: input {index} has shape {tuple(x.shape)}, but input_dims = "
            f"{tuple(node.input_dims)} asks for "
            + ("no tensor there" if own is None else f"at least {own} dimensions")
        )
    return x.shape[: x.ndim - own]
