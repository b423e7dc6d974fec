"""The seeds of a recipe: a list, or a count N that stands for 0 .. N-1."""

from __future__ import annotations

from typing import Any

from .problems import Problems
from .source import Mark, shown

MAXIMUM_SEEDS = 10_000
# torch and numpy both take any seed below this
_LIMIT = 2**32


def read_seeds(given: Any, mark: Mark, problems: Problems) -> tuple[int, ...]:
    """The seeds that ``given`` stands for; what is wrong with it goes to ``problems``."""
    if _is_seed(given) and 0 < given <= MAXIMUM_SEEDS:
        return tuple(range(given))
    if isinstance(given, list) and given and all(map(_is_seed, given)):
        if len(set(given)) == len(given):
            return tuple(given)
        twice = next(seed for i, seed in enumerate(given) if seed in given[:i])
        problems.add(mark, ("seeds",), f"the seed {twice} is given twice")
    else:
        text = (
            f"expected a count from 1 to {MAXIMUM_SEEDS}, or a list of whole numbers from 0 to "
            f"{_LIMIT - 1} such as [0, 1, 2], was given {shown(given)}"
        )
        problems.add(mark, ("seeds",), text)
    return (0,)


def parse_seeds(text: str) -> Any:
    """``"3"``, ``"0,1,2"`` or ``"[0, 1, 2]"`` of the command line as a recipe would write it."""
    listed = text.strip()
    is_list = "," in listed
    if listed.startswith("[") and listed.endswith("]"):
        is_list, listed = True, listed[1:-1].strip()
    numbers = [part.strip() for part in listed.removesuffix(",").split(",")]
    if not all(part.isdecimal() and len(part) < 12 for part in numbers):
        return text
    return [int(part) for part in numbers] if is_list else int(listed)


def _is_seed(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LIMIT
