"""The variants of a sweep: the cartesian product of its axes, each with a name for a folder."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field

from .source import Document


@dataclass(frozen=True)
class Option:
    """One value of an axis.

    Attributes:
        name: what stands for it in the name of a variant.
        sets: each dotted key that it sets, with the value.
    """

    name: str
    sets: dict[str, Document] = field(default_factory=dict)


#: The options of each axis, by the axis's key or name.
Sweep = dict[str, list[Option]]
#: An option of each axis.
Choice = tuple[Option, ...]


def choices(sweep: Sweep) -> list[Choice]:
    """The cartesian product, the last axis varying fastest; one empty choice without a sweep."""
    return list(itertools.product(*sweep.values()))


def variant_names(sweep: Sweep) -> list[str]:
    """A name for each of `choices`: the option's alone, or ``axis=option`` pairs for several axes.

    >>> heads = [Option("standard"), Option("fixed_etf")]
    >>> variant_names({"head.name": heads})
    ['standard', 'fixed_etf']
    >>> variant_names({"head.name": heads, "train.epochs": [Option("5")]})
    ['name=standard,epochs=5', 'name=fixed_etf,epochs=5']
    """
    labels = _short_keys(list(sweep))
    taken: set[str] = set()
    result = []
    for choice in choices(sweep):
        names = [option.name for option in choice]
        if len(names) != 1:
            names = [f"{labels[axis]}={name}" for axis, name in zip(sweep, names, strict=True)]
        result.append(_unique(_safe(",".join(names)) or "default", taken))
    return result


def within(key: str, above: str) -> bool:
    """Whether the dotted ``key`` is ``above`` or a key below it.

    >>> within("head.name", "head"), within("header", "head")
    (True, False)
    """
    return f"{key}.".startswith(f"{above}.")


def _short_keys(keys: list[str]) -> dict[str, str]:
    """Each key's shortest trailing part that no other swept key ends in."""
    short = {}
    for key in keys:
        parts = key.split(".")
        for length in range(1, len(parts) + 1):
            short[key] = ".".join(parts[-length:])
            others = (f".{other}" for other in keys if other != key)
            if not any(other.endswith(f".{short[key]}") for other in others):
                break
    return short


def _safe(name: str) -> str:
    """``name`` as a folder's name on any system; never hidden, never a way out of the folder."""
    safe = re.sub(r"[^\w.=,+-]+", "-", name).strip(".-")
    # A name may have so many bytes, and a letter four of them.
    return safe.encode()[:100].decode(errors="ignore")


def _unique(name: str, taken: set[str]) -> str:
    candidate = name
    for number in itertools.count(2):
        if candidate.casefold() not in taken:
            break
        candidate = f"{name}-{number}"
    taken.add(candidate.casefold())
    return candidate
