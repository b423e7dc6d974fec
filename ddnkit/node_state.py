"""NodeState: what a node held when its layer was called, to differentiate with it later.

A node's attributes may be set anew before the way back: a weight annealed in a loop whose losses are added
up, say. What stood there is still at hand, unless it was changed in place: a copy of the node with it
is the node that was solved.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn


class NodeState:
    """The attributes of a node, of its modules, and of lists and dictionaries on them."""

    def __init__(self, node: Any):
        self._node = node
        self._kept: list[tuple[Any, Any]] = []
        self._seen: set[int] = set()
        self._keep(node)

    def _keep(self, owner: Any) -> None:
        if id(owner) in self._seen:
            return
        self._seen.add(id(owner))
        holder = owner if isinstance(owner, (dict, list)) else vars(owner)
        kept = copy.copy(holder)
        self._kept.append((owner, kept))
        values = kept.values() if isinstance(kept, dict) else kept
        for value in list(values):
            if isinstance(value, nn.Module) or type(value) in (dict, list):
                self._keep(value)

    def changed(self) -> bool:
        """Whether anything was set anew since."""
        for owner, kept in self._kept:
            now = owner if isinstance(owner, (dict, list)) else vars(owner)
            if len(now) != len(kept):
                return True
            if isinstance(kept, dict):
                if any(name not in now or not _same(now[name], kept[name]) for name in kept):
                    return True
            elif not all(map(_same, now, kept)):
                return True
        return False

    def node(self) -> Any:
        """A copy of the node that holds what it held."""
        copies: dict[int, Any] = {}
        for owner, _ in self._kept:
            if isinstance(owner, (dict, list)):
                copies[id(owner)] = type(owner)()
            else:
                copies[id(owner)] = object.__new__(type(owner))
        for owner, kept in self._kept:
            made = copies[id(owner)]
            if isinstance(owner, list):
                made.extend(copies.get(id(value), value) for value in kept)
                continue
            holder = made if isinstance(owner, dict) else vars(made)
            holder.update({name: copies.get(id(value), value) for name, value in kept.items()})
        return copies[id(self._node)]


def _same(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and isinstance(a, (int, float, str, bool)) and a == b)
