"""SweepRow: what a sweep found of one backward form on one problem."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class SweepRow:
    """One cell of the table problems × forms.

    Attributes:
        problem: label of the problem.
        form: name of the form.
        errors: column: its worst relative error over the seeds, None where the column means nothing
            here; infinite where the form failed. Empty where the form does not apply at all.
        notes: column: why there is no error, or what failed; "form": why the form does not apply.
    """

    problem: str
    form: str
    errors: Mapping[str, float | None] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def applies(self) -> bool:
        """Whether the form can take the problem."""
        return "form" not in self.notes

    @property
    def worst(self) -> float | None:
        """The largest error of all columns; None where nothing was measured."""
        return max((e for e in self.errors.values() if e is not None), default=None)

    def __str__(self) -> str:
        if not self.applies:
            return f"{self.problem} × {self.form}: – ({self.notes['form']})"
        cells = [f"{column} {shown(error)}" for column, error in self.errors.items()]
        notes = [f"{column}: {note}" for column, note in self.notes.items()]
        return f"{self.problem} × {self.form}: {', '.join(cells)}" + "".join(
            f"\n    {note}" for note in notes
        )


def shown(error: float | None) -> str:
    """An error as tables show it."""
    return "–" if error is None else f"{error:.0e}" if error else "0"
