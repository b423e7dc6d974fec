"""What iterative solvers are built from: settings that are checked, limits, derivatives of the problem.

A solver is a frozen dataclass whose fields are its settings. A field says by `whole_number`, `number` or
`choice` which values it takes, and `check_settings` holds the values that are given against that. A
subclass that gives a field another default keeps its check.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any

from ..errors import InputError
from ..lagrangian import constraint_jacobian as constraint_jacobian
from ..lagrangian import lagrangian_gradient as lagrangian_gradient
from ..lagrangian import lagrangian_hessian as lagrangian_hessian
from ..lagrangian import least_squares_multipliers as least_squares_multipliers
from ..solver import Solver

_CHECK = "ddnkit.solvers.check"


def whole_number(default: int | None, *, least: int = 0) -> Any:
    """A field that takes a whole number of at least ``least``; None too, where that is its default."""

    def holds(value: Any) -> bool:
        number = isinstance(value, Integral) and not isinstance(value, bool)
        return number and int(value) >= least

    return _setting(default, f"a whole number of at least {least}", holds)


def number(
    default: float | tuple[float, ...] | None,
    *,
    least: float = 0.0,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A field that takes a number in these bounds; None too, where that is its default.

    Infinity is a number, NaN is none. Where the default is a tuple, as many numbers are taken.

    Args:
        above: in the place of ``least``, a bound that the number must not be equal to.
    """
    bounds = f"of at least {least:g}" if above is None else f"above {above:g}"
    bounds += "" if below is None else f" and below {below:g}"

    def within(value: Any) -> bool:
        if not isinstance(value, Real) or isinstance(value, bool):
            return False
        try:
            x = float(value)
        except OverflowError:  # a whole number with hundreds of digits
            return False
        return (x >= least if above is None else x > above) and (below is None or x < below)

    if not isinstance(default, tuple):
        return _setting(default, f"a number {bounds}", within)
    count = len(default)

    def all_within(values: Any) -> bool:
        several = isinstance(values, (tuple, list)) and len(values) == count
        return several and all(map(within, values))

    return _setting(default, f"{count} numbers {bounds}", all_within)


def choice(*names: str) -> Any:
    """A field that takes one of ``names``, the first of them by default."""

    def holds(value: Any) -> bool:
        return isinstance(value, str) and value in names

    return _setting(names[0], f"one of {', '.join(names)}", holds)


def _setting(default: Any, expected: str, holds: Callable[[Any], bool]) -> Any:
    if default is None:
        expected += ", or None"
    return field(default=default, metadata={_CHECK: (default is None, holds, expected)})


def check_settings(solver: Solver) -> None:
    """To be called once the fields of a solver are set, in its ``__post_init__``.

    Raises:
        InputError: a value is none that its field takes.
    """
    checks: dict[str, tuple[bool, Callable[[Any], bool], str]] = {}
    for kind in reversed(type(solver).__mro__):
        own = vars(kind).get("__dataclass_fields__", {})
        checks |= {name: f.metadata[_CHECK] for name, f in own.items() if _CHECK in f.metadata}
    for f in fields(solver):  # type: ignore[arg-type]
        optional, holds, expected = checks.get(f.name, (True, lambda _: True, ""))
        value = getattr(solver, f.name)
        if not (optional and value is None) and not holds(value):
            raise InputError(f"{type(solver).__name__}: {f.name} is {expected}, not {value!r}")


@dataclass(frozen=True, kw_only=True)
class IterativeSolver(Solver):
    """A solver with the limits that all iterative ones have.

    To be derived from as a frozen dataclass, whose further settings are fields:

        @dataclass(frozen=True, kw_only=True)
        class Descent(IterativeSolver):
            name = "descent"
            max_iterations: int = 500
            rate: float = number(0.1, above=0)
            def solve(self, problem, start=None): ...

    Args:
        max_iterations: iterations allowed.
        max_time: seconds, None for no limit (see `Deadline`).

    Raises:
        InputError: a setting has a value that it cannot have.
    """

    max_iterations: int = whole_number(100)
    max_time: float | None = number(None)

    def __post_init__(self) -> None:
        check_settings(self)


class Deadline:
    """The moment ``seconds`` from now, to be looked at between iterations; None for never."""

    def __init__(self, seconds: float | None) -> None:
        self._end = math.inf if seconds is None else time.perf_counter() + seconds

    @property
    def passed(self) -> bool:
        """Whether the time is over."""
        return time.perf_counter() >= self._end
