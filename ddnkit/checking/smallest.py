"""The smallest inputs on which a check fails for the same cause."""

from __future__ import annotations

import time
from typing import Any

from ..backward.form import BackwardForm
from .around import examine_around
from .cases import shrink
from .cause import Cause
from .diagnosis import diagnose
from .findings import Findings

#: Trials and seconds after which a failing input is small enough.
_TRIALS, _SHRINKING = 80, 10.0
_REFERENCE = "dense"
#: Letters by which two diagnoses are of the same cause.
_NAME = 20


def smallest(failing: Findings, cause: Cause) -> tuple[Any, ...]:
    """The simplest inputs on which the same comparisons fail, for the same cause."""
    kinds = _essential(failing.kinds)
    subject = failing.subject.with_forms(_forms_of(failing, kinds))
    until, calls = time.monotonic() + _SHRINKING, 0

    def fails(simple: tuple[Any, ...]) -> bool:
        nonlocal calls
        calls += 1
        if calls > _TRIALS or time.monotonic() > until:
            return False
        found = examine_around(subject, simple, around=True, thorough=True, only=kinds)
        return _essential(found.kinds) == kinds

    simplest = shrink(failing.inputs, fails)
    again = diagnose(examine_around(failing.subject, simplest, around=True, thorough=True))
    named = again[0].text[:_NAME] if again else ""
    return simplest if named == cause.text[:_NAME] else failing.inputs


def _essential(kinds: frozenset[str]) -> frozenset[str]:
    """Without what follows: from a gradient that is off, and from the same in several forms."""
    off = sorted(kind for kind in kinds if kind.endswith(": finite differences"))
    wrong = {kind.split(":")[0] for kind in off}
    general = f"{_REFERENCE}: finite differences"
    kept = {general} if general in off else set(off[:1])
    return frozenset(kept | {kind for kind in kinds if kind.split(":")[0] not in wrong})


def _forms_of(failing: Findings, kinds: frozenset[str]) -> list[BackwardForm]:
    """The forms that the comparisons name."""
    named = " ".join(kinds)
    return [form for form in failing.subject.forms if form.name in named]
