"""Layers whose calls are short from the first on, and those whose never are, to hold against each other."""

from ddnkit import DeclarativeLayer


def short(node, **options):
    """A layer whose first call is short already, if it can be."""
    layer = DeclarativeLayer(node, **options)
    layer.short.first_calls = 0
    return layer


def eager(node, **options):
    """A layer without short calls."""
    layer = DeclarativeLayer(node, **options)
    layer.short.on = False
    return layer
