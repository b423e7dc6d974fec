"""Problems on a circle or a sphere."""

from __future__ import annotations

import torch
from torch import Tensor

from .known_problem import ClosedFormProblem


class LinearOnCircle(ClosedFormProblem):
    """min y₁ + x y₂ on ‖y‖² = 1: y = −(1, x)/√(1+x²), ν = −½√(1+x²)."""

    number = 2
    input_dims = (0,)

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        """y₁ + x y₂."""
        return y[0] + x * y[1]

    def equality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        """‖y‖² − 1."""
        return (y**2).sum() - 1

    def initial_point(self, x: Tensor) -> Tensor:
        """(−1, 0)."""
        return torch.stack([-torch.ones_like(x), torch.zeros_like(x)])

    def answer(self, x: Tensor) -> Tensor:
        """−(1, x)/√(1+x²)."""
        return -torch.stack([torch.ones_like(x), x]) / (1 + x**2).sqrt()

    def jacobians(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """(x, −1)/(1+x²)^{3/2}."""
        return (torch.stack([x, -torch.ones_like(x)]) / (1 + x**2) ** 1.5,)

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """x normal."""
        return (torch.randn((), dtype=torch.float64),)


class LinearOnScaledCircle(ClosedFormProblem):
    """min y₁ + x₁y₂ on ‖y‖² = x₂²: the constraint depends on the input; y = −|x₂|(1, x₁)/√(1+x₁²)."""

    number = 3
    input_dims = (1,)

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        """y₁ + x₁ y₂."""
        return y[0] + x[0] * y[1]

    def equality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        """‖y‖² − x₂²."""
        return (y**2).sum() - x[1] ** 2

    def initial_point(self, x: Tensor) -> Tensor:
        """−|x₂|(1, 0)."""
        return torch.stack([-x[1].abs(), torch.zeros_like(x[1])])

    def answer(self, x: Tensor) -> Tensor:
        """−|x₂|(1, x₁)/√(1+x₁²)."""
        one = torch.ones_like(x[0])
        return -x[1].abs() * torch.stack([one, x[0]]) / (1 + x[0] ** 2).sqrt()

    def jacobians(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """Columns |x₂|(x₁, −1)/(1+x₁²)^{3/2} and −sgn(x₂)(1, x₁)/√(1+x₁²)."""
        one = torch.ones_like(x[0])
        first = x[1].abs() * torch.stack([x[0], -one]) / (1 + x[0] ** 2) ** 1.5
        second = -x[1].sign() * torch.stack([one, x[0]]) / (1 + x[0] ** 2).sqrt()
        return (torch.stack([first, second], dim=1),)

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """x₁ normal, |x₂| in [0.5, 1.5]."""
        x = torch.randn(2, dtype=torch.float64)
        x[1] = x[1].sign() * (0.5 + torch.rand((), dtype=torch.float64))
        return (x,)


class QuadraticOnSphere(ClosedFormProblem):
    """min ½‖y‖² − xᵀy on ‖y‖² = 1: y = x/‖x‖."""

    number = 4
    input_dims = (1,)

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        """½‖y‖² − xᵀy."""
        return (y**2).sum() / 2 - x @ y

    def equality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        """‖y‖² − 1."""
        return (y**2).sum() - 1

    def initial_point(self, x: Tensor) -> Tensor:
        """The unit vector of the largest entry, with its sign."""
        start = torch.zeros_like(x)
        start[x.abs().argmax()] = x[x.abs().argmax()].sign()
        return start

    def answer(self, x: Tensor) -> Tensor:
        """x/‖x‖."""
        return x / x.norm()

    def jacobians(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """(I − yyᵀ)/‖x‖."""
        return ((torch.eye(len(x), dtype=x.dtype) - torch.outer(y, y)) / x.norm(),)

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """x normal in R⁴."""
        return (torch.randn(4, dtype=torch.float64),)

    #: (m, batch): where a dense form is still quick, where it is not, and beyond its memory
    bench_sizes = ((200, 8), (800, 8), (100_000, 1))

    def bench_inputs(self, m: int, batch: int) -> tuple[Tensor, ...]:
        """x normal, (batch, m), for `ddnkit bench`."""
        return (torch.randn(batch, m),)
