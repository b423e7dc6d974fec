"""The embedded-field form: the Hessian of Birtea's embedded gradient vector field on the tangent space.

The field is ∂f(y) = ∇f(y) − Σᵢ σᵢ(y) ∇jᵢ(y) with the multiplier functions σ = (J Jᵀ)⁻¹ J ∇f of the
constraint gradients J. Its derivative on the tangent space is P G P, with G = ∇²f − Σᵢ σᵢ ∇²jᵢ and
P = I − Jᵀ(J Jᵀ)⁺J. A manifold knows σ and P in closed form (on St(d, C): Σ(U) = ½(∇fᵀU + Uᵀ∇f) and
G = ∇²f − I_d ⊗ Σ); for any other constraints they come from the Gram matrix of the gradients.
Where the unknowns of a constrained problem have curvatures of very different size, the same is done after
they have been measured in units of curvature 1 (`ddnkit.linalg.kkt`).
O(m²) memory and O(m³) time for m unknowns.

Source: Birtea and Comănescu, *Geometrical dissipation for dynamical systems*; *Guiding Neural
Collapse* (NeurIPS 2024), eq. 36.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..lagrangian import OnManifold, constraint_set, lagrangian_hessian
from ..linalg.kkt import ONE_UNIT, TangentInverse, curvature_ratio
from ..problem import Problem, flat
from .dense import Dense, InFloat64
from .form import BackwardForm, TangentSolve
from .tangent_operator import Projector, matrix_of


class EmbeddedField(BackwardForm):
    """Projects the Hessian on the tangent space and solves there."""

    name = "embedded_field"
    dense = True

    def tangent_solve(self, problem: Problem, y: Tensor, nu: Tensor) -> TangentSolve:
        """See `BackwardForm.tangent_solve`."""
        constraints = constraint_set(problem, y, in_numbers=True)
        G = lagrangian_hessian(problem, y, constraints.in_lagrangian(nu))
        if isinstance(constraints, OnManifold):
            G = G + matrix_of(
                lambda v: constraints.less_curvature(torch.zeros_like(v), v, nu), flat(y)
            )
        elif not bool((curvature_ratio(G) <= ONE_UNIT).all()):
            # The dense form projects on the tangent space too, in units of curvature 1.
            return Dense().tangent_solve(problem, y, nu)
        inverse = TangentInverse(
            G,
            matrix_of(Projector(problem, y), flat(y)),
            across=isinstance(constraints, OnManifold),
        )
        return inverse if y.dtype != torch.float32 else _InEnoughDigits(inverse, problem, y)


class _InEnoughDigits:
    """The system in float32, and in float64 for the right sides whose residual asks for it."""

    def __init__(self, narrow: TangentInverse, problem: Problem, y: Tensor):
        self._narrow = narrow
        self._wide = InFloat64(problem, y, Dense().factorise)

    @property
    def saddle(self) -> Tensor | None:
        """See `TangentInverse.saddle`."""
        return self._narrow.saddle

    def __call__(self, r: Tensor) -> tuple[Tensor, Tensor]:
        """z (k, B, m) and the relative residual (k, B)."""
        z, residual = self._narrow(r)
        better = self._wide(r, residual)
        if better is None:
            return z, residual
        mask, wide = better
        return torch.where(mask.unsqueeze(-1), wide.z, z), torch.where(
            mask, wide.residual, residual
        )
