"""Solutions of linear systems and eigenvalue problems as minima."""

from __future__ import annotations

import torch
from torch import Tensor

from .known_problem import ClosedFormProblem


class Ridge(ClosedFormProblem):
    """min ½‖Xw − t‖²/n + ½λ‖w‖² over y = w: K w = Xᵀt with K = XᵀX + nλI."""

    number = 9
    input_dims = (2, 1, 0)

    def objective(self, X: Tensor, t: Tensor, lam: Tensor, y: Tensor) -> Tensor:
        """½‖Xw − t‖²/n + ½λ‖w‖²."""
        return ((X @ y - t) ** 2).sum() / (2 * len(t)) + lam / 2 * (y**2).sum()

    def initial_point(self, X: Tensor, t: Tensor, lam: Tensor) -> Tensor:
        """The origin."""
        return X.new_zeros(X.shape[1])

    def answer(self, X: Tensor, t: Tensor, lam: Tensor) -> Tensor:
        """K⁻¹Xᵀt."""
        return torch.linalg.solve(_ridge_matrix(X, lam), X.T @ t)

    def jacobians(self, X: Tensor, t: Tensor, lam: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """∂w/∂X from K dw = dXᵀ(t − Xw) − XᵀdX w; ∂w/∂t = K⁻¹Xᵀ; ∂w/∂λ = −nK⁻¹w."""
        inverse = torch.linalg.inv(_ridge_matrix(X, lam))
        wrt_t = inverse @ X.T
        wrt_X = torch.einsum("kj,i->kij", inverse, t - X @ y) - torch.einsum("ki,j->kij", wrt_t, y)
        return wrt_X, wrt_t, -len(t) * (inverse @ y)

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """X (6, 3) and t normal, λ in [0.1, 1.1]."""
        X, t = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
        return X, t, 0.1 + torch.rand((), dtype=torch.float64)


class SmallestEigenvector(ClosedFormProblem):
    """min ½yᵀSy on ‖y‖² = 1, S = ½(X + Xᵀ): Sy = λy for the smallest eigenvalue λ.

    Both y and −y solve it; `solve` takes the one whose largest entry is positive. Each is isolated,
    so that it has a derivative.
    """

    regular_hessian = False
    input_dims = (2,)

    def objective(self, X: Tensor, y: Tensor) -> Tensor:
        """½yᵀXy, in which only the symmetric part of X counts."""
        return y @ X @ y / 2

    def equality_constraints(self, X: Tensor, y: Tensor) -> Tensor:
        """‖y‖² − 1."""
        return (y**2).sum() - 1

    def initial_point(self, X: Tensor) -> Tensor:
        """The answer to one decimal: from afar a solver may as well find −y."""
        return self.answer(X).round(decimals=1)

    def answer(self, X: Tensor) -> Tensor:
        """The eigenvector, its largest entry positive."""
        y = torch.linalg.eigh(X + X.T).eigenvectors[:, 0]
        return y * y[y.abs().argmax()].sign()

    def jacobians(self, X: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """dy = −(S − λI)⁺ ½(dX + dXᵀ) y."""
        S = (X + X.T) / 2
        inverse = torch.linalg.pinv(S - (y @ S @ y) * torch.eye(len(y), dtype=X.dtype), rtol=1e-9)
        one = torch.einsum("ki,j->kij", inverse, y)
        return (-(one + one.mT) / 2,)

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """X (4, 4), not symmetric, with the eigenvalues of S at least ½ apart."""
        Q = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
        values = torch.arange(4) + torch.rand(4, dtype=torch.float64) / 2
        skew = torch.randn(4, 4, dtype=torch.float64)
        return (Q @ torch.diag(values) @ Q.T + skew - skew.T,)


def _ridge_matrix(X: Tensor, lam: Tensor) -> Tensor:
    return X.T @ X + len(X) * lam * torch.eye(X.shape[1], dtype=X.dtype, device=X.device)
