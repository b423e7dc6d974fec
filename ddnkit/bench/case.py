"""A piece of work, and who can do it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

#: Given what the phase before returned (the first: None). The last returns {name: tensor}.
Phase = Callable[[Any], Any]


@dataclass(frozen=True)
class Case:
    """One piece of work: its size and, where a bench has several kinds, which."""

    size: tuple[int, ...]
    kind: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.kind, "×".join(map(str, self.size)))))


@dataclass(frozen=True)
class Competitor:
    """A way to do the work of a case.

    Attributes:
        name: in the table, and for ``--only``.
        prepare: from the inputs, the phases that are timed, by name and in order. What it does
            itself is not timed. The last phase returns the results that are compared, {name: tensor}
            (none: {}). Phases must bear being called again.
        packages: modules without which it is left out, by name.
        needs: bytes that it cannot do without.
        extrapolates: whether to measure smaller sizes where those bytes are not there.
        tolerance: difference from the reference that it is allowed; None: that of the comparison.
        refuses: why it does not take part, if so.
        install: what to give ``pip install`` for its packages.
    """

    name: str
    prepare: Callable[[Mapping[str, Any]], Mapping[str, Phase]]
    packages: tuple[str, ...] = ()
    needs: float = 0.0
    extrapolates: bool = False
    tolerance: float | None = None
    refuses: str = ""
    install: str = "'ddnkit[bench]'"

    def absence(self) -> str:
        """Why it does not take part on this machine; empty where it does."""
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if missing:
            return f"left out: {', '.join(missing)} not installed (pip install {self.install})"
        return self.refuses
