"""A sweep: every problem through every backward form, each column a way to be wrong.

    rows = ddnkit.testing.sweep(forms=["dense", MyForm()])
    assert all(row.worst < 1e-6 for row in rows if row.applies)

`python -m ddnkit.testing.sweeping --markdown sweep.md` writes the tables of the whole bank.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ...backward.form import BackwardForm
from ..catalogue import bank
from ..known_problem import KnownProblem
from .case import ITEMS, Case, NotApplicableError, Trial
from .columns import COLUMNS
from .forms import all_forms, as_form, reason_against
from .table import SweepRow


def sweep(
    problems: Iterable[KnownProblem] | None = None,
    forms: Iterable[str | BackwardForm] | None = None,
    *,
    seeds: Iterable[int] = (0,),
    columns: Sequence[str] = tuple(COLUMNS),
) -> list[SweepRow]:
    """How exact each backward form is on each problem, in float64: one row a problem and form.

    Columns, each the worst relative error of a derivative against what it must equal:
        analytic: the whole Jacobian, parameters' included, against the one on paper;
        differences: against fourth-order and higher differences through new solutions;
        transpose: forward mode (jvp, jacfwd) against reverse mode (vjp, jacrev);
        second: second derivatives, reverse over reverse and forward over reverse, against differences
            of the gradient;
        vmap: values and gradients under vmap against one by one;
        batch: those of a batch against its items.
    The layer runs with the policy "raise", so that a gradient that its certificate does not trust is
    a failure too. Where a solution is not unique, only v·dy that it determines are asked for.

    Args:
        problems: `bank()` if None; any KnownProblem, a stranger's too.
        forms: names or BackwardForm objects; None: all registered ones and the variants of "dense".
        seeds: of the inputs; an error is the worst over them.
        columns: which of the columns to measure.

    Returns:
        the rows, in the order of problems and then forms; those of forms that do not apply included.
    """
    problems = bank() if problems is None else list(problems)
    chosen = all_forms() if forms is None else [as_form(form) for form in forms]
    seeds = list(seeds)
    return [row for problem in problems for row in _rows(problem, chosen, seeds, columns)]


def _rows(
    problem: KnownProblem,
    forms: Sequence[BackwardForm],
    seeds: Sequence[int],
    columns: Sequence[str],
) -> list[SweepRow]:
    cases = {seed: Case(problem, seed) for first in seeds for seed in range(first, first + ITEMS)}
    rows = []
    for form in forms:
        reason = reason_against(problem, form)
        if reason is not None:
            rows.append(SweepRow(problem.label, form.name, notes={"form": reason}))
            continue
        trials = [Trial(form, [cases[seed + k] for k in range(ITEMS)]) for seed in seeds]
        rows.append(_measure(problem, form, trials, columns))
    return rows


def _measure(
    problem: KnownProblem, form: BackwardForm, trials: Sequence[Trial], columns: Sequence[str]
) -> SweepRow:
    errors: dict[str, float | None] = {}
    notes: dict[str, str] = {}
    for column in columns:
        try:
            errors[column] = max(COLUMNS[column](trial) for trial in trials)
        except NotApplicableError as reason:
            errors[column], notes[column] = None, str(reason)
        except Exception as error:  # a stranger's form may raise anything: it is what is looked for
            errors[column], notes[column] = float("inf"), f"{type(error).__name__}: {error}"
    return SweepRow(problem.label, form.name, errors, notes)
