"""Asking a job to stop: the first interrupt lets it save its state, the second ends it at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Stop:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self._asked = False

    def ask(self) -> None:
        """Ask to stop."""
        self._asked = True

    def __call__(self) -> bool:
        """Whether it was asked."""
        return self._asked

    @contextlib.contextmanager
    def on_signals(self, *signals: signal.Signals) -> Iterator[None]:
        """Take the first of ``signals`` as a request; a second one interrupts as usual.

        Only the main thread receives signals: elsewhere nothing changes.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number: int, frame: FrameType | None) -> None:
            if self._asked:
                raise KeyboardInterrupt
            self._asked = True

        before = {number: signal.signal(number, handle) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
