"""CheckReport: what was compared with what, how far apart, and what that means."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """One comparison: its name, the worst error seen, what it is held against.

    Attributes:
        cases: on how many inputs it was made.
    """

    name: str
    error: float
    tolerance: float
    ok: bool
    cases: int = 1
    note: str = ""


@dataclass(frozen=True)
class CheckReport:
    """The result of `ddnkit.check`.

    Attributes:
        target: what was checked.
        rows: the comparisons, worst case over all inputs.
        diagnosis: what is wrong, most fundamental first; empty if nothing is.
        inputs: the smallest failing inputs found, as Python text; empty if nothing failed.
    """

    target: str
    rows: tuple[Row, ...]
    diagnosis: tuple[str, ...] = ()
    inputs: str = ""
    cases: int = 1
    forms: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Every comparison held."""
        return bool(self.rows) and all(row.ok for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**asdict(self), "ok": self.ok}

    def __str__(self) -> str:
        width = max((len(row.name) for row in self.rows), default=0)
        lines = [
            f"{self.target}: {self.cases} case{'s' if self.cases != 1 else ''}, "
            f"forms {', '.join(self.forms) or 'none'}"
        ]
        for row in self.rows:
            mark = "ok  " if row.ok else "FAIL"
            note = f"  {row.note}" if row.note else ""
            lines.append(
                f"  {mark} {row.name:<{width}}  {row.error:8.1e}  (at most {row.tolerance:.0e}){note}"
            )
        lines += [f"diagnosis: {text}" for text in self.diagnosis]
        if self.inputs:
            lines.append(f"smallest failing inputs:\n{self.inputs}")
        lines.append("passed" if self.ok else "FAILED")
        return "\n".join(lines)


def merge(rows: list[Row]) -> tuple[Row, ...]:
    """One row a name, in order of appearance, with the worst error and the number of cases."""
    merged: dict[str, Row] = {}
    for row in rows:
        seen = merged.get(row.name)
        if seen is None:
            merged[row.name] = row
            continue
        # A NaN is worse than any number, and a failure than any error.
        worse = (not row.ok, row.error != row.error, row.error) > (
            not seen.ok,
            seen.error != seen.error,
            seen.error,
        )
        kept = row if worse else seen
        merged[row.name] = Row(
            kept.name, kept.error, kept.tolerance, seen.ok and row.ok, seen.cases + 1, kept.note
        )
    return tuple(merged.values())
