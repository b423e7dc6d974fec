"""A node given as a map, whose solution is the map's fixed point."""

from __future__ import annotations

import torch
from torch import Tensor

from ..fixed_point import FixedPointNode
from .known_problem import KnownProblem


class Equilibrium(FixedPointNode, KnownProblem):
    """y = tanh(Wy + x): with D = diag(1 − y²), (I − DW) dy = D(dW y + dx).

    Left to the node's solver. ‖W‖ = 0.8 in the samples, so that the map contracts.
    """

    input_dims = (2, 1)

    def fixed_point(self, W: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """tanh(Wy + x)."""
        return torch.tanh(W @ y + x)

    def initial_point(self, W: Tensor, x: Tensor) -> Tensor:
        """tanh(x)."""
        return torch.tanh(x)

    def jacobians(self, W: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """∂y/∂x = (I − DW)⁻¹D, ∂y_k/∂W_ij = (∂y_k/∂x_i) y_j."""
        D = torch.diag(1 - y**2)
        wrt_x = torch.linalg.solve(torch.eye(len(x), dtype=x.dtype) - D @ W, D)
        return torch.einsum("ki,j->kij", wrt_x, y), wrt_x

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """W (4, 4) of spectral norm 0.8, x normal."""
        W = torch.randn(4, 4, dtype=torch.float64)
        W = 0.8 * W / torch.linalg.matrix_norm(W, 2)
        return W, torch.randn(4, dtype=torch.float64)
