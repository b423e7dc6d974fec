"""The bench of a name: a registered one, or the forms of a registered node."""

from __future__ import annotations

from .. import registry
from ..errors import InputError, nearest_choice
from .contract import Bench


def resolve(name: str) -> Bench:
    """The bench called ``name``; for a node with `bench_inputs`, its backward forms side by side.

    Raises:
        InputError: where there is none.
    """
    benches, nodes = registry.names("benches"), registry.names("nodes")
    if name in benches:
        bench: Bench = registry.make("benches", name)
        bench.name = name
        return bench
    if name not in nodes:
        choices = list(dict.fromkeys([*benches, *nodes]))
        raise InputError(f"no bench or node '{name}'.{nearest_choice(name, choices)}")
    from .forms import Forms

    return Forms(name)
