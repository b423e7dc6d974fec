"""A bench: two ways to bring the columns of a matrix to length one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ddnkit.bench import Case, Comparison, Competitor, Floor


class ColumnLengths(Comparison):
    """Columns of length one, by torch's function and by a loop. A case's size: rows, columns."""

    name = "column_lengths"
    size_names = ("rows", "columns")
    sizes = ((64, 16), (256, 64))

    def inputs(self, case: Case, dtype: torch.dtype) -> Mapping[str, Any]:
        """A matrix."""
        return {"A": torch.randn(case.size, dtype=dtype)}

    def competitors(self, case: Case, device: str) -> Sequence[Competitor]:
        """torch's function first: the other one is compared with it."""
        return [
            Competitor("torch's normalize", _of(lambda A: torch.nn.functional.normalize(A, dim=0))),
            Competitor(
                "column by column", _of(lambda A: torch.stack([a / a.norm() for a in A.mT], 1))
            ),
        ]

    def floor(self, case: Case) -> Floor:
        """Two passes over the matrix, reading it twice and writing it once."""
        entries = case.size[0] * case.size[1]
        return Floor(3.0 * entries, 4.0 * 3 * entries, "a square, a sum and a division an entry")


def _of(function: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    return lambda inputs: {"forward": lambda _: {"A": function(inputs["A"])}}
