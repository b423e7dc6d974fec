"""Old names of what a package offers: each answers for one release, and warns with the new name."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from .importing import import_object


def with_old_names(
    package: str, lookup: Callable[[str], Any], new_names: Mapping[str, str]
) -> Callable[[str], Any]:
    """A ``__getattr__`` for the module ``package`` that knows its old names besides.

    Args:
        package: ``__name__`` of the module.
        lookup: its ``__getattr__`` for the names of today, such as lazy_loader's.
        new_names: old name to new: a name of the same package, or ``"module:name"`` elsewhere.
    """

    def attribute(name: str) -> Any:
        new = new_names.get(name)
        if new is None:
            return lookup(name)
        module, colon, member = new.rpartition(":")
        shown = f"{module}.{member}" if colon else f"{package}.{new}"
        warnings.warn(
            f"{package}.{name} is now {shown}; the old name goes with the next release",
            DeprecationWarning,
            stacklevel=2,
        )
        return import_object(new) if colon else lookup(new)

    return attribute
