"""Problems in one unknown."""

from __future__ import annotations

import torch
from torch import Tensor

from .known_problem import ClosedFormProblem


class Polynomial(ClosedFormProblem):
    """min x y⁴ + 2x²y³ − 12y², x > 0: stationary at 0 and (−3x² ± √(9x⁴+96x))/4x."""

    number = 1
    input_dims = (0,)

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        """The polynomial."""
        return x * y**4 + 2 * x**2 * y**3 - 12 * y**2

    def initial_point(self, x: Tensor) -> Tensor:
        """−√(6/x), what the answer tends to for small x."""
        return -(6 / x).sqrt()

    def answer(self, x: Tensor) -> Tensor:
        """The stationary point with the least value."""
        root = (9 * x**4 + 96 * x).sqrt()
        points = torch.stack([torch.zeros_like(x), -3 * x**2 + root, -3 * x**2 - root]) / (4 * x)
        return points[self.objective(x, points).argmin()]

    def jacobians(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """y′ = −(y³ + 3xy²)/(3xy² + 3x²y − 6)."""
        return (-(y**3 + 3 * x * y**2) / (3 * x * y**2 + 3 * x**2 * y - 6),)

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """x in [0.5, 1.5]."""
        return (0.5 + torch.rand((), dtype=torch.float64),)


class CubeRoot(ClosedFormProblem):
    """min ¼y⁴ − xy: y³ = x, whose derivative has no bound at x = 0."""

    input_dims = (0,)

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        """¼y⁴ − xy."""
        return y**4 / 4 - x * y

    def initial_point(self, x: Tensor) -> Tensor:
        """x."""
        return x.clone()

    def answer(self, x: Tensor) -> Tensor:
        """∛x, of either sign."""
        return x.sign() * x.abs() ** (1 / 3)

    def jacobians(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """1/(3y²)."""
        return (1 / (3 * y**2),)

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """|x| in [0.5, 1.5], of either sign."""
        sign = torch.randn((), dtype=torch.float64).sign()
        return (sign * (0.5 + torch.rand((), dtype=torch.float64)),)
