"""The Bench contract: what ``ddnkit bench NAME`` runs when NAME is no node."""

from __future__ import annotations

import abc
from collections.abc import Callable

from ..recipe.pipeline import Table


class Bench(abc.ABC):
    """A comparison of ways to do the same work: the same inputs, in turn, in one run.

    A plugin is a subclass in the entry-point group ``ddnkit.benches``, made without arguments.
    """

    @abc.abstractmethod
    def run(
        self, *, device: str, repeats: int, seed: int, progress: Callable[[str], None]
    ) -> list[Table]:
        """Measure every way ``repeats`` times and compare the medians.

        Args:
            device: ``"cpu"`` or ``"cuda"``.
            repeats: rounds, each of which takes every way once.
            seed: of everything random.
            progress: told what is measured next.
        """
