"""Keys that stood at the top of a recipe and are keys of a paper now: taken for one release."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from .. import registry
from ..errors import InputError, PluginError
from .overrides import lay_over
from .problems import Problems
from .schema import components, keys, value_at
from .source import Document, Key, Mark


@dataclass(frozen=True)
class FormerKeys:
    """The former keys that a recipe has.

    Attributes:
        new: each with the dotted key that it is now.
        papers: the name of the paper whose key it is.
    """

    new: dict[str, str] = field(default_factory=dict)
    papers: dict[str, str] = field(default_factory=dict)

    def paths(self, document: Document) -> list[Key]:
        """Where ``document`` has them."""
        return [path for path in _paths(document) if path[-1] in self.new]

    def move(self, document: Document) -> None:
        """Have what stands at them stand at the keys of today.

        Raises:
            InputError: something stands there already.
        """
        for path in self.paths(document):
            parent, old, mark = value_at(document.value, path[:-1]), path[-1], document.mark(path)
            new = self.new[str(old)]
            parts = new.split(".") if len(path) == 1 else [*map(str, path[:-1]), new]
            if tuple(parts) in document.marks:
                raise InputError(f"{mark}: {old}: the key is {new} now, which is given too")
            below = {
                key[len(path) :]: m for key, m in document.marks.items() if key[: len(path)] == path
            }
            value = Document(parent[old], below)
            for key in below:
                del document.marks[path + key]
            if len(path) == 1:
                del parent[old]
            else:  # in its place: the order of axes is that of the variants
                items = [(new if key == old else key, content) for key, content in parent.items()]
                parent.clear()
                parent.update(items)
            try:
                lay_over(document, parts, value)
            except InputError as error:
                raise InputError(f"{mark}: {old}: the key is {new} now, and {error}") from error

    def name_paper(self, document: Document, mark: Mark) -> None:
        """Give the section ``paper`` the name that the moved keys go without."""
        section = document.value.get("paper")
        if section is None or (isinstance(section, dict) and "name" not in section):
            name = next(iter(self.papers.values()))
            lay_over(document, ["paper", "name"], Document(name, {(): mark}))

    def note(self, documents: list[Document], problems: Problems) -> None:
        """Note each place that has a former key, with the key of today."""
        for document in documents:
            for path in self.paths(document):
                old = str(path[-1])
                text = f"write {self.new[old]}, a key of the paper {self.papers[old]}; "
                text += "the old key goes with the next release"
                problems.add(document.mark(path), path, text)


def find_former_keys(document: Document, reserved: set[str]) -> FormerKeys:
    """The keys of ``document`` that its pipeline does not have, and that a paper has taken over."""
    found = FormerKeys()
    name = document.value.get("pipeline")
    known: set[str] = set()
    with contextlib.suppress(PluginError):  # it is told where the recipe is validated
        if isinstance(name, str):
            pipeline = registry.get("pipelines", name)
            if "paper" not in components(pipeline):
                return found  # its key of that name is another thing
            known = keys(pipeline)
    single = {str(path[-1]) for path in _paths(document) if "." not in str(path[-1])}
    unknown = single - known - reserved
    for paper in registry.names("papers") if unknown else ():
        try:
            former = registry.get("papers", paper).former_keys
        except PluginError:  # it is told where a recipe names it
            continue
        for old in unknown & former.keys():
            found.new.setdefault(old, f"paper.{former[old]}")
            found.papers.setdefault(old, paper)
    return found


def _paths(document: Document) -> Iterator[Key]:
    """Of every key at the top, and of every key that the sweep sets."""
    yield from ((key,) for key in document.value)
    sweep = document.value.get("sweep")
    for axis, given in sweep.items() if isinstance(sweep, dict) else ():
        if isinstance(given, list):
            yield "sweep", axis
        for option, sets in given.items() if isinstance(given, dict) else ():
            yield from (
                ("sweep", axis, option, key) for key in (sets if isinstance(sets, dict) else ())
            )
