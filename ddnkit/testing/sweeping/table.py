"""What a sweep found: a row of one backward form on one problem, and all rows as a page of the site."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata

import torch

_TEXT = """\
# Every problem through every form

The worst relative error, in float64, of derivatives of the problems of `ddnkit.testing.bank()` by each
backward form. Written by `make sweep`: ddnkit {ddnkit}, torch {torch}, {date}, seeds {seeds}. Rounding is
1e-16; comparisons with finite differences cannot show errors below about 1e-12.

## The largest error of all columns

"–": the form does not apply; the last table gives the reasons.

{forms}

## "auto", column by column

{columns}

| column | what is compared |
|---|---|
| analytic | the whole Jacobian, parameters included, and a gradient by autograd, with the analytic ones |
| differences | the Jacobian along random directions with extrapolated differences of new solutions |
| transpose | the derivatives by `jacfwd` and `jvp` with those by `vjp` |
| second | Hessian-vector products, reverse and forward over reverse, with differences of the gradient |
| vmap | values and gradients under `torch.func.vmap`, over all inputs and over one, with single problems |
| batch | values and gradients of a batch with those of its items |

## Cases that were left out or failed

{notes}

To test your own form or problem:
`ddnkit.testing.sweep(forms=[MyForm()])`, `ddnkit.testing.sweep([MyProblem()])`.
"""


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
        cells = [f"{column} {error_text(error)}" for column, error in self.errors.items()]
        notes = [f"{column}: {note}" for column, note in self.notes.items()]
        return f"{self.problem} × {self.form}: {', '.join(cells)}" + "".join(
            f"\n    {note}" for note in notes
        )


def error_text(error: float | None) -> str:
    """An error as tables show it."""
    return "–" if error is None else f"{error:.0e}" if error else "0"


def page(rows: Sequence[SweepRow], seeds: Iterable[int]) -> str:
    """The page of ``rows``."""
    return _TEXT.format(
        ddnkit=metadata.version("ddnkit"),
        torch=torch.__version__,
        date=datetime.date.today().isoformat(),
        seeds=", ".join(map(str, seeds)),
        forms=_by_form(rows),
        columns=_by_column([row for row in rows if row.form == "auto"]),
        notes=_left_out(rows),
    )


def _by_form(rows: Sequence[SweepRow]) -> str:
    forms = list(dict.fromkeys(row.form for row in rows))
    cells = {(row.problem, row.form): error_text(row.worst) for row in rows}
    problems = dict.fromkeys(row.problem for row in rows)
    return _table(
        ["problem", *forms],
        [[problem, *(cells.get((problem, form), "–") for form in forms)] for problem in problems],
    )


def _by_column(rows: Sequence[SweepRow]) -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row.errors))
    return _table(
        ["problem", *columns],
        [[row.problem, *(error_text(row.errors.get(c)) for c in columns)] for row in rows],
    )


def _left_out(rows: Sequence[SweepRow]) -> str:
    """Each reason once, with the problems that it holds for."""
    every = list(dict.fromkeys(row.problem for row in rows))
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for what, why in row.notes.items():
            form_or_column = row.form if what == "form" else what
            problems = reasons.setdefault((form_or_column, why), [])
            if row.problem not in problems:
                problems.append(row.problem)
    return _table(
        ["form or column", "why", "problems"],
        [
            [what, why.replace("|", "\\|").replace("\n", " "), _list_problems(problems, every)]
            for (what, why), problems in reasons.items()
        ],
    )


def _list_problems(problems: Sequence[str], every: Sequence[str]) -> str:
    others = [problem for problem in every if problem not in problems]
    if len(problems) <= len(others) or not others:
        return ", ".join(problems)
    return f"all but {', '.join(others)}"


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
