"""A time limit that a solver looks at between its iterations."""

from __future__ import annotations

import math
import time


class Deadline:
    """The moment ``seconds`` from now; None for never."""

    def __init__(self, seconds: float | None) -> None:
        self._end = math.inf if seconds is None else time.perf_counter() + seconds

    @property
    def passed(self) -> bool:
        """Whether the time is over."""
        return time.perf_counter() >= self._end
