"""Findings: what one set of inputs showed. Comparisons fill it, the diagnosis goes by it.

Not every node gets to every comparison. What later ones need is therefore a value of its own, which is handed
to them: a `Point` once there is a solution, `Slopes` once gradients were compared with differences.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..certificate import Certificate
from .differences import Differences
from .landscape import Elsewhere
from .report import Comparison, Diagnosis, Row, RowKey
from .subject import SolvedBatch, Subject


@dataclass(frozen=True)
class Cause:
    """What is wrong: which diagnosis it is, one sentence with its figures, and what to do next."""

    kind: Diagnosis
    text: str
    next: str


@dataclass
class Point:
    """The solution from the node's own starting point, as it was measured.

    Attributes:
        v: the incoming gradient for it, (B, m).
        rank_gained: see `point.rank_gained_nearby`.
        lower: another minimum with a lower objective, if one was found.
        multipliers: what is wrong with those that `solve` returns with y, if it does and something is.
        beside: the certificate at inputs nearby where the solver, from its own start, finds no solution.
    """

    solved: SolvedBatch
    certificate: Certificate
    v: Tensor
    rank_gained: float = 0.0
    lower: Elsewhere | None = None
    beside: Certificate | None = None
    multipliers: str = ""


@dataclass(frozen=True)
class Slopes:
    """The differences that gradients are compared with.

    Attributes:
        error: how far the differences with two steps are apart, relative to the scale.
        scale: the size of a slope, which their errors are relative to.
    """

    differences: Differences
    error: float
    scale: float


@dataclass
class Findings:
    """What one set of inputs showed.

    Attributes:
        error: why the node does not run, as it said itself.
        point: the node's solution; None if there is none.
        directions: of the differentiable inputs, as are the ``gradients`` of each form.
        slopes: None where no gradient was compared with differences.
        blamed: which part of the node lets items of a batch influence one another.
        repeatable: whether copies of the node agree about the same inputs; None where that is not known.
        only: what is to be compared; None for all.
    """

    subject: Subject
    inputs: tuple[object, ...]
    rows: list[Row] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)
    error: str = ""
    point: Point | None = None
    directions: list[list[Tensor]] = field(default_factory=list)
    gradients: dict[str, list[Tensor]] = field(default_factory=dict)
    slopes: Slopes | None = None
    blamed: str = ""
    repeatable: bool | None = None
    only: frozenset[Comparison] | None = None

    @property
    def ok(self) -> bool:
        """Every comparison held."""
        return not self.error and all(row.ok for row in self.rows)

    @property
    def wrong(self) -> frozenset[RowKey]:
        """What was compared and failed."""
        return frozenset(row.key for row in self.rows if not row.ok)

    def wants(self, *comparisons: Comparison) -> bool:
        """Whether one of the comparisons is asked for."""
        return self.only is None or not self.only.isdisjoint(comparisons)

    def failures(self, *comparisons: Comparison) -> list[Row]:
        """The rows of these comparisons that failed."""
        return [row for row in self.rows if row.key.comparison in comparisons and not row.ok]

    def note(self, kind: str, text: str) -> None:
        """Add a remark that is no failure; of each kind the first is kept."""
        self.notes.setdefault(kind, text)

    def compare(
        self,
        what: Comparison | RowKey,
        error: float | Tensor,
        tolerance: float,
        note: str = "",
    ) -> bool:
        """Add a comparison; returns whether it held."""
        value = float(error)
        held = value <= tolerance
        compared = what if isinstance(what, RowKey) else RowKey(what)
        self.rows.append(Row(compared, value, tolerance, held, note=note))
        return held
