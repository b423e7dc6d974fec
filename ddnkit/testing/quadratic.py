"""Quadratic objectives, under linear constraints or none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .known_problem import ClosedFormProblem, KnownProblem


class EqualityQP(KnownProblem):
    """min ½yᵀQy + cᵀy, y₁ + y₂ = b, Q = [[4,1],[1,2]]; at c = (1,1), b = 1: y = (¼,¾), ν = 2.75.

    Left to the node's solver, though its solution is known.
    """

    number = 10
    input_dims = (1, 0)

    def objective(self, c: Tensor, b: Tensor, y: Tensor) -> Tensor:
        """½yᵀQy + cᵀy."""
        return y @ self._Q(y) @ y / 2 + c @ y

    def equality_constraints(self, c: Tensor, b: Tensor, y: Tensor) -> Tensor:
        """y₁ + y₂ − b."""
        return y.sum() - b

    def initial_point(self, c: Tensor, b: Tensor) -> Tensor:
        """The origin."""
        return torch.zeros_like(c)

    def answer(self, c: Tensor, b: Tensor) -> Tensor:
        """¼(b − c₁ + c₂, 3b + c₁ − c₂)."""
        return torch.stack([b - c[0] + c[1], 3 * b + c[0] - c[1]]) / 4

    def jacobians(self, c: Tensor, b: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """∂y/∂c = −¼[[1,−1],[−1,1]], ∂y/∂b = (¼,¾)."""
        wrt_c = torch.tensor([[-0.25, 0.25], [0.25, -0.25]], dtype=c.dtype)
        return wrt_c, torch.tensor([0.25, 0.75], dtype=c.dtype)

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """c and b normal."""
        return torch.randn(2, dtype=torch.float64), torch.randn((), dtype=torch.float64)

    @staticmethod
    def _Q(like: Tensor) -> Tensor:
        return torch.tensor([[4.0, 1.0], [1.0, 2.0]], dtype=like.dtype, device=like.device)


class AffineConstraint(ClosedFormProblem):
    """min ½‖y−x‖², 1ᵀy = 1: y = x + (1 − 1ᵀx)/m, J = I − 11ᵀ/m."""

    number = 11
    input_dims = (1,)

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        """½‖y−x‖²."""
        return ((y - x) ** 2).sum() / 2

    def equality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        """1ᵀy − 1."""
        return y.sum() - 1

    def initial_point(self, x: Tensor) -> Tensor:
        """The origin, off the constraint."""
        return torch.zeros_like(x)

    def answer(self, x: Tensor) -> Tensor:
        """The projection."""
        return x + (1 - x.sum()) / len(x)

    def jacobians(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """I − 11ᵀ/m."""
        return (torch.eye(len(x), dtype=x.dtype) - 1 / len(x),)

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """x normal in R⁴."""
        return (torch.randn(4, dtype=torch.float64),)


class AffineWithAdjoint(AffineConstraint):
    """`AffineConstraint` with the adjoint written down: v·dy/dx = v − (1ᵀv/m) 1."""

    def adjoint(self, x: Tensor, y: Tensor, v: Tensor) -> tuple[Tensor]:
        """(I − 11ᵀ/m) v."""
        return (v - v.mean(),)


class WeightedLeastSquares(ClosedFormProblem):
    """min ½(y−t)ᵀW(y−t), Ay = b, W = diag(w): the constraint's matrix is an input.

    With M = AW⁻¹Aᵀ: ν = M⁻¹(b − At), y = t + W⁻¹Aᵀν.
    """

    input_dims = (1, 1, 2, 1)

    def objective(self, w: Tensor, t: Tensor, A: Tensor, b: Tensor, y: Tensor) -> Tensor:
        """½(y−t)ᵀW(y−t)."""
        return (w * (y - t) ** 2).sum() / 2

    def equality_constraints(self, w: Tensor, t: Tensor, A: Tensor, b: Tensor, y: Tensor) -> Tensor:
        """Ay − b."""
        return A @ y - b

    def initial_point(self, w: Tensor, t: Tensor, A: Tensor, b: Tensor) -> Tensor:
        """t, off the constraint."""
        return t.clone()

    def answer(self, w: Tensor, t: Tensor, A: Tensor, b: Tensor) -> Tensor:
        """t + W⁻¹Aᵀν."""
        return t + _right_inverse(w, A) @ (b - A @ t)

    def jacobians(
        self, w: Tensor, t: Tensor, A: Tensor, b: Tensor, y: Tensor
    ) -> tuple[Tensor, ...]:
        """W dy − Aᵀdν = W dt − dW(y−t) + dAᵀν and A dy = db − dA y, solved by N and R.

        R = W⁻¹AᵀM⁻¹ takes the second right-hand side to dy, N = (I − RA)W⁻¹ the first:
        ∂y/∂w = −N diag(y−t), ∂y/∂t = NW, ∂y/∂b = R, ∂y_k/∂A_ij = N_kj νᵢ − R_ki y_j.
        """
        R = _right_inverse(w, A)
        N = (torch.eye(len(w), dtype=w.dtype) - R @ A) / w
        nu = R.T @ (w * (y - t))  # W(y−t) = Aᵀν and RᵀAᵀ = I
        wrt_A = torch.einsum("kj,i->kij", N, nu) - torch.einsum("ki,j->kij", R, y)
        return -N * (y - t), N * w, wrt_A, R

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """w in [0.5, 1.5]⁵; t, A (2, 5) and b normal."""
        w = 0.5 + torch.rand(5, dtype=torch.float64)
        t, A = torch.randn(5, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
        return w, t, A, torch.randn(2, dtype=torch.float64)


def _right_inverse(w: Tensor, A: Tensor) -> Tensor:
    # R = W⁻¹AᵀM⁻¹ with M symmetric: Rᵀ = M⁻¹AW⁻¹.
    scaled = A / w
    return torch.linalg.solve(scaled @ A.T, scaled).T


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
        return torch.linalg.solve(_normal_matrix(R, reduction), self.linear(x))

    def jacobians(self, x: Tensor, R: Tensor, reduction: str, y: Tensor) -> tuple[Tensor, ...]:
        """∂y/∂x = K⁻¹W; ∂y/∂R from K dy = −c(dRᵀR + RᵀdR)y."""
        inverse = torch.linalg.inv(_normal_matrix(R, reduction))
        wrt_R = torch.einsum("kj,i->kij", inverse, R @ y) + torch.einsum(
            "ki,j->kij", inverse @ R.T, y
        )
        return inverse @ self.linear.weight.detach(), -_factor(R, reduction) * wrt_R

    def parameter_jacobians(
        self, x: Tensor, R: Tensor, reduction: str, y: Tensor
    ) -> dict[str, Tensor]:
        """∂y_k/∂W_ij = K⁻¹_ki x_j, ∂y/∂b = K⁻¹."""
        inverse = torch.linalg.inv(_normal_matrix(R, reduction))
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


def _normal_matrix(R: Tensor, reduction: str) -> Tensor:
    eye = torch.eye(R.shape[1], dtype=R.dtype, device=R.device)
    return eye + _factor(R, reduction) * R.T @ R
