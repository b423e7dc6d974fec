"""Problems at which a method that inverts H, or takes constraints for independent, goes wrong."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .known_problem import ClosedFormProblem


class SingularHessian(ClosedFormProblem):
    """min ½(y₁−x₁)² s.t. y₂ = x₂: H is singular, the KKT system is not; y = x, J = I."""

    number = 12
    regular_hessian = False
    input_dims = (1,)

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        """½(y₁−x₁)²."""
        return (y[0] - x[0]) ** 2 / 2

    def equality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        """y₂ − x₂."""
        return y[1] - x[1]

    def initial_point(self, x: Tensor) -> Tensor:
        """The origin."""
        return torch.zeros_like(x)

    def answer(self, x: Tensor) -> Tensor:
        """x."""
        return x.clone()

    def jacobians(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """I."""
        return (torch.eye(2, dtype=x.dtype),)

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """x normal in R²."""
        return (torch.randn(2, dtype=torch.float64),)


class RepeatedConstraint(SingularHessian):
    """The same with its constraint written twice: rank-deficient, and J = I all the same."""

    independent_constraints = False

    def equality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        """(y₂ − x₂, 2(y₂ − x₂))."""
        return torch.stack([y[1] - x[1], 2 * (y[1] - x[1])])


class CosineDistance(ClosedFormProblem):
    """min −xᵀy/‖y‖: any y = tx with t > 0 solves it, and y = x is taken. Not unique.

    At y = x, H = (I − xxᵀ/‖x‖²)/‖x‖ is singular along x and D²_xy f = −H: the pseudo-inverse gives
    J = H⁺H. No gradient can be right, for along x the solution may move at will.
    """

    number = 5
    unique = False
    regular_hessian = False
    input_dims = (1,)

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        """−xᵀy/‖y‖."""
        return -(x @ y) / y.norm()

    def initial_point(self, x: Tensor) -> Tensor:
        """The unit vector of the largest entry, with its sign."""
        start = torch.zeros_like(x)
        start[x.abs().argmax()] = x[x.abs().argmax()].sign()
        return start

    def answer(self, x: Tensor) -> Tensor:
        """x."""
        return x.clone()

    def jacobians(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """I − xxᵀ/‖x‖²."""
        return (torch.eye(len(x), dtype=x.dtype) - torch.outer(x, x) / (x @ x),)

    def feasible_directions(
        self, xs: Sequence[Tensor], directions: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """At right angles to x."""
        (x,), (u,) = xs, directions
        return (u - x * (x @ u) / (x @ x),)

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """x normal in R³."""
        return (torch.randn(3, dtype=torch.float64),)
