"""Numbers: the linear systems that the equations ask for, solved by a backward form."""

from __future__ import annotations

from torch import Tensor

from ..backward.form import BackwardForm, solved
from ..problem import Problem


class Numbers:
    """The linear systems of a form, solved without any state: what `Call` does, for one evaluation."""

    policy = "warn"

    def __init__(self, form: BackwardForm):
        self.form = form

    def solve_system(
        self, problem: Problem, y: Tensor, nu: Tensor, r: Tensor, multipliers: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """z (k, B, m), and μ (k, B, p) of a form that has it where the gradient is made of it."""
        found = solved(self.form.tangent_solve(problem, y, nu), r, multipliers)
        return found.z, found.mu

    def solve_tangent(self, problem: Problem, y: Tensor, nu: Tensor, r: Tensor) -> Tensor:
        """z (k, B, m)."""
        return self.solve_system(problem, y, nu, r, multipliers=False)[0]
