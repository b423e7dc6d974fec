"""ManifoldReport: what each method of a manifold was held against, and which one is wrong."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class MethodRow:
    """One comparison of one method, at its worst point.

    Attributes:
        ok: None where it was not judged, as a method that it rests on is wrong.
    """

    method: str
    compared: str
    error: float
    tolerance: float
    ok: bool | None
    note: str = ""

    @property
    def name(self) -> str:
        """What is compared, as a report prints it."""
        return f"{self.method}: {self.compared}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON; an error that is no number is None."""
        error = self.error if math.isfinite(self.error) else None
        return {"name": self.name, **asdict(self), "error": error}


@dataclass(frozen=True)
class Fault:
    """A method that is wrong: what it gave and what was expected, and what to do.

    Attributes:
        methods: the one; several where they contradict each other and nothing says which of them it is.
    """

    methods: tuple[str, ...]
    text: str
    next: str


@dataclass(frozen=True)
class ManifoldReport:
    """The result of `ddnkit.check_manifold`.

    Attributes:
        target: what was checked.
        shape: of one point.
        rows: the comparisons, each at its worst point.
        faults: what is wrong, the most fundamental first.
        points: at how many points the comparisons were made.
    """

    target: str
    shape: tuple[int, ...]
    rows: tuple[MethodRow, ...]
    faults: tuple[Fault, ...]
    points: int

    @property
    def ok(self) -> bool:
        """Every comparison was made, and held."""
        return bool(self.rows) and all(row.ok for row in self.rows)

    @property
    def wrong(self) -> tuple[str, ...]:
        """The names of the methods that are wrong."""
        return tuple(dict.fromkeys(name for fault in self.faults for name in fault.methods))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        rows = tuple(row.to_dict() for row in self.rows)
        return {**asdict(self), "rows": rows, "wrong": self.wrong, "ok": self.ok}

    def __str__(self) -> str:
        width = max((len(row.name) for row in self.rows), default=0)
        lines = [f"{self.target}: {self.points} points of shape {self.shape}"]
        for row in self.rows:
            if row.ok is None:
                lines.append(f"  --   {row.name:<{width}}  {row.note}")
                continue
            mark = "ok  " if row.ok else "FAIL"
            note = f"  {row.note}" if row.note else ""
            lines.append(
                f"  {mark} {row.name:<{width}}  {row.error:8.1e}  (at most {row.tolerance:.0e}){note}"
            )
        for fault in self.faults:
            lines += [f"diagnosis: {fault.text}", f"next: {fault.next}"]
        lines.append("passed" if self.ok else "FAILED")
        return "\n".join(lines)
