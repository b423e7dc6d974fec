"""Asking a job to stop: the first interrupt lets it save its state, the second ends it at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType


class Stop:
    """Whether this process was asked to stop.

    Args:
        patient: ignore further requests, as a worker does, which its parent process can end.
    """

    def __init__(self, *, patient: bool = False) -> None:
        self._asked = False
        self._patient = patient

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

        def handle(number: int, frame: FrameType | None) -> None:
            if self._asked and not self._patient:
                raise KeyboardInterrupt
            self._asked = True

        with _handle_signals(handle, signals):
            yield


@contextlib.contextmanager
def interrupt_on(*signals: signal.Signals) -> Iterator[None]:
    """Take each of ``signals`` as an interrupt from the keyboard."""

    def handle(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handle_signals(handle, signals):
        yield


@contextlib.contextmanager
def _handle_signals(
    handle: Callable[[int, FrameType | None], None], signals: Iterable[signal.Signals]
) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handle) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
