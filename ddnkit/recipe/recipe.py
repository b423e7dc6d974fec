"""A validated recipe: its variants, its seeds, and the text that stands for all of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .pipeline import Pipeline
from .source import dump


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
        mapping: the recipe with its overrides and the defaults that all variants share; loading it
            gives the same variants and seeds.
        warnings: what is likely not meant, a line each, with file and line.
    """

    name: str
    path: Path
    description: str
    seeds: tuple[int, ...]
    variants: tuple[Variant, ...]
    mapping: dict[str, Any]
    warnings: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the jobs' ``metrics.csv``, of all variants."""
        columns = (column for v in self.variants for column in v.pipeline.all_columns)
        return tuple(dict.fromkeys(columns))

    def to_yaml(self) -> str:
        """`mapping` as YAML."""
        return dump(self.mapping)
