"""Load a recipe: file, overrides and seeds in, validated variants out, or all errors at once."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .. import registry
from ..errors import InputError, PluginError
from . import overrides as overriding
from .find import find
from .former_keys import find_former_keys
from .pipeline import Pipeline
from .problems import Problems
from .recipe import (
    Mapping,
    Recipe,
    Variant,
    resolve_sections,
    resolve_sweep,
    written_sections,
)
from .schema import ValidVariant, VariantSchema, components, keys
from .source import Document, Key, Mark, Origin, dump, parse, quote, read
from .sweep import Choice, Sweep, choices, read_axes, read_sweep, variant_names

RESERVED = {"pipeline", "description", "seeds", "sweep"}
MAXIMUM_SEEDS = 10_000
# torch and numpy both take any seed below this
_SEED_LIMIT = 2**32


def load(source: str | Path, overrides: Iterable[str] = (), *, seeds: str | None = None) -> Recipe:
    """The recipe in a file, or the shipped one of that name, with ``key=value`` overrides.

    ``seeds`` (``"3"`` or ``"0,1,2"``) takes the place of the recipe's own.

    Raises:
        InputError: the file, an override or ``seeds`` is wrong. The text has a line for each
            problem, which names file and line (or the option), the key, what was expected and what
            was given, or the nearest valid name.
    """
    file = find(source)
    written, overrides = read(file), list(overrides)
    document = overriding.apply(written, overrides)
    problems, doubts = Problems(), Problems()
    former = find_former_keys(document, RESERVED)
    if former.new:
        former.note([written, document], doubts)
        mark = document.mark(former.paths(document)[0])
        former.move(written)
        document = overriding.apply(written, overrides, former.new)
        former.move(document)
        former.name_paper(document, mark)
    if seeds is not None:
        if "seeds" in document.value:  # wrong ones are told all the same
            read_seeds(document.value["seeds"], document.mark(("seeds",)), problems)
        document.value["seeds"] = parse_seeds(seeds)
        document.marks[("seeds",)] = Mark(10**6, 0, 0, f"--seeds {seeds}")
    return _Loading(document, written, problems, doubts).recipe(file)


def load_seeds(file: Path) -> tuple[int, ...]:
    """The seeds of the recipe in a file, whatever else is in it.

    Raises:
        InputError: as `load`.
    """
    document, problems = read(file), Problems()
    seeds = _Loading(document, document, problems, Problems()).seeds()
    problems.raise_any()
    return seeds


class _Loading:
    def __init__(
        self, document: Document, written: Document, problems: Problems, doubts: Problems
    ) -> None:
        self.document = document
        self.written = written
        self.problems = problems
        self.doubts = doubts

    def recipe(self, file: Path) -> Recipe:
        description = self.description()
        seeds = self.seeds()
        pipeline = self.pipeline()
        sweep = read_sweep(self.document, self.problems, keys(pipeline[1]) if pipeline else ())
        self.overrides_below(sweep)
        resolved = self.variants(*pipeline, sweep) if pipeline else []
        self.problems.raise_any()
        names = variant_names(sweep)
        self.note_doubts(names, resolved)
        variants = tuple(
            Variant(name, one.settings, one.pipeline)
            for name, one in zip(names, resolved, strict=True)
        )

        @functools.cache
        def resolve() -> Mapping:
            return self.mapping(recipe, sweep)

        recipe = Recipe(file.stem, file, description, seeds, variants, resolve, self.doubts.lines())
        return recipe

    def mapping(self, recipe: Recipe, sweep: Sweep) -> Mapping:
        """What stands for ``recipe``: with shared defaults if that loads to the same, else as written."""
        settings = [variant.settings for variant in recipe.variants]
        swept = [{key for option in choice for key in option.sets} for choice in choices(sweep)]
        general: Mapping = {"description": recipe.description} if recipe.description else {}
        general["seeds"] = list(recipe.seeds)
        if sweep:
            general["sweep"] = resolve_sweep(self.document.value["sweep"], settings)
        mapping = {**resolve_sections(self.document.value, settings, swept), **general}
        if _stands_for(mapping, recipe):
            return mapping
        written = {key: value for key, value in self.document.value.items() if key not in RESERVED}
        written = written_sections(written, settings)
        return {"pipeline": mapping["pipeline"], **written, **general}

    def description(self) -> str:
        given = self.document.value.get("description", "")
        if not isinstance(given, str):
            path = ("description",)
            text = f"expected text, was given {quote(given)}"
            self.problems.add(self.document.mark(path), path, text)
            return ""
        return given.strip()

    def seeds(self) -> tuple[int, ...]:
        if "seeds" not in self.document.value:
            return (0,)
        mark = self.document.mark(("seeds",))
        return read_seeds(self.document.value["seeds"], mark, self.problems)

    def overrides_below(self, sweep: Sweep) -> None:
        """Note overrides of keys in a section that the sweep sets as a whole: it would undo them."""
        given = {path: mark for path, mark in self.document.marks.items() if mark.order}
        for axis, options in sweep.items():
            for key in dict.fromkeys(key for option in options for key in option.sets):
                swept = tuple(key.split("."))
                whose = "each value" if axis == key else "an option"
                for path, mark in given.items():
                    if len(path) > len(swept) and path[: len(swept)] == swept:
                        text = f"{whose} of the sweep over '{axis}' replaces all of {key}; give "
                        self.problems.add(mark, path, f"{text}{key}=... or sweep.{axis}=...")

    def pipeline(self) -> tuple[str, type[Pipeline]] | None:
        path = ("pipeline",)
        mark = self.document.mark(path)
        name = self.document.value.get("pipeline")
        if not isinstance(name, str):
            what = f"was given {quote(name)}" if "pipeline" in self.document.value else "missing"
            choices = ", ".join(registry.names("pipelines"))
            self.problems.add(mark, path, f"{what}; expected one of: {choices}")
            return None
        try:
            return name, registry.get("pipelines", name)
        except PluginError as error:
            self.problems.add(mark, path, str(error))
            return None

    def variants(self, name: str, pipeline: type[Pipeline], sweep: Sweep) -> list[ValidVariant]:
        # Without the sweep: thousands of variants would each have a copy of it.
        sections = {key: value for key, value in self.document.value.items() if key != "sweep"}
        marks = {path: mark for path, mark in self.document.marks.items() if path[:1] != ("sweep",)}
        common = Document(sections, marks)
        documents = [self.variant(common, sweep, choice) for choice in choices(sweep)]
        current = _component_names(pipeline, documents)
        written = _component_names(pipeline, [self.written, *_option_documents(self.written)])
        schemas = [
            VariantSchema(pipeline, name, document, current, written, self.problems)
            for document in documents
        ]
        resolved = [schema.validate(RESERVED) for schema in schemas]
        for path, component in (item for schema in schemas for item in schema.foreign.items()):
            text = f"left out: {component} has no such key"
            self.doubts.add(self.document.mark(path), path, text)
        return [one for one in resolved if one]

    def note_doubts(self, names: list[str], resolved: list[ValidVariant]) -> None:
        """Note what is valid and likely not meant, and jobs that a sweep has twice."""
        found: dict[tuple[Mark, Key, str, bool], list[str]] = {}
        for name, variant in zip(names, resolved, strict=True):
            for doubt in variant.doubts():
                path: Key = tuple(doubt.key.split("."))
                mark = variant.marks.get(path)
                if mark is not None:  # given, no default
                    found.setdefault((mark, path, doubt.text, doubt.idle), []).append(name)
        for (mark, path, text, idle), having in found.items():
            given = [one for one in resolved if one.marks.get(path) == mark and one.has(path)]
            if len(having) == len(given):
                self.doubts.add(mark, path, text)
            elif not idle:
                self.doubts.add(mark, path, f"{text} (in {_first_names(having)})")
        same: dict[str, list[str]] = {}
        for name, variant in zip(names, resolved, strict=True):
            same.setdefault(repr(variant.settings), []).append(name)
        for twice in (group for group in same.values() if len(group) > 1):
            text = (
                f"{len(twice)} variants are the same job, all settings equal: {_first_names(twice)}"
            )
            self.doubts.add(self.document.mark(("sweep",)), ("sweep",), text)

    def variant(self, common: Document, sweep: Sweep, choice: Choice) -> Document:
        document = Document(copy.deepcopy(common.value), dict(common.marks))
        for axis, option in zip(sweep, choice, strict=True):
            for key, value in option.sets.items():
                try:
                    overriding.lay_over(document, key.split("."), value)
                except InputError as error:
                    self.problems.add(value.mark(()), ("sweep", axis), str(error))
        return document


def _stands_for(mapping: Mapping, recipe: Recipe) -> bool:
    """Whether ``mapping`` loads to the same; a pipeline may tell what was given from a default."""
    try:
        document = parse(dump(mapping), Origin(str(recipe.path)))
        again = _Loading(document, document, Problems(), Problems()).recipe(recipe.path)
    except InputError:
        return False
    return again.seeds == recipe.seeds and [(v.name, repr(v.settings)) for v in again.variants] == [
        (v.name, repr(v.settings)) for v in recipe.variants
    ]


def _first_names(variants: list[str]) -> str:
    more = f" and {len(variants) - 3} more" if len(variants) > 3 else ""
    return f"{', '.join(map(repr, variants[:3]))}{more}"


def _option_documents(document: Document) -> list[Document]:
    """A document for each option of each axis alone: enough to see the names in them."""
    found = []
    for option in itertools.chain(*read_axes(document, Problems()).values()):
        one = Document({}, {})
        for key, value in option.sets.items():
            overriding.lay_over(one, key.split("."), value)
        found.append(one)
    return found


def _component_names(pipeline: type[Pipeline], documents: list[Document]) -> dict[str, set[str]]:
    """The names given to each component section in any of ``documents``, or its default."""
    names: dict[str, set[str]] = {}
    for section, component in components(pipeline).items():
        for document in documents:
            value = document.value.get(section)
            name = value.get("name", component.default) if isinstance(value, dict) else value
            if isinstance(name, str):
                names.setdefault(section, set()).add(name)
    return names


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
            f"{_SEED_LIMIT - 1} such as [0, 1, 2], was given {quote(given)}"
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
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _SEED_LIMIT
