"""JoinedCertificate: one certificate of a batch whose items were solved in parts, each in its own way.

The policy speaks of the batch that the user has given, whichever part it acts on: counts, items that are
named, and worst figures are those of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .certificate import Certificate, LateCertificate

#: What a figure is for items of a part that has none, while another part has it: what speaks against nothing.
_NOTHING_AGAINST = {
    "uniqueness": torch.inf, "adjoint_residual": 0.0, "touching": 0.0, "saddle": 0.0, "curvature": torch.inf,
    "condition": 1.0, "error_bound": 0.0, "solution_error": 0.0, "adjoint_difference": 0.0,
    "active_margin": torch.inf, "branch": 0, "branch_gap": torch.inf, "selection_error": 0.0,
    "kink_margin": 1.0, "hidden": 0.0, "told_apart": 0.0, "licq": torch.nan, "settled": False,
}  # fmt: skip


class JoinedCertificate(LateCertificate):
    """The certificate of a batch as its parts have it now; what is no figure is that of the last part.

    Args:
        parts: of each part its certificate, or None as long as there is none.
        items: of each part its items, which are those of the batch, in one row, together.
        shape: of the batch.

    Attributes:
        told: what the policy has said of the batch.
    """

    __slots__ = ("_items", "_joined", "_parts", "_shape", "told")

    def __init__(
        self,
        parts: Sequence[Certificate | LateCertificate | None],
        items: Sequence[Tensor],
        shape: Sequence[int],
    ):
        self._parts, self._shape = list(parts), tuple(shape)
        self._items = torch.cat(list(items)).argsort()
        self._joined: tuple[list[Certificate], Certificate] | None = None
        self.told: set[str | None] = set()

    def certificate(self) -> Certificate:
        """That of the whole batch."""
        parts = [x.certificate() if isinstance(x, LateCertificate) else x for x in self._parts]
        there = [x for x in parts if x is not None]
        before = self._joined
        if before is None or any(a is not b for a, b in zip(before[0], there, strict=True)):
            self._joined = there, self._join(there)
        assert self._joined is not None
        return self._joined[1]

    def _join(self, parts: list[Certificate]) -> Certificate:
        parts = [x.reshape((-1,)) for x in parts]
        sizes = [len(x.stationarity) for x in parts]

        def join(values: list[Any], rest: Any) -> Any:
            known = next((x for x in values if isinstance(x, Tensor)), None)
            if known is None:
                return values[-1]
            filled = [
                known.new_full((size,), rest) if x is None else x
                for x, size in zip(values, sizes, strict=True)
            ]
            return torch.cat(filled)[self._items]

        figures = {
            name: join([getattr(x, name) for x in parts], _NOTHING_AGAINST.get(name))
            for name in vars(parts[-1])
            if name != "finite"
        }
        finite = {
            name: join([x.finite.get(name) for x in parts], True) for name in parts[-1].finite
        }
        return replace(parts[-1], **figures, finite=finite).reshape(self._shape)

    def part(self, index: int) -> Part:
        """What a call needs that solves this part."""
        return Part(self, index)


@dataclass(frozen=True)
class Part:
    """One part of a batch: where its certificate goes."""

    whole: JoinedCertificate
    index: int

    def take(self, certificate: Certificate) -> Certificate:
        """The certificate of the whole batch with this one of the part."""
        self.whole._parts[self.index] = certificate
        return self.whole.certificate()
