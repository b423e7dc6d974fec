"""Whether the constraints can be met from here: the verdict on an item that a solver left infeasible.

    minimise ½‖h(y)‖² over y,      by the Levenberg-Marquardt steps   (AᵀA + μI) d = −Aᵀh,  A = Dh,
from where the solver ended. If it ends at h = 0, the constraints were not what stopped the solver; at a
point with Aᵀh = 0 but h ≠ 0 they contradict each other, near that point at least. μ is a tenth of what
it was after a step that decreases ‖h‖, and tenfold after one that does not. Dense: O(m³) a step.

Source: Nocedal and Wright, *Numerical Optimization*, section 10.3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..lagrangian import constraint_jacobian
from ..linalg.items import lu_factor
from ..linalg.kkt import without_bad_items
from ..problem import Problem, flat
from .deadline import Deadline
from .no_solution import stuck, stuck_at_rest
from .residual import norm

_STEPS = 200
_ROUNDINGS = 1e3
_FIRST_DAMPING = 1e-3
_LEAST_DAMPING = 1e-12
_NUDGE = 1e-4
_RESTS = 3


def least_violation(problem: Problem, y: Tensor, deadline: Deadline) -> tuple[Tensor, Tensor]:
    """The points of least violation near y (B, *y), and whether h ≠ 0 there for good, (B,)."""
    shape, y = y.shape, flat(y)
    # Off a point that is stationary for ½‖h‖² by symmetry only, such as the centre of a circle.
    size = torch.where(norm(y) > 0, norm(y), 1.0)
    pattern = torch.arange(1, y.shape[1] + 1, dtype=y.dtype, device=y.device).cos()
    y = y + _NUDGE * size.unsqueeze(-1) * pattern / norm(pattern)
    eps = torch.finfo(y.dtype).eps
    eye = torch.eye(y.shape[1], dtype=y.dtype, device=y.device)
    damping = torch.full_like(size, _FIRST_DAMPING)
    rests = torch.zeros_like(size)
    for _ in range(_STEPS):
        h, A = _linearised(problem, y.reshape(shape))
        violation, length = norm(h), norm(y)
        norm_of_A = torch.linalg.matrix_norm(A)
        pulled = (A.mT @ h.unsqueeze(-1)).squeeze(-1)
        feasible = violation <= _ROUNDINGS * eps * norm_of_A * length
        if bool((feasible | (rests >= _RESTS)).all()) or deadline.passed:
            break
        # The second term is the curvature of ½‖h‖² where A vanishes.
        stiffness = norm_of_A.square() + violation * norm_of_A / length.clamp_min(eps)
        shift = (damping * stiffness).clamp_min(eps**4).reshape(-1, 1, 1)
        factors = lu_factor(A.mT @ A + shift * eye)
        d = -torch.linalg.lu_solve(*factors, pulled.unsqueeze(-1)).squeeze(-1)
        after = norm(_constraints(problem, (y + d).reshape(shape)))
        better = after < violation
        y = torch.where(better.unsqueeze(-1), y + d, y)
        resting = torch.where(
            better, violation - after <= 4 * eps * violation, norm(d) <= eps * length
        )
        rests = torch.where(resting, rests + 1, 0)
        damping = torch.where(better, damping / 10, damping * 10).clamp(_LEAST_DAMPING, 1 / eps)
    hopeless = stuck(h, pulled, norm_of_A) | stuck_at_rest(h, pulled, length)
    return y.reshape(shape), hopeless & ~feasible


def _linearised(problem: Problem, y: Tensor) -> tuple[Tensor, Tensor]:
    A = constraint_jacobian(problem, y)
    assert A is not None
    h, A = without_bad_items(_constraints(problem, y), A)
    return h, A


def _constraints(problem: Problem, y: Tensor) -> Tensor:
    with torch.no_grad():
        h = problem.all_constraints(y)
    assert h is not None
    return h
