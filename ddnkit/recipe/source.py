"""YAML text to plain values, each with the place where it was written.

A recipe is read as a tree of nodes, never constructed by tag, so no text of a recipe can name a
Python object. Values are those of JSON. Plain words are read as YAML 1.2's core schema reads them:
``1e-3`` is a number, ``no`` and ``1:30`` are text.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..errors import InputError

Key = tuple[str | int, ...]

#: An alias may repeat its anchor, and anchors nest: a small file can stand for a huge tree.
MAXIMUM_NODES = 20_000
#: Values within values. Of a recipe few are, and those who go through them do so recursively.
MAXIMUM_DEPTH = 100
#: Some 50 for each of the values; a longer text would be read for minutes before they are counted.
MAXIMUM_BYTES = 1_000_000

_TAG = "tag:yaml.org,2002:"
_NULL, _BOOL, _INT, _FLOAT, _STR = (_TAG + kind for kind in ("null", "bool", "int", "float", "str"))
_DIGITS = "[0-9]+(?:_[0-9]+)*"
#: The core schema of YAML 1.2 (section 10.3.2): what a plain word is, and what it begins with. Ours
#: is ``50_000``, which 1.1 and Python read alike; 1.2 has it as text.
_CORE = {
    _NULL: (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    _BOOL: (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    _INT: (rf"[-+]?{_DIGITS}|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    _FLOAT: (
        rf"[-+]?(?:\.[0-9]+|{_DIGITS}(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}
_SCALARS = {*_CORE, _STR}
_TOO_LARGE = f"longer than {MAXIMUM_BYTES:,} bytes, too much for a recipe"
_BYTE_ORDER_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


@dataclass(frozen=True, order=True)
class Mark:
    """A place in what the user wrote: a line of a file, or an option; sorts in reading order."""

    order: int
    line: int
    column: int
    label: str

    def __str__(self) -> str:
        return self.label


@dataclass(frozen=True)
class Origin:
    """What a text was read from: a file (its lines are told apart) or an option (they are not)."""

    label: str
    order: int = 0

    def mark(self, place: Any = None) -> Mark:
        """The mark of a YAML position; without one, of the text as a whole."""
        if self.order:
            return Mark(self.order, 0, 0, self.label)
        if place is None:
            return Mark(0, 1, 0, f"{self.label}:1")
        return Mark(0, place.line + 1, place.column, f"{self.label}:{place.line + 1}")


@dataclass(frozen=True)
class Document:
    """A value and the mark of each key path in it; the path ``()`` is the whole."""

    value: Any
    marks: dict[Key, Mark]

    def mark(self, path: Key) -> Mark:
        """The mark of ``path``, or of the nearest key above it that was written."""
        while path not in self.marks:
            path = path[:-1]
        return self.marks[path]


def _resolvers(*others: dict[Any, list[Any]]) -> dict[Any, list[Any]]:
    """The rules of `_CORE` by first letter, then those of ``others``; the first that fits counts."""
    rules: dict[Any, list[Any]] = {}
    for tag, (pattern, letters) in _CORE.items():
        for letter in letters:
            rules.setdefault(letter, []).append((tag, re.compile(rf"(?:{pattern})\Z")))
    for other in others:
        for letter, more in other.items():
            rules.setdefault(letter, []).extend(more)
    return rules


class _LimitError(yaml.MarkedYAMLError):
    """The text is YAML, and too much of it for a recipe."""


class _Loader(yaml.SafeLoader):
    """Composes nodes and stops at the first that is one too many, or too deep."""

    yaml_implicit_resolvers = _resolvers()
    nodes = depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.nodes += 1
        self.depth += 1
        place = self.peek_event().start_mark
        if self.nodes > MAXIMUM_NODES:
            raise _LimitError(None, None, f"more than {MAXIMUM_NODES} values", place)
        if self.depth > MAXIMUM_DEPTH:
            raise _LimitError(None, None, "nested too deeply", place)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


class _Dumper(yaml.SafeDumper):
    """Puts text in quotes wherever a reader of YAML 1.2 or 1.1 would take it for something else."""

    yaml_implicit_resolvers = _resolvers(yaml.SafeDumper.yaml_implicit_resolvers)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def read(file: Path, label: str | None = None) -> Document:
    """The document in ``file``, a mapping.

    Raises:
        InputError: the file cannot be read, is empty, is not YAML or not a mapping, gives a key
            twice, or asks for a tag other than the plain ones; the text names file and line.
    """
    label = label or str(file)
    content = _content(file, label)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        for order, encoding in _BYTE_ORDER_MARKS.items():
            if content.startswith(order):
                raise InputError(
                    f"{label}:1: the file is in {encoding}; save it in UTF-8"
                ) from error
        line = content[: error.start].count(b"\n") + 1
        raise InputError(f"{label}:{line}: not a text in UTF-8") from error
    document = parse(text, Origin(label))
    if document.value is None:
        raise InputError(
            f"{label}:1: the file is empty; expected a recipe, for example 'pipeline: ...'"
        )
    if not isinstance(document.value, dict):
        mark = document.mark(())
        raise InputError(
            f"{mark}: expected a mapping such as 'pipeline: ...', was given {quote(document.value)}"
        )
    return document


def parse(text: str, origin: Origin) -> Document:
    """The value of ``text`` and where each part of it stands.

    Raises:
        InputError: as `read`, but any value is taken.
    """
    if len(text) > MAXIMUM_BYTES:
        raise InputError(f"{origin.mark()}: {_TOO_LARGE}")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = origin.mark(error.problem_mark)
        what = "" if isinstance(error, _LimitError) else "not valid YAML: "
        context = f" ({error.context})" if error.context else ""
        problem = cut(f"{error.problem}{context}", 200)
        raise InputError(f"{mark}: {what}{problem}") from error
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        place = origin.label if origin.order else f"{origin.label}:{line}"
        raise InputError(
            f"{place}: not valid YAML: the character {chr(int(error.character))!r} is not allowed"
        ) from error
    walk = _Walk(origin, {(): origin.mark(node.start_mark if node else None)})
    return Document(walk.value(node, ()) if node else None, walk.marks)


def _content(file: Path, label: str) -> bytes:
    """The bytes of a regular file of the size of a recipe; any other is neither read nor waited for."""
    try:
        # Opening a pipe would wait for its other end.
        opened = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(opened, "rb") as stream:
            if not stat.S_ISREG(os.fstat(opened).st_mode):
                raise InputError(f"{label}: cannot be read: it is not a regular file")
            content = stream.read(MAXIMUM_BYTES + 1)
    except OSError as error:
        raise InputError(f"{label}: cannot be read: {error.strerror}") from error
    if len(content) > MAXIMUM_BYTES:
        raise InputError(f"{label}:1: {_TOO_LARGE}")
    return content


def older_reading(text: str) -> bool | int | float | None:
    """What YAML 1.1 makes of the plain word ``text`` where 1.2 has it as text; None if that too.

    >>> older_reading("no"), older_reading("1:30"), older_reading("0b11"), older_reading("none")
    (False, 90, 3, None)
    """
    rules = yaml.SafeLoader.yaml_implicit_resolvers.get(text[:1], ())
    known = any(tag in (_BOOL, _INT, _FLOAT) and rule.match(text) for tag, rule in rules)
    if not known or len(text) > 40:
        return None
    try:
        value: bool | int | float = yaml.safe_load(text)
    except ValueError:
        return None
    return value


def dump(value: Any) -> str:
    """``value`` as YAML that `parse` reads back to the same."""
    return str(
        yaml.dump(
            value,
            Dumper=_Dumper,
            sort_keys=False,
            default_flow_style=None,
            allow_unicode=True,
            width=100,
        )
    )


def quote(value: Any) -> str:
    """``value`` as its writer would recognise it, in a few words."""
    if value is None:
        return "nothing"
    if isinstance(value, str):
        text = repr(value)
    elif isinstance(value, dict | list):
        text = dump(value).strip().replace("\n", " ")
        text = text if text[:1] in "{[" else f"{{{text}}}"
    else:
        text = dump(value).splitlines()[0]
    return cut(text)


def cut(text: str, length: int = 60) -> str:
    """``text``, or as much of it as a message can hold."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


@dataclass
class _Walk:
    origin: Origin
    marks: dict[Key, Mark]
    nodes: int = 0
    open_nodes: tuple[int, ...] = ()

    def value(self, node: yaml.Node, path: Key) -> Any:
        self.nodes += 1
        if self.nodes > MAXIMUM_NODES:
            raise self.error(node, path, f"more than {MAXIMUM_NODES} values; too many aliases?")
        if id(node) in self.open_nodes:
            raise self.error(node, path, "an alias to what contains it")
        self.open_nodes += (id(node),)
        try:
            return self.plain_value(node, path)
        finally:
            self.open_nodes = self.open_nodes[:-1]

    def plain_value(self, node: yaml.Node, path: Key) -> Any:
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self.child(item, item, (*path, i)) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS:
            return self.scalar(node, path)
        tag = cut(node.tag.replace(_TAG, "!!"))
        raise self.error(
            node,
            path,
            f"the tag '{tag}' is not allowed here; a recipe holds mappings, lists, text, numbers, "
            "true, false and null",
        )

    def scalar(self, node: yaml.ScalarNode, path: Key) -> Any:
        text = str(node.value)
        if node.tag == _STR:
            return self.text(node, path)
        kind = node.tag.removeprefix(_TAG)
        if not re.fullmatch(_CORE[node.tag][0], text):
            raise self.error(node, path, f"{quote(text)} is not a YAML {kind}")
        if node.tag == _NULL:
            return None
        if node.tag == _BOOL:
            return text.lower() == "true"
        if node.tag == _FLOAT:
            return float(re.sub(r"\.(?=[in])", "", text.lower()))
        octal = re.fullmatch(r"[-+]?0[0-7_]+", text)
        try:
            value = int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
            str(value)
        except ValueError as error:  # Python takes and shows no more than some thousand digits
            raise self.error(node, path, f"{quote(text)} has too many digits") from error
        if octal and value != int(text, 8):
            wording = f"{text} is {int(text, 8)} in YAML 1.1 and {value} in YAML 1.2"
            hint = f"write the one that is meant, or '{text}' in quotes for text"
            raise self.error(node, path, f"{wording}; {hint}")
        return value

    def text(self, node: yaml.ScalarNode, path: Key) -> str:
        text = str(node.value)
        half = re.search("[\ud800-\udfff]", text)  # an escape can name one; no file can hold it
        if half:
            raise self.error(
                node, path, f"'\\u{ord(half[0]):x}' is half of a character, which no text can hold"
            )
        return text

    def mapping(self, node: yaml.MappingNode, path: Key) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag not in _SCALARS:
                text = "expected a plain word as key (no list, mapping or tag)"
                raise self.error(key_node, path, text)
            if key_node.value == "<<" and key_node.style is None:
                text = "YAML 1.2 has no merge key '<<'; write the keys out"
                raise self.error(key_node, path, text)
            key = self.text(key_node, path)
            below: Key = (*path, key)
            if key in values:
                where = "" if self.origin.order else f" (first in line {self.marks[below].line})"
                raise self.error(key_node, below, f"the key is given twice{where}")
            values[key] = self.child(key_node, value_node, below)
        return values

    def child(self, place: yaml.Node, node: yaml.Node, path: Key) -> Any:
        self.marks[path] = self.origin.mark(place.start_mark)
        return self.value(node, path)

    def error(self, node: yaml.Node, path: Key, text: str) -> InputError:
        key = f"{dotted_key(path)}: " if path else ""
        return InputError(f"{self.origin.mark(node.start_mark)}: {key}{text}")


def dotted_key(path: Key) -> str:
    """The path as the user would write it: ``head.delta``, ``seeds[1]``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{cut(part)}" for part in path)
    return text.removeprefix(".")
