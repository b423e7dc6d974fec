"""A recipe's sweep: its axes read from the text, and the variants that are their product.

An axis is a dotted key with a list of its values, ``head.name: [a, b]``, or a free name with named
options, each of which sets any keys, ``method: {mine: {head.name: a, loss.name: b}}``. Each variant
has a name that can be a folder's.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from .problems import Problems
from .source import Document, Key, dump, quote

MAXIMUM_VARIANTS = 10_000
MAXIMUM_AXES = 100
_NOT_SWEPT = ("pipeline", "seeds", "sweep", "description")
_NAME = re.compile(r"[\w-]+")
_OPTIONS = "{etf: {head.name: fixed_etf}}"


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


def read_sweep(document: Document, problems: Problems, taken: Collection[str]) -> Sweep:
    """The recipe's ``sweep``; ``taken`` has the pipeline's keys: no names for axes of options."""
    sweep = read_axes(document, problems, taken)
    _note_shared_keys(sweep, problems)
    if math.prod(map(len, sweep.values())) > MAXIMUM_VARIANTS:
        text = f"more than {MAXIMUM_VARIANTS} variants"
        problems.add(document.mark(("sweep",)), ("sweep",), text)
        return {}
    return sweep


def read_axes(document: Document, problems: Problems, taken: Collection[str] = ()) -> Sweep:
    """Each axis of the recipe's ``sweep`` by itself, whether or not they go together."""
    given = document.value.get("sweep")
    if given is None:
        return {}
    if not isinstance(given, dict):
        text = "expected a mapping such as {head.name: [standard, nearest_etf]}, "
        problems.add(document.mark(("sweep",)), ("sweep",), f"{text}was given {quote(given)}")
        return {}
    if len(given) > MAXIMUM_AXES:
        text = f"more than {MAXIMUM_AXES} axes"
        problems.add(document.mark(("sweep",)), ("sweep",), text)
        return {}
    reader = _Reader(document, problems, {*_NOT_SWEPT, *taken})
    axes = {axis: reader.options(axis, value) for axis, value in given.items()}
    return {axis: options for axis, options in axes.items() if options}


@dataclass(frozen=True)
class _Reader:
    document: Document
    problems: Problems
    taken: Collection[str]

    def options(self, axis: str, given: Any) -> list[Option]:
        """The options of an axis, without those that are wrong."""
        if isinstance(given, list) and given:
            return self.values(axis, given)
        free = axis not in self.taken and _NAME.fullmatch(axis)
        if isinstance(given, dict) and given and free:
            found = (
                self.named_option(("sweep", axis, name), name, sets) for name, sets in given.items()
            )
            return [option for option in found if option]
        expected, hint = "a list of values", ""
        if free:
            expected += f" or named options such as {_OPTIONS}"
        elif isinstance(given, dict):
            hint = "; named options go under a name of their own (letters, digits, _ or -), "
            hint += f"such as method: {_OPTIONS}"
        self.note(("sweep", axis), f"expected {expected}, was given {quote(given)}{hint}")
        return []

    def values(self, key: str, values: list[Any]) -> list[Option]:
        """An option for each of the values of ``key``, none of them twice."""
        path: Key = ("sweep", key)
        if not self.can_be_swept(path, key):
            return []
        if len(values) > MAXIMUM_VARIANTS:
            self.note(path, f"more than {MAXIMUM_VARIANTS} variants")
            return []
        seen: set[str] = set()
        for index, value in enumerate(values):
            if repr(value) in seen:
                mark = self.document.mark((*path, index))
                self.problems.add(mark, path, f"{quote(value)} twice")
            seen.add(repr(value))
        return [
            Option(_text(value), {key: _below(self.document, (*path, index), value)})
            for index, value in enumerate(values)
        ]

    def named_option(self, path: Key, name: str, given: Any) -> Option | None:
        """The option ``name``, without those of its keys that are wrong."""
        if not isinstance(given, dict):
            expected = "expected a mapping such as {head.name: fixed_etf}, or {} to set nothing"
            self.note(path, f"{expected}, was given {quote(given)}")
            return None
        sets: dict[str, Document] = {}
        for key, value in given.items():
            other = _overlapping(key, sets)
            if other:
                self.note((*path, key), f"the option sets {other} too; expected one of the two")
            elif self.can_be_swept((*path, key), key):
                sets[key] = _below(self.document, (*path, key), value)
        return Option(name, sets)

    def can_be_swept(self, path: Key, key: str) -> bool:
        section = key.split(".")[0]
        if not all(key.split(".")):
            self.note(path, "expected a dotted key such as head.name")
        elif section in _NOT_SWEPT:
            self.note(path, f"'{section}' cannot be swept; expected a setting of the pipeline")
        else:
            return True
        return False

    def note(self, path: Key, text: str) -> None:
        self.problems.add(self.document.mark(path), path, text)


def _note_shared_keys(sweep: Sweep, problems: Problems) -> None:
    """Note each two axes that set one key, or a key and one below it: one would undo the other."""
    for first, second in itertools.combinations(sweep, 2):
        others = dict.fromkeys(key for option in sweep[first] for key in option.sets)
        for key, value in (item for option in sweep[second] for item in option.sets.items()):
            other = _overlapping(key, others)
            if other:
                text = f"sets {key}, and the axis '{first}' sets {other}; expected one of the two"
                problems.add(value.mark(()), ("sweep", second), text)
                break


def _overlapping(key: str, others: Collection[str]) -> str | None:
    """The first of ``others`` that is ``key``, or above or below it."""
    return next((other for other in others if within(key, other) or within(other, key)), None)


def _below(document: Document, path: Key, value: Any) -> Document:
    """The ``value`` of ``document`` at ``path``, as a document of its own."""
    if not isinstance(value, dict | list):  # it has one mark: no need to go through thousands
        return Document(value, {(): document.mark(path)})
    depth = len(path)
    marks = {key[depth:]: mark for key, mark in document.marks.items() if key[:depth] == path}
    return Document(value, marks)


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
