"""An objective that holds a module: the solution depends on its parameters too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .known_problem import ClosedFormProblem


class TwoInputsOptionAndModule(ClosedFormProblem):
    """min ½‖y − (Wx + b)‖² + ½c‖Ry‖², W and b of a `torch.nn.Linear`: Ky = Wx + b, K = I + cRᵀR.

    Inputs x (4,) and R (2, 3), and an option: c = 1 for "sum", c = ½, one over R's rows, for "mean".
    """

    number = 15
    input_dims = (1, 2, None)

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(15)
            self.linear = torch.nn.Linear(4, 3, dtype=torch.float64)

    def objective(self, x: Tensor, R: Tensor, reduction: str, y: Tensor) -> Tensor:
        """½‖y − (Wx + b)‖² + ½c‖Ry‖²."""
        fit = ((y - self.linear(x)) ** 2).sum()
        return (fit + _factor(R, reduction) * ((R @ y) ** 2).sum()) / 2

    def initial_point(self, x: Tensor, R: Tensor, reduction: str) -> Tensor:
        """The origin."""
        return R.new_zeros(R.shape[1])

    def answer(self, x: Tensor, R: Tensor, reduction: str) -> Tensor:
        """K⁻¹(Wx + b)."""
        return torch.linalg.solve(_penalised(R, reduction), self.linear(x))

    def jacobians(self, x: Tensor, R: Tensor, reduction: str, y: Tensor) -> tuple[Tensor, ...]:
        """∂y/∂x = K⁻¹W; ∂y/∂R from K dy = −c(dRᵀR + RᵀdR)y."""
        inverse = torch.linalg.inv(_penalised(R, reduction))
        wrt_R = torch.einsum("kj,i->kij", inverse, R @ y) + torch.einsum(
            "ki,j->kij", inverse @ R.T, y
        )
        return inverse @ self.linear.weight.detach(), -_factor(R, reduction) * wrt_R

    def parameter_jacobians(
        self, x: Tensor, R: Tensor, reduction: str, y: Tensor
    ) -> dict[str, Tensor]:
        """∂y_k/∂W_ij = K⁻¹_ki x_j, ∂y/∂b = K⁻¹."""
        inverse = torch.linalg.inv(_penalised(R, reduction))
        return {
            "linear.weight": torch.einsum("ki,j->kij", inverse, x),
            "linear.bias": inverse,
        }

    def sample_inputs(self) -> tuple[Any, ...]:
        """x and R normal, "mean"."""
        x, R = torch.randn(4, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
        return x, R, "mean"


def _factor(R: Tensor, reduction: str) -> float:
    return {"sum": 1.0, "mean": 1 / len(R)}[reduction]


def _penalised(R: Tensor, reduction: str) -> Tensor:
    eye = torch.eye(R.shape[1], dtype=R.dtype, device=R.device)
    return eye + _factor(R, reduction) * R.T @ R
