"""A validated recipe: its variants, its seeds, and the mapping that stands for all of it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError, nearest_choice
from .pipeline import Pipeline
from .source import dump

Mapping = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """One choice of the swept values.

    Attributes:
        name: a folder's name, unique in the recipe.
        settings: every setting as a plain value, defaults included, with the components' names.
        pipeline: the same, validated, with the components as instances of their classes.
    """

    name: str
    settings: dict[str, Any]
    pipeline: Pipeline

    def to_yaml(self) -> str:
        """The settings as a recipe of this one variant."""
        return dump(self.settings)


@dataclass(frozen=True)
class Recipe:
    """What a recipe file and the options over it ask for.

    Attributes:
        name: the file's name without its ending.
        resolve: makes all of `mapping` but the seeds. Whether loading it gives the same variants is
            seen by another validation, which only those who write the recipe need.
        warnings: what is likely not meant, a line each, with file and line.
    """

    name: str
    path: Path
    description: str
    seeds: tuple[int, ...]
    variants: tuple[Variant, ...]
    resolve: Callable[[], Mapping] = field(repr=False, compare=False)
    warnings: tuple[str, ...] = ()

    @property
    def mapping(self) -> Mapping:
        """The recipe with its overrides and the defaults that all variants share.

        Loading it gives the same variants and seeds.
        """
        mapping = self.resolve()
        return {key: list(self.seeds) if key == "seeds" else mapping[key] for key in mapping}

    def choose(self, only: Collection[str]) -> list[Variant]:
        """The variants whose names are in ``only``, in the recipe's order; all of them where it is empty.

        Raises:
            InputError: there is no variant of such a name.
        """
        names = [variant.name for variant in self.variants]
        for name in only:
            if name not in names:
                hint = nearest_choice(name, names)
                raise InputError(f"--only {name}: the recipe has no such variant.{hint}")
        return [variant for variant in self.variants if not only or variant.name in only]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the jobs' ``metrics.csv``, of all variants."""
        columns = (column for v in self.variants for column in v.pipeline.all_columns)
        return tuple(dict.fromkeys(columns))

    def to_yaml(self) -> str:
        """`mapping` as YAML."""
        return dump(self.mapping)


def resolve_sections(written: Mapping, variants: list[Mapping], swept: list[set[str]]) -> Mapping:
    """The pipeline's sections with every setting that all variants share, defaults included.

    ``swept`` has the keys that the sweep sets, for each variant; what they are is left to the
    sweep, and the sections hold what the other variants have. Where these differ (each head's own
    default of one key), only what was written is kept.
    """
    return _merge(written, list(zip(variants, swept, strict=True)), "")


def resolve_sweep(written: Mapping, variants: list[Mapping]) -> Mapping:
    """The sweep as it was written, without the keys of named options that no variant uses.

    Such a key was of a component that an override has replaced.
    """
    return {
        axis: {name: _keep_used(option, variants) for name, option in given.items()}
        if isinstance(given, dict)
        else given
        for axis, given in written.items()
    }


def written_sections(written: Mapping, variants: list[Mapping]) -> Mapping:
    """The sections as they were written, without the keys that no variant uses."""
    return {
        section: {key: value for key, value in content.items() if _is_used(section, key, variants)}
        if isinstance(content, dict)
        else content
        for section, content in written.items()
    }


def _keep_used(option: Mapping, variants: list[Mapping]) -> Mapping:
    used = {}
    for key, value in option.items():
        section, *below = key.split(".")
        if not below or _is_used(section, below[0], variants):
            used[key] = value
    return used


def _is_used(section: str, key: str, variants: list[Mapping]) -> bool:
    return any(key in (variant[section] or ()) for variant in variants)


def _merge(written: Mapping, variants: list[tuple[Mapping, set[str]]], prefix: str) -> Mapping:
    merged: Mapping = {}
    for key in dict.fromkeys(key for variant, _ in variants for key in variant):
        dotted = f"{prefix}{key}"
        having = [
            (variant[key], swept)
            for variant, swept in variants
            if key in variant and dotted not in swept
        ]
        values = [value for value, _ in having]
        if not values:
            continue
        if all(repr(value) == repr(values[0]) for value in values):
            merged[key] = values[0]
        elif all(isinstance(value, dict) for value in values):
            below = written.get(key)
            merged[key] = _merge(below if isinstance(below, dict) else {}, having, f"{dotted}.")
        elif key in written:
            merged[key] = written[key]
    return merged
