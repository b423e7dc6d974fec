"""YAML text to plain values, each with the place where it was written.

A recipe is read as a tree of nodes, never constructed by tag, so no text of a recipe can name a
Python object. Values are those of JSON; ``1e-3`` is a number, as its writer meant.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..errors import InputError

Key = tuple[str | int, ...]

#: An alias may repeat its anchor, and anchors nest: a small file can stand for a huge tree.
MAXIMUM_NODES = 20_000

_TAG = "tag:yaml.org,2002:"
_SCALARS = {_TAG + kind for kind in ("str", "int", "float", "bool", "null")}
_FLOAT = re.compile(
    r"""^(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
        |[0-9][0-9_]*[eE][-+]?[0-9]+
        |\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
        |\.(?:inf|Inf|INF))
        |\.(?:nan|NaN|NAN))$""",
    re.VERBOSE,
)


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


def _dialect(resolvers: dict[Any, list[Any]]) -> dict[Any, list[Any]]:
    """YAML 1.1's plain scalars without dates, and with floats that need neither dot nor sign."""
    left_out = (_TAG + "float", _TAG + "timestamp")
    kept = {
        first: [(tag, pattern) for tag, pattern in rules if tag not in left_out]
        for first, rules in resolvers.items()
    }
    for first in "-+0123456789.":
        kept.setdefault(first, []).insert(0, (_TAG + "float", _FLOAT))
    return kept


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _dialect(yaml.SafeLoader.yaml_implicit_resolvers)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _dialect(yaml.SafeDumper.yaml_implicit_resolvers)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def read(file: Path, label: str | None = None) -> Document:
    """The document in ``file``, a mapping.

    Raises:
        InputError: the file cannot be read, is empty, is not YAML or not a mapping, gives a key
            twice, or asks for a tag other than the plain ones; the text names file and line.
    """
    label = label or str(file)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{label}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{label}:{line}: not a text in UTF-8") from error
    document = parse(text, Origin(label))
    if document.value is None:
        raise InputError(
            f"{label}:1: the file is empty; expected a recipe, for example 'pipeline: ...'"
        )
    if not isinstance(document.value, dict):
        mark = document.mark(())
        raise InputError(
            f"{mark}: expected a mapping such as 'pipeline: ...', was given {shown(document.value)}"
        )
    return document


def parse(text: str, origin: Origin) -> Document:
    """The value of ``text`` and where each part of it stands.

    Raises:
        InputError: as `read`, but any value is taken.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        context = f" ({error.context})" if error.context else ""
        mark = origin.mark(error.problem_mark)
        raise InputError(f"{mark}: not valid YAML: {error.problem}{context}") from error
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        place = origin.label if origin.order else f"{origin.label}:{line}"
        raise InputError(
            f"{place}: not valid YAML: the character {chr(int(error.character))!r} is not allowed"
        ) from error
    except RecursionError as error:
        raise InputError(f"{origin.mark()}: not valid YAML: nested too deeply") from error
    walk = _Walk(loader, origin, {(): origin.mark(node.start_mark if node else None)})
    return Document(walk.value(node, ()) if node else None, walk.marks)


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


def shown(value: Any) -> str:
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
    return text if len(text) <= 60 else text[:57] + "..."


@dataclass
class _Walk:
    loader: _Loader
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
            try:
                return self.loader.construct_object(node)
            except (ValueError, KeyError, yaml.YAMLError) as error:
                kind = node.tag.removeprefix(_TAG)
                raise self.error(node, path, f"{node.value!r} is not a YAML {kind}") from error
        tag = node.tag.replace(_TAG, "!!")
        raise self.error(
            node,
            path,
            f"the tag '{tag}' is not allowed here; a recipe holds mappings, lists, text, numbers, "
            "true, false and null",
        )

    def mapping(self, node: yaml.MappingNode, path: Key) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag not in _SCALARS:
                text = "expected a plain word as key (no merge key '<<', list, mapping or tag)"
                raise self.error(key_node, path, text)
            key = str(key_node.value)
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
        key = f"{dotted(path)}: " if path else ""
        return InputError(f"{self.origin.mark(node.start_mark)}: {key}{text}")


def dotted(path: Key) -> str:
    """The path as the user would write it: ``head.delta``, ``seeds[1]``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")
