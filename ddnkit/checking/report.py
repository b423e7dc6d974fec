"""CheckReport: what was compared with what, how far apart, what that means, and how to see it again."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
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
        next: what to do about each.
        notes: what was seen and is no failure.
        verdict: "trusted", "doubtful" or "invalid": the worst certificate of all inputs, and invalid
            if a comparison failed.
        inputs: the smallest failing inputs found, as Python text; empty if nothing failed.
        snippet: a script that makes node and inputs again and checks them; empty if nothing failed.
        cases: how many inputs were checked.
        forms: the backward forms that were compared.
    """

    target: str
    rows: tuple[Row, ...]
    diagnosis: tuple[str, ...] = ()
    next: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    verdict: str = "trusted"
    inputs: str = ""
    snippet: str = ""
    cases: int = 1
    forms: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Every comparison held."""
        return bool(self.rows) and all(row.ok for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON; an error that is no number is None."""
        data = {**asdict(self), "ok": self.ok}
        for row in data["rows"]:
            row["error"] = row["error"] if math.isfinite(row["error"]) else None
        return data

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
        lines += [f"next: {text}" for text in self.next]
        lines += [f"note: {text}" for text in self.notes]
        if self.snippet:
            indented = "\n".join(f"    {line}".rstrip() for line in self.snippet.splitlines())
            lines.append(f"smallest failing inputs, as a script:\n{indented}")
        lines.append(f"{'passed' if self.ok else 'FAILED'}, gradients {self.verdict}")
        return "\n".join(lines)


def merge(rows: list[Row]) -> tuple[Row, ...]:
    """One row a name, in order of appearance, with the worst error and the number of cases."""
    merged: dict[str, Row] = {}
    for row in rows:
        seen = merged.get(row.name)
        if seen is None:
            merged[row.name] = row
            continue
        kept = row if _badness(row) > _badness(seen) else seen
        merged[row.name] = replace(kept, ok=seen.ok and row.ok, cases=seen.cases + 1)
    return tuple(merged.values())


def _badness(row: Row) -> tuple[bool, bool, float]:
    # A NaN is worse than any number, and a failure than any error.
    return not row.ok, math.isnan(row.error), row.error
