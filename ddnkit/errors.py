"""The exceptions and warnings of ddnkit, and the exit status that each stands for."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from typing import Any


class DdnkitError(Exception):
    """Base of all errors ddnkit raises on purpose; its text is complete without a traceback."""

    exit_status = 1


class InputError(DdnkitError):
    """What was given is wrong: a recipe, an option, a name, a shape, a file."""

    exit_status = 2


class DamagedFileError(InputError):
    """A file that a job left is damaged or was changed; the text names it. Other jobs go on."""


class PluginError(InputError):
    """A plugin could not be found, imported or validated; the text names it."""


class PluginWarning(UserWarning):
    """A plugin or its distribution was set aside, or is known by another name; the rest works."""


class UnsupportedProblemError(InputError):
    """A problem is of another kind than the solver takes, as the solver has found on looking at it."""


class UntrustedGradientError(DdnkitError):
    """The policy is ``raise`` and a solution or its gradient failed its certificate."""


class DdnkitWarning(UserWarning):
    """What goes on all the same: a failed certificate under ``warn``, batches that say nothing."""


@contextlib.contextmanager
def warnings_in_a_line() -> Iterator[None]:
    """Have a `DdnkitWarning` shown as the command line shows its own: a file and a line of code of ddnkit
    say nothing to whoever started a run.
    """
    usual = warnings.formatwarning

    def line(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> str:
        if issubclass(category, DdnkitWarning):
            return f"warning: {message}\n"
        return usual(message, category, *where, **more)

    warnings.formatwarning = line
    try:
        yield
    finally:
        warnings.formatwarning = usual


@contextlib.contextmanager
def reaching(path: object, option: str = "") -> Iterator[None]:
    """Have a failure to read or write ``path``, which the user gave, tell it: it is wrong input.

    Raises:
        InputError: the system refused the path, or ran out of room for it.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or plain(str(error), 200)
        what = f"{option} {path}".strip()
        raise InputError(f"{plain(what, 200)}: {reason}") from error


def closest(given: str, choices: Iterable[str]) -> str | None:
    """The one of ``choices`` that ``given`` was likely meant to be, if any."""
    close = difflib.get_close_matches(given, sorted(choices), n=1, cutoff=0.6)
    return close[0] if close else None


def nearest_choice(given: str, choices: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` for the closest of ``choices``, else the list of them.

    >>> nearest_choice("nearst_etf", ["nearest_etf", "fixed_etf"])
    " Did you mean 'nearest_etf'?"
    """
    names = sorted(choices)
    near = closest(given, names)
    if near:
        return f" Did you mean '{near}'?"
    return f" Choose one of: {', '.join(names)}." if names else ""


#: Characters of one word in an error, and of a path, which is of use only as a whole.
_LONGEST_WORD, _LONGEST_PATH = 100, 300
_BEGINNING, _END = 48, 24


def shortened(text: str, given: Iterable[str] = ()) -> str:
    """``text`` for a terminal: what is longer than any name is cut in its middle, what is invisible shown.

    Args:
        given: arguments that it may repeat, which are cut as a whole; without spaces any word is.

    >>> shortened(5000 * "9" + " is too large")
    '999999999999999999999999999999999999999999999999…999999999999999999999999 is too large'
    """
    for argument in sorted(given, key=len, reverse=True):
        for part in (argument, argument.partition("=")[2]):
            if len(part) > _LONGEST_WORD:
                text = text.replace(part, _cut(part))
    text = re.sub(rf"\S{{{_LONGEST_WORD + 1},}}", lambda word: _cut(word[0]), text)
    # A mark of direction in a key, or a colour in a stranger's words: neither seen nor harmless.
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def _cut(word: str) -> str:
    longest = _LONGEST_WORD
    if os.sep in word:
        word, longest = os.sep.join(map(_cut, word.split(os.sep))), _LONGEST_PATH
    return word if len(word) <= longest else f"{word[:_BEGINNING]}…{word[-_END:]}"


def plain(text: str, limit: int) -> str:
    """``text`` on one line of at most ``limit`` characters, and nothing in it that acts on a terminal.

    >>> plain("two\\nlines", 40), plain("a long text", 8)
    ('two lines', 'a long …')
    """
    # More than is shown is never gone through: a stranger's text may be of any length.
    line = " ".join(text[: 4 * limit].split())
    line = "".join(c if c.isprintable() else "?" for c in line)
    return line if len(line) <= limit else f"{line[: limit - 2].rstrip()} …"
