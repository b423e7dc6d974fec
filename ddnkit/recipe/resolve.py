"""The mapping that stands for a recipe with its overrides: what is written to ``recipe.yaml``."""

from __future__ import annotations

from typing import Any

Mapping = dict[str, Any]


def resolved_sections(written: Mapping, variants: list[Mapping], swept: list[set[str]]) -> Mapping:
    """The pipeline's sections with every setting that all variants share, defaults included.

    ``swept`` has the keys that the sweep sets, for each variant; what they are is left to the
    sweep, and the sections hold what the other variants have. Where these differ (each head's own
    default of one key), only what was written is kept.
    """
    return _merge(written, list(zip(variants, swept, strict=True)), "")


def resolved_sweep(written: Mapping, variants: list[Mapping]) -> Mapping:
    """The sweep as it was written, without the keys of named options that no variant uses.

    Such a key was of a component that an override has replaced.
    """
    return {
        axis: {name: _used(option, variants) for name, option in given.items()}
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


def _used(option: Mapping, variants: list[Mapping]) -> Mapping:
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
