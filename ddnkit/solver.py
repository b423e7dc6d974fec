"""The Solver contract: a batch of problems in, a Solution out; chosen by name or given as an object."""

from __future__ import annotations

import abc
import contextlib
from typing import TYPE_CHECKING

from torch import Tensor

from . import registry
from .errors import InputError

if TYPE_CHECKING:
    from .problem import Problem
    from .solution import Solution


class Solver(abc.ABC):
    """Finds y minimising the objective of each problem of a batch, subject to its constraints.

    Settings (tolerance, iterations) are keyword arguments of the constructor, all with defaults, so
    that a solver can be chosen by name alone. A solver keeps no state between calls. It returns the
    last iterate with an honest status; whether to raise is for the caller's policy.
    """

    name: str
    #: True: an item that holds NaN or infinity stops nothing and leaves the other items as they are; its
    #: own solution is NaN, with `Status.NON_FINITE`. Others are never given such an item in a batch.
    keeps_items_apart: bool = False
    #: True: the solver keeps to a node's inequality constraints and bounds, or refuses them by itself in
    #: `unsupported`. Others are never given a node that has some.
    takes_inequalities: bool = False

    @abc.abstractmethod
    def solve(self, problem: Problem, start: Tensor | None = None) -> Solution:
        """Solve every item of ``problem``.

        Args:
            problem: a batch of B problems.
            start: (B, *y), where to start; the node's own ``initial_point`` if None.

        Returns:
            y of shape (B, *y) in the dtype and on the device of the problem, with status and
            iterations per item.
        """

    def unsupported(self, problem: Problem) -> str | None:
        """Why this solver cannot take ``problem``, or None if it can."""
        return None

    def refusal(self, problem: Problem) -> str | None:
        """`unsupported`, and before it whether this solver would pass over inequalities."""
        if problem.node.has_inequalities and not self.takes_inequalities:
            return (
                "it has inequality constraints or bounds, which this solver takes none of; "
                f"{_solvers_of_inequalities()} do"
            )
        return self.unsupported(problem)


def _solvers_of_inequalities() -> str:
    """The names of those that take inequalities, as they stand in a sentence."""
    names = []
    for name in registry.names("solvers"):
        # A plugin's that cannot be loaded is none to recommend.
        with contextlib.suppress(Exception):
            if getattr(registry.get("solvers", name), "takes_inequalities", False):
                names.append(f"'{name}'")
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def as_solver(solver: str | Solver) -> Solver:
    """The solver itself, or the registered one of that name with its default settings."""
    if isinstance(solver, Solver):
        return solver
    if isinstance(solver, str):
        chosen: Solver = registry.make("solvers", solver)
        return chosen
    raise InputError(f"a solver is a name or a ddnkit.Solver, not {solver!r}")
