"""The mapping that stands for a recipe with its overrides: what is written to ``recipe.yaml``."""

from __future__ import annotations

from typing import Any

Mapping = dict[str, Any]


def resolved_sections(written: Mapping, variants: list[Mapping], swept: set[str]) -> Mapping:
    """The pipeline's sections with every setting that all variants share, defaults included.

    A swept key is left to the sweep. Where variants differ otherwise (each head's own default of
    one key), only what was written is kept.
    """
    return _merge(written, variants, swept, "")


def written_sections(written: Mapping, variants: list[Mapping]) -> Mapping:
    """The sections as they were written, without the keys that no variant uses."""
    return {
        section: {
            key: value
            for key, value in content.items()
            if any(key in (variant[section] or ()) for variant in variants)
        }
        if isinstance(content, dict)
        else content
        for section, content in written.items()
    }


def _merge(written: Mapping, variants: list[Mapping], swept: set[str], prefix: str) -> Mapping:
    merged: Mapping = {}
    for key in dict.fromkeys(key for variant in variants for key in variant):
        dotted = f"{prefix}{key}"
        values = [variant[key] for variant in variants if key in variant]
        if dotted in swept:
            continue
        if all(repr(value) == repr(values[0]) for value in values):
            merged[key] = values[0]
        elif all(isinstance(value, dict) for value in values):
            below = written.get(key)
            merged[key] = _merge(
                below if isinstance(below, dict) else {}, values, swept, f"{dotted}."
            )
        elif key in written:
            merged[key] = written[key]
    return merged
