"""Other inputs of the same shapes, to put beside those that are checked: in a batch, or in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..layer import batched_inputs
from .cases import sample
from .differences import generator, random_like
from .subject import Subject

_SEEDS = range(2**31 - 9, 2**31 - 1)
#: Relative size of the step to a made-up companion: it should stay in the domain of the problem.
_ASIDE = 1e-2


def items(subject: Subject, xs: Sequence[Any], count: int) -> list[tuple[Any, ...]]:
    """Inputs of ``count`` single problems, the first that of ``xs``, without batch dimensions."""
    inputs, shape = batched_inputs(subject.node, xs, subject.batch_dims)
    given = [
        tuple(x[k] if isinstance(x, Tensor) else x for x in inputs)
        for k in range(min(shape.numel(), count))
    ]
    return given + others(subject, given[0], count - len(given))


def others(subject: Subject, item: tuple[Any, ...], count: int) -> list[tuple[Any, ...]]:
    """More problems like one: drawn if the node can draw such, else made by small steps aside."""
    found: list[tuple[Any, ...]] = []
    for seed in _SEEDS:
        if len(found) == count:
            return found
        drawn = _drawn_like(subject, item, seed)
        if drawn is not None:
            found.append(drawn)
    source = generator()
    while len(found) < count:
        found.append(tuple(_aside(x, source) for x in item))
    return found


def _drawn_like(subject: Subject, item: tuple[Any, ...], seed: int) -> tuple[Any, ...] | None:
    try:
        drawn = sample(subject.node, seed)
    except Exception:  # there need be nothing to draw from where inputs are given
        return None
    if len(drawn) != len(item):
        return None
    alike = []
    for x, like in zip(drawn, item, strict=True):
        if not isinstance(like, Tensor):
            alike.append(like)
            continue
        if not isinstance(x, Tensor) or x.shape != like.shape:
            return None
        alike.append(x.to(like))
    return tuple(alike)


def _aside(x: Any, source: torch.Generator) -> Any:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return x
    return x + _ASIDE * random_like(x, source)
