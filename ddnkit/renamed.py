"""Old public names: each answers for one release, and warns with the new name."""

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
        _warn(f"{package}.{name}", shown)
        return import_object(new) if colon else lookup(new)

    return attribute


class OldMethod:
    """The old name of a method, in the body of its class: ``taken = OldMethod("resolve")``."""

    def __init__(self, new: str):
        self.new = new

    def __set_name__(self, owner: type, name: str) -> None:
        self.owner, self.name = owner.__name__, name

    def __get__(self, instance: Any, owner: type) -> Any:
        _warn(f"{self.owner}.{self.name}", f"{self.owner}.{self.new}")
        return getattr(owner if instance is None else instance, self.new)

    def move_override(self, kind: type) -> None:
        """Have a subclass that overrides the old name override the new one."""
        if self.name in vars(kind) and self.new not in vars(kind):
            # Frames from here to the class: this one, `__init_subclass__`, and that of `ABCMeta`.
            _warn(f"{kind.__name__}.{self.name}", f"{self.owner}.{self.new}", stacklevel=5)
            setattr(kind, self.new, vars(kind)[self.name])


def _warn(old: str, new: str, stacklevel: int = 3) -> None:
    text = f"{old} is now {new}; the old name goes with the next release"
    warnings.warn(text, DeprecationWarning, stacklevel=stacklevel)
