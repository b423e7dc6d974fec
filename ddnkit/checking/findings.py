"""Findings: what one set of inputs showed. Comparisons fill it, the diagnosis goes by it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..certificate import Certificate
from .differences import Differences
from .landscape import Elsewhere
from .report import Row
from .subject import Solved, Subject


@dataclass
class Findings:
    """What one set of inputs showed.

    Attributes:
        solved: the solution from the node's own starting point; None if there is none.
        error: why the node does not run, as it said itself.
        v: the incoming gradient, (B, m).
        directions: of the differentiable inputs, as are the ``gradients`` of each form.
        refused: forms that could not be used, each with the reason.
        rank_gained: see `degeneracy.rank_gained_nearby`.
        blamed: which part of the node lets items of a batch influence one another.
        state: "random", "stale answer", "stale gradient", or "repeatable" if it is none of them as far
            as copies of the node show.
        only: the kinds of comparisons that are asked for; None for all.
    """

    subject: Subject
    inputs: tuple[Any, ...]
    rows: list[Row] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)
    error: str = ""
    solved: Solved | None = None
    certificate: Certificate | None = None
    v: Tensor | None = None
    directions: list[list[Tensor]] = field(default_factory=list)
    gradients: dict[str, list[Tensor]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    differences: Differences | None = None
    difference_error: float = 0.0
    scale: float = 1.0
    rank_gained: float = 0.0
    elsewhere: Elsewhere | None = None
    blamed: str = ""
    state: str = ""
    only: frozenset[str] | None = None

    @property
    def ok(self) -> bool:
        """Every comparison held."""
        return not self.error and all(row.ok for row in self.rows)

    @property
    def kinds(self) -> frozenset[str]:
        """Which comparisons failed."""
        return frozenset(row.name for row in self.rows if not row.ok)

    def wants(self, part: str) -> bool:
        """Whether comparisons with ``part`` in their names are asked for."""
        return self.only is None or any(part in kind for kind in self.only)

    def failed(self, part: str) -> list[Row]:
        """The failed comparisons with ``part`` in their names."""
        return [row for row in self.rows if part in row.name and not row.ok]

    def note(self, kind: str, text: str) -> None:
        """Say something that is no failure, once a kind."""
        self.notes.setdefault(kind, text)

    def compare(self, name: str, error: float | Tensor, tolerance: float, note: str = "") -> bool:
        """Add a comparison; returns whether it held."""
        value = float(error)
        held = value <= tolerance
        self.rows.append(Row(name, value, tolerance, held, note=note))
        return held
