"""The embedded-gradient-field form: multipliers of the manifold in closed form, no system for them.

On a manifold with multiplier functions σ(y) (Birtea and Comănescu; *Guiding Neural Collapse*, eq.
36–49) the Hessian of the restricted objective is
    (∇²f − Σᵢ σᵢ ∇²jᵢ) on the tangent space,
on the Stiefel manifold ∇²f − I_d ⊗ Σ(U). The adjoint is the tangent vector z with
P(∇²f − Σ σᵢ∇²jᵢ) z = −P v; the constraints do not depend on the inputs, so no μ is needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..lagrangian import input_gradients, lagrangian_hessian
from ..linalg.kkt import solve_tangent
from ..problem import Problem, flat
from ..solution import Solution
from .form import Adjoint, BackwardForm


class EmbeddedField(BackwardForm):
    """Projects the Hessian on the tangent space and solves there."""

    name = "embedded_field"

    def unsupported(self, problem: Problem) -> str | None:
        """A manifold is needed, and no constraint beside it."""
        if problem.manifold is None:
            return "it needs a manifold whose multipliers are known in closed form; use 'dense'"
        if problem.node.constrained:
            return "it has equality constraints beside its manifold; use 'dense'"
        return None

    def vjp(self, problem: Problem, solution: Solution, v: Tensor, wrt: Sequence[int]) -> Adjoint:
        """See `BackwardForm.vjp`."""
        y, manifold = solution.y, problem.manifold
        sigma = manifold.multipliers(y, problem.gradient(y))
        event = y.shape[1:]
        m = event.numel()
        basis = torch.eye(m, dtype=y.dtype, device=y.device).reshape(m, *event)
        # One axis more in front for the m basis vectors; the manifold takes any batch dimensions.
        points, sigmas = y.unsqueeze(1), sigma.unsqueeze(1)
        directions = basis.unsqueeze(0).expand(len(y), *basis.shape)
        points = points.expand_as(directions)
        tangent = manifold.tangent(points, directions).flatten(2)
        sigmas = sigmas.expand(len(y), m, *sigma.shape[1:])
        curvature = manifold.constraint_curvature(points, sigmas, directions).flatten(2)
        G = lagrangian_hessian(problem, y, None) - curvature
        z, residual = solve_tangent(G, tangent, flat(v))
        return Adjoint(input_gradients(problem, y, z.reshape(y.shape), wrt), residual)
