"""A node whose solution has several parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..structure import Structure
from .known_problem import ClosedFormProblem

Parts = dict[str, Tensor]


class TwoPartQP(ClosedFormProblem):
    """min ½‖u − a‖² + ½w‖V − B‖² over y = {"u": (2,), "V": (2, 3)} with Σu + ΣV = c.

    With s = p + q/w for p entries of u and q of V, and ν = (c − Σa − ΣB)/s:  u = a + ν, V = B + ν/w.
    """

    input_dims = (1, 2, 0, 0)

    def objective(self, a: Tensor, B: Tensor, w: Tensor, c: Tensor, y: Parts) -> Tensor:
        """½‖u − a‖² + ½w‖V − B‖²."""
        return ((y["u"] - a) ** 2).sum() / 2 + w * ((y["V"] - B) ** 2).sum() / 2

    def equality_constraints(self, a: Tensor, B: Tensor, w: Tensor, c: Tensor, y: Parts) -> Tensor:
        """Σu + ΣV − c."""
        return y["u"].sum() + y["V"].sum() - c

    def initial_point(self, a: Tensor, B: Tensor, w: Tensor, c: Tensor) -> Any:
        """The origin, off the constraint."""
        return {"u": torch.zeros_like(a), "V": torch.zeros_like(B)}

    def answer(self, a: Tensor, B: Tensor, w: Tensor, c: Tensor) -> Parts:
        """u = a + ν, V = B + ν/w."""
        nu = (c - a.sum() - B.sum()) / (a.numel() + B.numel() / w)
        return {"u": a + nu, "V": B + nu / w}

    def jacobians(self, a: Tensor, B: Tensor, w: Tensor, c: Tensor, y: Parts) -> tuple[Tensor, ...]:
        """With e = (1; 1/w) for (u; V):  ∂y/∂c = e/s,  ∂y/∂(a, B) = I − e1ᵀ/s,

        ∂y/∂w = (∂ν/∂w) e − (0; ν/w²),   ∂ν/∂w = νq/(s w²).
        """
        p, q = a.numel(), B.numel()
        s = p + q / w
        nu = y["u"][0] - a[0]
        e = torch.cat([a.new_ones(p), a.new_ones(q) / w])
        of_V = torch.cat([a.new_zeros(p), a.new_ones(q)])
        wrt_both = torch.eye(p + q, dtype=a.dtype) - e.unsqueeze(1) / s
        wrt_w = nu * q / (s * w**2) * e - nu / w**2 * of_V
        return wrt_both[:, :p], wrt_both[:, p:].reshape(p + q, *B.shape), wrt_w, e / s

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """a, B (2, 3) and c normal, w in [0.5, 1.5]."""
        a, B = torch.randn(2, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
        w = 0.5 + torch.rand((), dtype=torch.float64)
        return a, B, w, torch.randn((), dtype=torch.float64)


def join_parts(y: Any, batch_dims: int = 0) -> Tensor:
    """The parts of a solution laid end to end in one vector; a solution of one part as it is.

    `KnownProblem.jacobians` of a problem with several parts are those of this vector.

    Example:
        >>> join_parts({"u": torch.zeros(8, 2), "V": torch.zeros(8, 2, 3)}, batch_dims=1).shape
        torch.Size([8, 8])
    """
    structure = Structure.of(y, "a solution")
    return y if structure is None else structure.join(y, batch_dims)
