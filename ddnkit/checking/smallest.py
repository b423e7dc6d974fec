"""The smallest inputs on which a check fails for the same cause."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ..backward.form import BackwardForm
from .cases import shrink
from .diagnosis import diagnose
from .findings import Cause, Findings
from .instance import examine_around
from .report import Comparison, Diagnosis, RowKey

#: Trials after which a failing input is small enough, and seconds: without a diagnosis of each, and with.
_TRIALS, _SECONDS = 80, (10.0, 5.0)
#: Comparisons of one form, which say nothing more where its gradient is off.
_OF_FORM = (
    Comparison.FORM_RUNS,
    Comparison.RESIDUAL,
    Comparison.DIFFERENCES,
    Comparison.AGAINST,
    Comparison.FORWARD,
    Comparison.PARAMETER,
)


def smallest(
    failing: Findings, causes: Sequence[Cause]
) -> tuple[tuple[object, ...], Sequence[Cause]]:
    """The simplest inputs on which the same comparisons fail for the same causes, and the causes found there.

    A node may have two defects, each the only one to be seen at some inputs. A trial makes the failed
    comparisons alone; where what they lead to has another diagnosis, each trial is diagnosed too.
    """
    kinds = [cause.kind for cause in causes]
    for diagnosed in (False, True):
        simplest = shrink(failing.inputs, _Trials(failing, kinds if diagnosed else None))
        again = _diagnose_again(failing, simplest)
        if [cause.kind for cause in again] == kinds:
            return simplest, again
    return failing.inputs, causes


class _Trials:
    """Whether inputs fail as given ones do: in the same comparisons, and with ``kinds`` if they are given."""

    def __init__(self, failing: Findings, kinds: Sequence[Diagnosis] | None):
        self._failing, self._kinds = failing, kinds
        self._wrong = _essential(failing)
        self._subject = failing.subject.with_forms(_forms_of(failing, self._wrong))
        self._only = frozenset(compared.comparison for compared in self._wrong)
        self._calls, self._until = 0, time.monotonic() + _SECONDS[kinds is not None]

    def __call__(self, simple: tuple[object, ...]) -> bool:
        self._calls += 1
        if self._calls > _TRIALS or time.monotonic() > self._until:
            return False
        found = examine_around(self._subject, simple, around=True, thorough=True, only=self._only)
        if _essential(found) != self._wrong:
            return False
        if self._kinds is None:
            return True
        return [cause.kind for cause in _diagnose_again(self._failing, simple)] == self._kinds


def _diagnose_again(failing: Findings, inputs: tuple[object, ...]) -> list[Cause]:
    """What a check of these inputs alone diagnoses, as the script that is printed makes it."""
    try:
        return diagnose(examine_around(failing.subject, inputs, around=True, thorough=True))
    except Exception:
        # The node raises where more is asked of it: these inputs do not fail as the given ones do.
        return []


def _essential(findings: Findings) -> frozenset[RowKey]:
    """What failed, less what follows from a gradient that is off or repeats it for another form."""
    wrong = findings.wrong
    off = [compared for compared in wrong if compared.comparison is Comparison.DIFFERENCES]
    forms = {compared.form for compared in off}
    rest = {c for c in wrong if c.comparison not in _OF_FORM or c.form not in forms}
    # Of several forms that are off the last stands for all: it is the reference.
    order = [form.name for form in findings.subject.forms]
    last = max(off, key=lambda compared: order.index(compared.form), default=None)
    return frozenset(rest if last is None else {last, *rest})


def _forms_of(failing: Findings, wrong: frozenset[RowKey]) -> list[BackwardForm]:
    """The forms that the comparisons need, in the order of the check."""
    if any(compared.comparison is Comparison.FLOAT32_GRADIENT for compared in wrong):
        return list(failing.subject.forms)  # it names none, and takes one of them
    named = {name for compared in wrong for name in (compared.form, compared.against)}
    return [form for form in failing.subject.forms if form.name in named]
