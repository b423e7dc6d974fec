"""The variants of a sweep: the cartesian product of its values, each with a name for a folder."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

from .problems import Problems
from .source import Document, dump, shown

Sweep = dict[str, list[Any]]
#: One value for each swept key, as its index in the key's list.
Choice = dict[str, int]

MAXIMUM_VARIANTS = 10_000
_NOT_SWEPT = ("pipeline", "seeds", "sweep", "description")


def read_sweep(document: Document, problems: Problems) -> Sweep:
    """The recipe's ``sweep``: dotted key to a list of values, none of them twice."""
    given = document.value.get("sweep")
    if given is None:
        return {}
    if not isinstance(given, dict):
        text = "expected a mapping such as {head.name: [standard, nearest_etf]}, "
        problems.add(document.mark(("sweep",)), ("sweep",), f"{text}was given {shown(given)}")
        return {}
    sweep: Sweep = {}
    for key, values in given.items():
        path = ("sweep", key)
        mark = document.mark(path)
        if not isinstance(values, list) or not values:
            problems.add(mark, path, f"expected a list of values, was given {shown(values)}")
        elif not all(key.split(".")):
            problems.add(mark, path, "expected a dotted key such as head.name")
        elif key.split(".")[0] in _NOT_SWEPT:
            text = f"'{key.split('.')[0]}' cannot be swept; expected a setting of the pipeline"
            problems.add(mark, path, text)
        else:
            for index, value in enumerate(values):
                if any(_same(value, other) for other in values[:index]):
                    problems.add(document.mark((*path, index)), path, f"{shown(value)} twice")
            sweep[key] = values
    if math.prod(map(len, sweep.values())) > MAXIMUM_VARIANTS:
        text = f"more than {MAXIMUM_VARIANTS} variants"
        problems.add(document.mark(("sweep",)), ("sweep",), text)
        return {}
    return sweep


def choices(sweep: Sweep) -> list[Choice]:
    """The cartesian product, the last key varying fastest; one empty choice without a sweep."""
    indices = itertools.product(*(range(len(values)) for values in sweep.values()))
    return [dict(zip(sweep, index, strict=True)) for index in indices]


def variant_names(sweep: Sweep) -> list[str]:
    """A name for each of `choices`: the value alone, or ``key=value`` pairs for several keys.

    >>> variant_names({"head.name": ["standard", "fixed_etf"]})
    ['standard', 'fixed_etf']
    >>> variant_names({"head.name": ["standard"], "train.epochs": [1, 2]})
    ['name=standard,epochs=1', 'name=standard,epochs=2']
    """
    labels = _short_keys(list(sweep))
    taken: set[str] = set()
    result = []
    for choice in choices(sweep):
        values = {key: _text(sweep[key][index]) for key, index in choice.items()}
        if len(values) == 1:
            name = next(iter(values.values()))
        else:
            name = ",".join(f"{labels[key]}={value}" for key, value in values.items())
        result.append(_unique(_safe(name) or "default", taken))
    return result


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


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


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "+".join(map(_text, value))
    if isinstance(value, dict):
        return "+".join(
            _text(part) if k == "name" else f"{k}={_text(part)}" for k, part in value.items()
        )
    return dump(value).splitlines()[0]


def _safe(name: str) -> str:
    """``name`` as a folder's name on any system; never hidden, never a way out of the folder."""
    return re.sub(r"[^\w.=,+-]+", "-", name).strip(".-")[:100]


def _unique(name: str, taken: set[str]) -> str:
    candidate = name
    for number in itertools.count(2):
        if candidate.casefold() not in taken:
            break
        candidate = f"{name}-{number}"
    taken.add(candidate.casefold())
    return candidate
