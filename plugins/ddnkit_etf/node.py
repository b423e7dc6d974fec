"""The nearest simplex ETF as a declarative node.

    minimise over U ∈ St(d, C):  ‖H − U M̃‖²_F + (δ/2) ‖U − P‖²_F,   M̃ = (I − 11ᵀ/C)/√(C−1).

(*Guiding Neural Collapse*, eq. 7.) On the manifold ‖U M̃‖_F is constant, so up to a constant the
objective is −⟨A, U⟩ with A = 2 H M̃ + δ P: a Procrustes problem, U* = polar(A). Its Lagrangian has
G = I_d ⊗ S with S = UᵀA, so the adjoint is the one of the polar factor (`ddnkit.linalg.polar`) and
∂ℓ/∂H = 2 (∂ℓ/∂A) M̃, ∂ℓ/∂P = δ ∂ℓ/∂A.

Reduced form: only U E matters to the ETF, E an orthonormal basis of 1^⊥. The unknown is then
Y = U E ∈ St(d, C−1): no null direction, so δ = 0 and d = C − 1 are allowed;
A = (2/√(C−1)) H E + δ P E.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from ddnkit_manifolds import Stiefel, procrustes_adjoint, relative_curvature
from torch import Tensor
from torch.nn.functional import mse_loss

from ddnkit import (
    Adjoint,
    BackwardForm,
    DeclarativeLayer,
    DeclarativeNode,
    InputError,
    Problem,
    Solution,
    Solver,
)
from ddnkit.linalg import polar_adjoint, precision, symmetric_factors

from .simplex import canonical_frame, centre, complete_frame, expand, haar_frame, reduce


class NearestETF(DeclarativeNode):
    """U nearest to the class means H among all frames of a simplex ETF: inputs (H, P), output U.

    H and P are (d, C); P may be None where δ is not used. In reduced form the output is U E,
    (d, C−1). Cost of the closed form: O(dC² + C³) time and O(dC) memory, both ways.

    Args:
        delta: proximal coefficient δ ≥ 0.
        reduced: solve for U E on St(d, C−1).
        solver: "procrustes" (closed form), or any registered manifold solver.

    Source: *Guiding Neural Collapse* (NeurIPS 2024), eq. 6, 7 and Proposition 1.
    """

    manifold = Stiefel()
    batched_solve = True
    input_dims = (2, 2)
    preferred_backward = "closed_form"

    def __init__(
        self, delta: float = 1e-3, *, reduced: bool = False, solver: str | Solver = "procrustes"
    ):
        if not delta >= 0:
            raise InputError(f"delta must be 0 or more, not {delta}")
        self.delta = float(delta)
        self.reduced = reduced
        self.solver = solver

    def objective(self, H: Tensor, P: Tensor | None, y: Tensor) -> Tensor:
        """‖H − U M̃‖² + (δ/2)‖U − P‖² (reduced: ‖U E − P E‖²)."""
        C = H.shape[-1]
        scale = (C - 1) ** -0.5
        ETF = scale * expand(y) if self.reduced else centre(y, scale, C)
        value = _squared_distance(ETF, H)
        if P is None or not self.delta:
            return value
        return torch.add(value, _squared_distance(y, self._frame(P)), alpha=self.delta / 2)

    def initial_point(self, H: Tensor, P: Tensor | None) -> Tensor:
        """P, or the canonical frame; where an iterative solver starts."""
        return self._frame(self._prior(H, P))

    def procrustes_target(self, H: Tensor, P: Tensor | None) -> Tensor:
        """A = 2 H M̃ + δ P, whose polar factor is the solution."""
        scale = 2 / (H.shape[-1] - 1) ** 0.5
        A = scale * reduce(H) if self.reduced else centre(H, scale)
        if P is None or not self.delta:
            return A
        return A.add_(self._frame(P), alpha=self.delta)

    def procrustes_completion(self, H: Tensor, P: Tensor | None) -> Tensor:
        """Where A is rank-deficient, the solution nearest to P (else to the canonical frame)."""
        return self._frame(self._prior(H, P))

    def solve_problem(self, problem: Problem, start: Tensor | None = None) -> Solution:
        """Solves with the node's solver; adds the factors of S and the margin to non-uniqueness."""
        H, P = problem.inputs
        _validate(H, P, self.reduced)
        solution = super().solve_problem(problem, start)
        if solution.aux:
            return solution
        y = solution.y
        Q, s = symmetric_factors(y.double(), self.procrustes_target(H, P).double())
        dtype = precision(y)
        aux = {
            "left_vectors": (y.double() @ Q).to(dtype),
            "right_vectors": Q.to(dtype),
            "singular_values": s,
        }
        uniqueness = relative_curvature(s, y.shape).to(y.dtype)
        return dataclasses.replace(solution, aux=aux, uniqueness=uniqueness)

    def adjoint(
        self, H: Tensor, P: Tensor | None, y: Tensor, v: Tensor, aux: Mapping[str, Tensor]
    ) -> Adjoint:
        """(∂ℓ/∂H, ∂ℓ/∂P) from ∂ℓ/∂U = v."""
        A_gradient, residual = procrustes_adjoint(y, v, aux)
        lifted = expand(A_gradient) if self.reduced else A_gradient
        P_gradient = None if P is None else (self.delta * lifted).to(P.dtype)
        # In place: `lifted` is this function's own. Before it is rounded to H's dtype: in the null
        # direction of M̃ it is 1/δ times as large as what is left of it here.
        C = H.shape[-1]
        if not self.reduced:
            lifted.add_(lifted.sum(dim=-1, keepdim=True).mul_(-1 / C))
        lifted.mul_(2 / (C - 1) ** 0.5)
        return Adjoint((lifted.to(H.dtype), P_gradient), residual)

    def tangent_inverse(self, H: Tensor, P: Tensor | None, y: Tensor) -> Callable[[Tensor], Tensor]:
        """(P G P)⁺ P for G = I_d ⊗ S: the derivative of a polar factor is its own adjoint."""
        U = y.double()
        Q, s = symmetric_factors(U, self.procrustes_target(H, P).double())
        return lambda r: polar_adjoint(U, Q, s, r.double()).to(r.dtype)

    def sample_inputs(self) -> tuple[Any, ...]:
        """Class means of unit Frobenius norm in (7, 5) and a random frame, in float64."""
        H = torch.randn(7, 5, dtype=torch.float64)
        return H / H.norm(), haar_frame(7, 5, dtype=torch.float64)

    #: (d, C) of CIFAR-100 and of ImageNet on a ResNet-50's width
    bench_sizes = ((1024, 100), (2048, 1000))

    def bench_inputs(self, d: int, C: int) -> tuple[Any, ...]:
        """Class means of unit Frobenius norm and a random frame, (d, C), for `ddnkit bench`."""
        H = torch.randn(d, C)
        return H / H.norm(), haar_frame(d, C)

    def _frame(self, P: Tensor) -> Tensor:
        return reduce(P) if self.reduced else P

    def _prior(self, H: Tensor, P: Tensor | None) -> Tensor:
        if P is not None:
            return P
        frame = canonical_frame(H.shape[-2], H.shape[-1], dtype=H.dtype, device=H.device)
        return frame.expand(H.shape)


def nearest_etf(
    H: Tensor,
    prox: Tensor | None = None,
    delta: float = 1e-3,
    *,
    reduced: bool = False,
    solver: str | Solver = "procrustes",
    backward: str | BackwardForm = "auto",
    policy: str = "warn",
) -> Tensor:
    """The frame U of the simplex ETF nearest to class means H, differentiable in H and ``prox``:

        argmin over UᵀU = I of  ‖H − U M̃‖²_F + (δ/2) ‖U − P‖²_F,    M̃ = (I − 11ᵀ/C)/√(C−1).

    The ETF itself is `etf_of_frame(U)`. H enters as it is: for the paper's H̃ centre it and give it
    unit Frobenius norm (`ClassMeans` does).

    Args:
        H: class means as columns, (..., d, C), d ≥ C (d ≥ C − 1 in reduced form); leading
            dimensions are batch. float16 and bfloat16 are solved, and returned, in float32.
        prox: proximal target P, (..., d, C), a frame. None: the problem without the proximal term
            (the paper's first step). Its solution is free in the null direction of M̃, and completed
            there in one fixed way (`complete_frame`), which is differentiated too.
        delta: proximal coefficient δ; used with ``prox``.
        reduced: solve for U E on St(d, C−1) and return U E Eᵀ, which has U 1 = 0: the same ETF
            without a null direction. Allows d = C − 1 and ``delta=0``.
        solver: "procrustes" (closed form), or a manifold solver such as "trust_regions".
        backward: "auto" (closed form), or "dense", "embedded_field", "krylov".
        policy: "raise", "warn", "nan" or "mask", for items whose certificate fails.

    Returns:
        U, (..., d, C), float32 or float64.

    Example:
        >>> H = torch.randn(2048, 1000, requires_grad=True)
        >>> U = nearest_etf(H / H.norm())          # (2048, 1000)
        >>> U = nearest_etf(H / H.norm(), prox=U.detach())

    Source: *Guiding Neural Collapse* (NeurIPS 2024), eq. 6, 7.
    """
    if H.ndim < 2:
        raise InputError(f"H must be (..., d, C); it has shape {tuple(H.shape)}")
    in_reduced_form = reduced or prox is None
    node = NearestETF(delta, reduced=in_reduced_form, solver=solver)
    layer = DeclarativeLayer(node, backward, policy=policy)
    U: Tensor = layer(H, prox)
    if not in_reduced_form:
        return U
    if reduced or H.shape[-2] == H.shape[-1] - 1:
        return expand(U)
    return complete_frame(U)


def _squared_distance(X: Tensor, Y: Tensor) -> Tensor:
    # One pass forward and one back, where (X − Y).square().sum() makes six tensors of this size.
    return mse_loss(X, Y, reduction="sum")


def _validate(H: Tensor, P: Tensor | None, reduced: bool) -> None:
    d, C = H.shape[-2:]
    if C < 2:
        raise InputError(
            f"the nearest simplex ETF needs at least 2 classes; H has shape ({d}, {C})"
        )
    if d < C - 1 or (d < C and not reduced):
        least = "d ≥ C − 1" if reduced else "d ≥ C; with d = C − 1 use reduced=True"
        raise InputError(f"H has shape (d, C) = ({d}, {C}); this form needs {least}")
    if P is not None and P.shape[-2:] != H.shape[-2:]:
        raise InputError(
            f"the proximal target must have the shape of H, ({d}, {C}), not {tuple(P.shape[-2:])}"
        )
