"""Overrides from the command line, ``-s head.delta=1e-3``, laid over a recipe's document."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, cast

from ..errors import InputError
from .source import Document, Key, Mark, Origin, cut, parse, quote
from .sweep import within


def apply(
    document: Document, overrides: Iterable[str], new_keys: Mapping[str, str] | None = None
) -> Document:
    """The document with each ``key=value`` set in turn; values are YAML, keys may be new.

    An override of a key ends the recipe's own sweep over it, in named options too, and so does an
    override that sweeps: ``sweep.head.name=[a, b]``. A former key in ``new_keys`` is read as the
    dotted key that it is now.

    Raises:
        InputError: an override is not ``key=value``, or its key runs through a plain value; the
            text repeats each such option as it was typed.
    """
    result = Document(copy.deepcopy(document.value), dict(document.marks))
    errors = []
    for number, text in enumerate(overrides, start=1):
        try:
            _set(result, text, Origin(f"-s {cut(text, 200)}", order=number), new_keys or {})
        except InputError as error:
            errors.append(str(error))
    if errors:
        raise InputError("\n".join(errors))
    return result


def _set(document: Document, text: str, origin: Origin, new_keys: Mapping[str, str]) -> None:
    key, equals, value_text = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise InputError(f"{origin.label}: expected KEY=VALUE, for example -s head.delta=1e-3")
    if parts[0] == "sweep" and len(parts) > 1:
        parts = ["sweep", ".".join(parts[1:])]
    value = parse(value_text, origin)
    if parts[-1] in new_keys and len(parts) == 1:
        parts = new_keys[parts[0]].split(".")
    elif parts[-1] in new_keys and len(parts) == 2 and isinstance(value.value, list):
        parts = [parts[0], new_keys[parts[1]]]
    _end_sweep(document, parts, value.value)
    try:
        lay_over(document, parts, value)
    except InputError as error:
        raise InputError(f"{origin.label}: {error}") from error


def lay_over(document: Document, parts: list[str], value: Document) -> None:
    """Put ``value``, with its marks, at the key path ``parts`` of ``document``.

    Raises:
        InputError: the path runs through a plain value.
    """
    path: Key = tuple(parts)
    parent = _parent(document, parts, value.mark(()))
    for old in [old for old in document.marks if old[: len(path)] == path]:
        del document.marks[old]
    parent[parts[-1]] = copy.deepcopy(value.value)
    document.marks.update({path + below: mark for below, mark in value.marks.items()})


def _parent(document: Document, parts: list[str], mark: Mark) -> dict[str, Any]:
    """The mapping that holds the last of ``parts``, made where there is none."""
    mapping = document.value
    for depth, part in enumerate(parts[:-1], start=1):
        if mapping.get(part) is None:
            mapping[part] = {}
            document.marks.setdefault(tuple(parts[:depth]), mark)
        elif isinstance(mapping[part], str) and depth == 1 and part != "pipeline":
            # `loss: cross_entropy` is short for `loss: {name: cross_entropy}`
            document.marks[part, "name"] = document.mark((part,))
            mapping[part] = {"name": mapping[part]}
        if not isinstance(mapping[part], dict):
            above = ".".join(parts[:depth])
            raise InputError(f"{above} is {quote(mapping[part])}, which has no keys")
        mapping = mapping[part]
    return cast("dict[str, Any]", mapping)


def _end_sweep(document: Document, parts: list[str], value: Any) -> None:
    """Take the keys that an override sets from all axes of the sweep but the one that it gives."""
    sweep = document.value.get("sweep")
    if not isinstance(sweep, dict):
        return
    given = _keys_set(parts, value)
    for axis in [axis for axis in sweep if ["sweep", axis] != parts]:
        if any(within(axis, key) for key in given):
            del sweep[axis]
        elif isinstance(sweep[axis], dict):
            left = {name: _without(given, option) for name, option in sweep[axis].items()}
            if left != sweep[axis] and not any(left.values()):
                del sweep[axis]
            else:
                sweep[axis] = left


def _keys_set(parts: list[str], value: Any) -> list[str]:
    """The dotted keys that an override sets: its own, or those of the axis that it gives."""
    if parts[0] != "sweep":
        return [".".join(parts)]
    if isinstance(value, dict):
        return [key for option in value.values() if isinstance(option, dict) for key in option]
    return parts[1:]


def _without(keys: list[str], option: Any) -> Any:
    if not isinstance(option, dict):
        return option
    return {k: v for k, v in option.items() if not any(within(k, key) for key in keys)}
