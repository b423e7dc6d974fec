"""The benches of ddnkit: its parts against named peers, on the same inputs in one run.

Each is found by the entry points in the group ``ddnkit.benches``; ``ddnkit bench NAME`` runs it. What they
have in common, such as how time is measured, is in `ddnkit.bench.Comparison`.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

#: How a competitor begins: from the inputs of a case to its phases, by name.
Prepare: TypeAlias = Callable[[Mapping[str, Any]], Mapping[str, Any]]
