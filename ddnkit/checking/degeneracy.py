"""Constraints whose gradients are dependent at the solution: harmless, or the end of the theory.

With A = D_y h, multipliers and the tangent space are what they should be where the rank of A is the
same at all points near the solution (the constant rank condition): a constraint may be written twice.
Where the rank is lower at the solution than around it, as for (g(y))² = 0 in place of g(y) = 0, the
linearised constraints do not describe the set, and there need be no multipliers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..lagrangian import constraint_jacobian
from .differences import generator
from .subject import Solved

_NEARBY = 1e-2
_PROBES = 3
#: Singular values below this, relative to the largest, are rounding or the error of the solver.
_NOISE = 1e-4


def rank_gained_nearby(solved: Solved) -> float:
    """The largest singular value that A has around the solution and lacks there, relative; 0 if none.

    Rows are measured by their size around the solution, so that units do not matter.
    """
    problem, y = solved.problem, solved.solution.y
    here = constraint_jacobian(problem, y)
    if here is None or not here.shape[1]:
        return 0.0
    around = [constraint_jacobian(problem, y + shift) for shift in _shifts(y)]
    rows = torch.stack([here, *(A for A in around if A is not None)])
    rows = rows.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    length = rows.norm(dim=-1, keepdim=True).amax(dim=0)
    values = torch.linalg.svdvals(rows / torch.where(length > 0, length, 1.0))
    at_y, near = values[0], values[1:].amax(dim=0)
    gained = (near > _NOISE * near.amax(dim=-1, keepdim=True)) & (at_y < _NEARBY * near)
    return float(torch.where(gained, near, 0.0).max())


def _shifts(y: Tensor) -> list[Tensor]:
    source = generator()
    size = y.norm() / max(y.numel(), 1) ** 0.5
    scale = _NEARBY * torch.where(size > 0, size, 1.0)
    shifts = []
    for _ in range(_PROBES):
        shifts.append(scale * torch.randn(y.shape, generator=source, dtype=torch.float64).to(y))
    return shifts
