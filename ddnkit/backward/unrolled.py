"""The unrolled form: differentiates the steps of the node's own `solve`. For comparison only.

No implicit function theorem: y is what `solve` computes, and its derivative that of the computation.
The two agree where the solver has converged and is differentiable, at the price of storing its steps.
"""

from __future__ import annotations

from torch import Tensor

from ..problem import Problem
from .form import BackwardForm, TangentSolve


class Unrolled(BackwardForm):
    """Runs ``node.solve`` with a graph. The certificate still measures the solution."""

    name = "unrolled"
    unrolls = True

    def unsupported(self, problem: Problem) -> str | None:
        """The node must have a `solve` of its own."""
        from ..node import DeclarativeNode

        if type(problem.node).solve is DeclarativeNode.solve:
            return "it has no `solve` of its own whose steps could be differentiated; use 'auto'"
        return None

    def tangent_solve(self, problem: Problem, y: Tensor, nu: Tensor) -> TangentSolve:
        """Never asked for: the layer differentiates the steps."""
        raise NotImplementedError
