"""A classifier head. It names what it builds, so that reading a recipe loads no torch."""

from __future__ import annotations

from ddnkit_etf.settings import HeadSettings


class Prototypes(HeadSettings):
    """A learned prototype for each class; the logits are τ times the cosines with them."""

    builder = "example_parts.prototype_classifier:PrototypeClassifier.from_settings"
