"""The nearest simplex equiangular tight frame to class means, at the points where methods break."""

from __future__ import annotations

import torch
from torch import Tensor

from .known_problem import ClosedFormProblem
from .matrices import frame_constraints, polar_factor, polar_jacobian, random_frame

#: Case: (d, C) and how its class means are drawn.
CASES = {
    "generic": (6, 4),
    "missing": (6, 4),
    "collapsed": (6, 4),
    "square": (4, 4),
}


class NearestSimplexETF(ClosedFormProblem):
    """min ‖H − UM̃‖²_F + (δ/2)‖U − P‖²_F over St(d, C), M̃ = (I − 11ᵀ/C)/√(C−1).

    ‖UM̃‖_F is constant there: U = polar(A) with A = 2HM̃ + δP, and dA = 2dH·M̃ + δ dP. H and P are
    inputs (d, C), ‖H‖_F = 1. HM̃ has rank C − 1 at most, so that δP alone completes A.

    Args:
        case: "generic"; "missing", a class not seen, its column zero; "collapsed", H = UM̃ and P = U
            exactly, where C − 1 singular values coincide; "square", d = C.
        delta: δ. Derivatives of order k grow like δ^{1−k}, and differences over a step must keep
            well below δ: smaller values ask for smaller steps.

    Source: *Guiding Neural Collapse* (NeurIPS 2024), where δ = 1e-3.
    """

    number = 14
    well_conditioned = False
    input_dims = (2, 2)

    def __init__(self, case: str = "generic", delta: float = 1e-3) -> None:
        if case not in CASES:
            raise ValueError(f"case '{case}' is not one of {', '.join(CASES)}")
        self.case = case
        # `answer` takes an SVD, whose derivative is NaN where singular values coincide.
        self.differentiable_solve = case != "collapsed"
        self.delta = delta

    @property
    def label(self) -> str:
        """With the case."""
        return f"NearestSimplexETF({self.case})"

    def objective(self, H: Tensor, P: Tensor, y: Tensor) -> Tensor:
        """‖H − UM̃‖²_F + (δ/2)‖U − P‖²_F."""
        fit = ((H - y @ _simplex(y)) ** 2).sum()
        return fit + self.delta / 2 * ((y - P) ** 2).sum()

    def equality_constraints(self, H: Tensor, P: Tensor, y: Tensor) -> Tensor:
        """The lower triangle of UᵀU − I."""
        return frame_constraints(y)

    def initial_point(self, H: Tensor, P: Tensor) -> Tensor:
        """P, as in training, where it is the last solution."""
        return P.clone()

    def answer(self, H: Tensor, P: Tensor) -> Tensor:
        """polar(2HM̃ + δP)."""
        return polar_factor(self._moment(H, P))

    def jacobians(self, H: Tensor, P: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """∂U/∂H = 2 (∂U/∂A)·M̃, ∂U/∂P = δ ∂U/∂A."""
        wrt_A = polar_jacobian(self._moment(H, P))
        return 2 * wrt_A @ _simplex(y), self.delta * wrt_A

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """Centred class means of unit norm, and a frame P."""
        d, C = CASES[self.case]
        P = random_frame(d, C)
        if self.case == "collapsed":
            return P @ _simplex(P), P
        H = torch.randn(d, C, dtype=torch.float64)
        H = H - H.mean(dim=1, keepdim=True)
        if self.case == "missing":
            H[:, 0] = 0
        H = H / H.norm()
        if self.case == "square" and torch.det(P) * torch.det(self._moment(H, P)) < 0:
            # O(d) has two components. The last solution, which P stands for, is in that of the next;
            # −P completes HM̃ with the other sign and has the same determinant (d is even).
            P = -P
        return H, P

    def _moment(self, H: Tensor, P: Tensor) -> Tensor:
        return 2 * H @ _simplex(H) + self.delta * P


def _simplex(like: Tensor) -> Tensor:
    C = like.shape[-1]
    eye = torch.eye(C, dtype=like.dtype, device=like.device)
    return (eye - 1 / C) / (C - 1) ** 0.5
