"""All that is wrong with a recipe, told at once, in the order in which it was written."""

from __future__ import annotations

from typing import Any

from ..errors import InputError, nearest_choice
from .source import Key, Mark, dotted_key, older_reading, quote


class Problems:
    """Collects errors; the same one found in several variants is told once."""

    def __init__(self) -> None:
        self._lines: dict[tuple[Mark, str], None] = {}
        self._unknown: dict[tuple[Mark, str], set[str]] = {}

    def add(self, mark: Mark, path: Key, text: str) -> None:
        """Note that the value at ``path`` is wrong."""
        self._lines[mark, f"{dotted_key(path)}: {text}" if path else text] = None

    def add_unknown_key(self, mark: Mark, path: Key, choices: set[str]) -> None:
        """Note that no such key exists; variants that offer other choices add theirs."""
        self._unknown.setdefault((mark, dotted_key(path)), set()).update(choices)

    def raise_any(self) -> None:
        """Raise one InputError with a line for each problem, if there is any."""
        lines = self.lines()
        if lines:
            raise InputError("\n".join(lines))

    def lines(self) -> tuple[str, ...]:
        """A line for each problem."""
        lines = list(self._lines)
        for (mark, key), choices in self._unknown.items():
            hint = nearest_choice(key.rpartition(".")[2], choices)
            lines.append((mark, f"{key}: unknown key.{hint}"))
        return tuple(f"{mark}: {text}" for mark, text in sorted(lines))


_WHOLE, _NUMBER, _BOOL, _LIST, _MAPPING = (
    "a whole number",
    "a number",
    "true or false",
    "a list",
    "a mapping",
)
_EXPECTED = {
    "int_type": _WHOLE,
    "int_parsing": _WHOLE,
    "int_from_float": _WHOLE,
    "float_type": _NUMBER,
    "float_parsing": _NUMBER,
    "finite_number": "a finite number",
    "bool_type": _BOOL,
    "bool_parsing": _BOOL,
    "string_type": "text",
    "path_type": "a path",
    "list_type": _LIST,
    "tuple_type": _LIST,
    "set_type": _LIST,
    "dict_type": _MAPPING,
    "model_type": _MAPPING,
    "model_attributes_type": _MAPPING,
    "none_required": "nothing",
    "greater_than": "a number > {gt}",
    "greater_than_equal": "a number >= {ge}",
    "less_than": "a number < {lt}",
    "less_than_equal": "a number <= {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "literal_error": "{expected}",
    "enum": "{expected}",
}


def expectation(error: Any) -> str | None:
    """What pydantic asked for, in a recipe writer's words; None if only its message says."""
    pattern = _EXPECTED.get(error["type"])
    return pattern.format(**error.get("ctx", {})) if pattern else None


def message(errors: list[Any], given: Any) -> str:
    """One line for the errors of one value (a union reports each of its members)."""
    wanted = dict.fromkeys(text for text in map(expectation, errors) if text)
    if not wanted:
        text = str(errors[0]["msg"])
        for prefix in ("Value error, ", "Assertion failed, "):
            text = text.removeprefix(prefix)
        return text
    hint = ""
    for error in errors:
        if error["type"] in ("literal_error", "enum") and isinstance(given, str):
            choices = error["ctx"]["expected"].replace(" or ", ", ").split(", ")
            nearest = nearest_choice(given, [choice.strip("'") for choice in choices])
            hint = f".{nearest}" if "Did you mean" in nearest else ""
    boolean = any(error["type"].startswith("bool_") for error in errors)
    number = any(error["type"].startswith(("int_", "float_")) for error in errors)
    hint = hint or meant_hint(given, boolean=boolean, number=number)
    return f"expected {' or '.join(wanted)}, was given {quote(given)}{hint}"


def meant_hint(given: Any, *, boolean: bool, number: bool) -> str:
    """``"; write 90 if that is meant"`` for a text that YAML 1.1 reads as what is expected.

    >>> meant_hint("no", boolean=True, number=False)
    '; write false if that is meant'
    """
    older = older_reading(given) if isinstance(given, str) else None
    if older is None or not (boolean if isinstance(older, bool) else number):
        return ""
    return f"; write {quote(older)} if that is meant"
