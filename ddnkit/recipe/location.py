"""From a place in pydantic's terms to the keys of a recipe, and the keys that would be valid there."""

from __future__ import annotations

import typing
from typing import Any

import pydantic

from ..importing import is_subclass
from .source import Key


def keys(model: type[pydantic.BaseModel]) -> set[str]:
    """The keys that a section of type ``model`` takes."""
    return {info.alias or name for name, info in model.model_fields.items()}


def error_path(error: Any, data: Any) -> Key:
    """The keys of a pydantic location; the names of union members in it are no keys."""
    path: list[str | int] = []
    location = error["loc"]
    for number, part in enumerate(location):
        items = range(len(data)) if isinstance(data, list) else data
        if isinstance(items, dict | range) and part in items:
            data = data[part]
        elif not (error["type"] == "missing" and number == len(location) - 1):
            continue
        path.append(part)
    return tuple(path)


def value_at(data: Any, path: Key) -> Any:
    """The value at ``path``."""
    for part in path:
        data = data[part]
    return data


def keys_at(model: type[pydantic.BaseModel], path: Key) -> set[str]:
    """The keys of the section at ``path``; those of all models of a union."""
    models: list[Any] = [model]
    for part in path:
        models = [
            member
            for model in models
            for name, info in model.model_fields.items()
            if part in (info.alias, name)
            for member in _models(info.annotation)
        ]
    return set().union(*(keys(model) for model in models))


def _models(annotation: Any) -> list[type[pydantic.BaseModel]]:
    if is_subclass(annotation, pydantic.BaseModel):
        return [annotation]
    return [model for member in typing.get_args(annotation) for model in _models(member)]
