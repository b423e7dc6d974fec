"""The automatic form: chooses by the structure and the size of the problem, at each call."""

from __future__ import annotations

from torch import Tensor

from .. import registry
from ..problem import Problem
from .closed_form import ClosedForm
from .fixed_point import FixedPoint
from .form import BackwardForm, TangentSolve
from .matrix_free import by_size


class Automatic(BackwardForm):
    """The node's `preferred_backward`; else its own adjoint; else its fixed-point map; else by size.

    Small problems are solved densely (on a manifold, with its multipliers in closed form), larger
    ones matrix-free. ``layer.certificate.form`` names what was taken.
    """

    name = "auto"

    def resolve(self, problem: Problem, size: int) -> BackwardForm:
        """The form for this problem."""
        node = problem.node
        if node.preferred_backward is not None:
            form: BackwardForm = registry.get("backwards", node.preferred_backward)()
            return form
        if node.adjoint is not None:
            return ClosedForm()
        if FixedPoint().unsupported(problem) is None:
            return FixedPoint()
        return by_size(problem, size)

    def tangent_solve(self, problem: Problem, y: Tensor, nu: Tensor) -> TangentSolve:
        """See `BackwardForm.tangent_solve`."""
        return self.resolve(problem, y.shape[1:].numel()).tangent_solve(problem, y, nu)
