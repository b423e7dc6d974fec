"""A solution of several parts: a tuple, list or dictionary of tensors, seen as one vector by the core.

Solvers, certificates and backward forms know y as one tensor. Where a node's y has several parts,
they are laid end to end in a vector of m entries, and the node's own functions are given the parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import InputError


@dataclass(frozen=True)
class Structure:
    """The parts of one y: its keys (None for a tuple), and the shape of each part.

    `join` and `split` take any number of batch dimensions in front.
    """

    keys: tuple[Any, ...] | None
    shapes: tuple[torch.Size, ...]

    @classmethod
    def of(cls, y: Any, name: str) -> Structure | None:
        """The structure of one problem's y; None for a plain tensor.

        Raises:
            InputError: y is neither a tensor nor a tuple, list or dictionary of tensors.
        """
        if isinstance(y, Tensor):
            return None
        parts = list(y.values()) if isinstance(y, dict) else y
        if not isinstance(parts, (list, tuple)) or not parts:
            raise InputError(
                f"{name} must return a tensor, or a tuple or dictionary of tensors, "
                f"not {type(y).__name__}"
            )
        for part in parts:
            if not isinstance(part, Tensor):
                raise InputError(f"{name}: a part of y is no tensor but {type(part).__name__}")
        keys = tuple(y) if isinstance(y, dict) else None
        return cls(keys, tuple(part.shape for part in parts))

    def join(self, y: Any, batch_dims: int = 0) -> Tensor:
        """The parts as one vector, (*batch, m)."""
        parts = list(y.values()) if isinstance(y, dict) else list(y)
        return torch.cat([part.flatten(batch_dims) if part.ndim > batch_dims
                          else part.unsqueeze(-1) for part in parts], dim=-1)  # fmt: skip

    def split(self, vector: Tensor) -> Any:
        """The parts of a vector (*batch, m), each (*batch, *shape)."""
        sizes = [shape.numel() for shape in self.shapes]
        pieces: Sequence[Tensor] = vector.split(sizes, dim=-1)
        parts = tuple(
            piece.reshape(vector.shape[:-1] + shape)
            for piece, shape in zip(pieces, self.shapes, strict=True)
        )
        return parts if self.keys is None else dict(zip(self.keys, parts, strict=True))

    def without_batch(self, batch_dims: int) -> Structure:
        """The structure of one problem, from that of a batch."""
        return Structure(self.keys, tuple(shape[batch_dims:] for shape in self.shapes))
