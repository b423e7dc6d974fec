"""KnownProblem: a node whose derivative, and often whose solution, is known on paper.

For a solution y of  min f(x₁, …, xₙ, y)  subject to  h(x₁, …, xₙ, y) = 0  it states Jᵢ = dy/dxᵢ.
Where the equations that define dy do not single one out, or have no solution for some dx, Jᵢ is the
one of their pseudo-inverse: dy is the least-norm solution for the nearest dx that has one, which is
what ``Bᵀz + Cᵀμ`` gives for the least-norm solution (z, μ) of the adjoint system.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..node import DeclarativeNode


class KnownProblem(DeclarativeNode):
    """A node whose solution has a known Jacobian. Each has an `initial_point`, for any solver.

    A solution may have several parts, a tuple or dictionary of tensors. ``y`` is then given to
    `jacobians` as it is, and what they return is for the parts laid end to end (`testing.join_parts`): of
    shape (m,) + xᵢ.shape, m entries in all.

    Attributes:
        number: its number in the project's list of test problems, None if it is not in it.
        unique: False where the solution is not unique, so that no gradient exists: it must be
            diagnosed, and `jacobians` are the pseudo-inverse's.
        analytic: False where `jacobians` cannot be written down.
        regular_hessian: False where D²_yy L alone is singular at a solution, so that a method which
            inverts it does not apply.
        independent_constraints: False where the constraints' gradients are dependent, so that a
            method which inverts their Gram matrix, or the whole KKT matrix, does not apply.
        well_conditioned: False where curvatures differ by a factor of about a thousand, so that damping
            them costs more than six digits.
        differentiable_solve: False where the steps of the problem's own `solve` keep no graph, or have
            no derivative at the samples.
    """

    number: int | None = None
    unique: bool = True
    analytic: bool = True
    regular_hessian: bool = True
    independent_constraints: bool = True
    well_conditioned: bool = True
    differentiable_solve: bool = True

    @property
    def label(self) -> str:
        """Its name in tables: the class, and the case where a class has several."""
        return type(self).__name__

    @abc.abstractmethod
    def sample_inputs(self) -> tuple[Any, ...]:
        """One random instance."""

    def observed(self, y: Any) -> Any:
        """What is looked at of a solution, with any batch dimensions before: y itself, or what is the same
        for every y that solves the problem. `jacobians` are then those of it, in the place of y's."""
        return y

    def answer(self, *xs: Any, **named: Any) -> Any:
        """The solution of one problem in closed form; None where there is none."""
        return None

    def jacobians(self, *xs: Any, **named: Any) -> tuple[Tensor, ...]:
        """dy/dxᵢ at the solution y, for each tensor input, of shape y.shape + xᵢ.shape; of `observed` y."""
        raise NotImplementedError(f"{self.label} has no analytic Jacobian (analytic = False)")

    def parameter_jacobians(self, *xs: Any, **named: Any) -> dict[str, Tensor]:
        """dy/dθ at y for each tensor of the node that the objective uses and that wants a gradient.

        Keys are attribute names of the node ("linear.weight"); shapes y.shape + θ.shape.
        """
        return {}

    def feasible_directions(
        self, xs: Sequence[Any], directions: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """The nearest directions of the inputs along which `solve` moves as `jacobians` say.

        One direction a tensor input; the same are returned unless the constraints have a solution
        for some inputs only, or the solution is not unique. Take differences along these.
        """
        return tuple(directions)


class ClosedFormProblem(KnownProblem):
    """A known problem that is solved by its closed form."""

    @abc.abstractmethod
    def answer(self, *xs: Any, **named: Any) -> Any:
        """The solution of one problem."""

    def solve(self, *xs: Any, **named: Any) -> Any:
        """The answer."""
        return self.answer(*xs, **named)


def sample(problem: DeclarativeNode, seed: int = 0) -> tuple[Any, ...]:
    """One instance of ``problem.sample_inputs()``; the global generator is left as it was.

    Example:
        >>> x, alpha = sample(PseudoHuberAverage(), seed=3)      # x: (5,)
    """
    with torch.random.fork_rng(devices=[]):
        # Of the CPU alone: torch.manual_seed would also seed the devices that the fork leaves out.
        torch.default_generator.manual_seed(seed)
        return problem.sample_inputs()
