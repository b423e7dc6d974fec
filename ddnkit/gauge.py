"""Whether a node on a quotient tells apart points that mean the same.

On a quotient (`Manifold.vertical`) y moves horizontally, and no equation says what it does along the gauge.
That is the derivative of the problem as it was written where objective and constraints are constant along
vertical directions w, and of another problem where they are not. At a solution with multipliers ν of the
node's own constraints h, and L = f − νᵀh less the manifold's part, it takes three things to be so:

* ⟨w, ∇L⟩ = 0: f has no slope along the gauge. The multipliers of the slice would take it up, which are zero.
* Dh w = 0: nor has a constraint, or h would be kept by horizontal moves that the gauge makes needless.
* P G w = 0 for the Hessian G of L and the projector P on the tangent space of all constraints but the slice:
  y(t) along the gauge is a solution for every t, with multipliers ν(t), and ∇L(y(t), ν(t)) = 0
  differentiated is G w = Aᵀν'.

One direction w is looked at, a combination of all of them without structure. The third is asked for on the
way back alone (`ddnkit.assessment.curvature_along_gauge`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .lagrangian import ConstraintSet
from .linalg.items import apply
from .problem import Problem


def vertical_direction(problem: Problem, y: Tensor) -> Tensor | None:
    """w of length 1, (B, m); of length 0 where the gauge does not move y. None without a gauge."""
    manifold = problem.manifold
    rows = None if manifold is None else manifold.vertical(y)
    if rows is None or not rows.shape[1]:
        return None
    index = torch.arange(1, rows.shape[1] + 1, dtype=torch.float64, device=y.device)
    weights = ((index * 1.6180339887498949) % 1.0 + 0.5).to(y.dtype)
    w = torch.tensordot(weights, rows.flatten(2), dims=([0], [1]))
    return w / _or_one(w.norm(dim=-1, keepdim=True))


def slope_along_gauge(
    problem: Problem, gradient: Tensor, constraints: ConstraintSet, nu: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor] | None:
    """|⟨w, ∇L⟩| relative to ``scale``, a backward error as the stationarity is, and the largest |Dhₖ w|
    relative to ‖Dhₖ‖, (B,) each; None without a gauge.

    Args:
        gradient: ∇_y f, (B, m).
    """
    w = vertical_direction(problem, constraints.y)
    if w is None:
        return None
    A = constraints.A
    turned = torch.zeros_like(scale)
    if A is not None:
        h = problem.constraints(constraints.y)
        own = A[:, : 0 if h is None else h.shape[1]]
        gradient = gradient - apply(own.mT, nu[:, : own.shape[1]])
        # The argument of a kink may be any part of an objective, whose sum alone has to be constant.
        own = own[:, : own.shape[1] - (0 if problem.kinks is None else problem.kinks.count)]
        if own.shape[1]:
            turned = (apply(own, w).abs() / _or_one(own.norm(dim=-1))).amax(dim=-1)
    slope = (w * gradient).sum(dim=-1).abs()
    return slope / torch.where(slope > 0, scale, 1.0), turned


def _or_one(size: Tensor) -> Tensor:
    return torch.where(size > 0, size, 1.0)
