"""The size of a solution, by which it is told what is small beside it, whatever the units.

A y of zero, or one that is what rounding has left of zero, has the size that the data would give it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .lagrangian import constraint_set, first_order_change
from .perturbation import STEP, perturb
from .problem import Problem, flat


def size_of_solution(problem: Problem, y: Tensor, gradient: Tensor, tolerance: float) -> Tensor:
    """The size of y (B,): its root mean square or, where that may be what rounding or a solver has left of
    zero, the change of y that changes ∇_y L by as much as the operands make of it."""
    size = flat(y).square().mean(dim=1).sqrt()
    operands = [x for x in problem.operands if x.is_floating_point() and x.numel()]
    largest = max((float(x.detach().abs().amax()) for x in operands), default=0.0)
    if not bool((size <= tolerance * largest).any()):
        return size
    nu = constraint_set(problem, y, in_numbers=True).multipliers(flat(gradient))
    by_operands, _ = first_order_change(problem, y, nu, moved_operands(problem, 0), y)
    moved = y + (perturb(torch.ones_like(y), STEP[y.dtype], 0, 0) - 1)
    by_y, _ = first_order_change(problem, y, nu, problem.operands, moved)
    own = by_operands.norm(dim=1) / by_y.norm(dim=1)
    return torch.where(own.isfinite() & (size <= tolerance * own), own, size)


def moved_operands(problem: Problem, probe: int) -> list[Tensor]:
    """The operands, each entry changed by a step relative to it."""
    flags = problem.operands_batched
    return [
        perturb(x, STEP[x.dtype], k + 1, probe) if own and x.dtype in STEP else x
        for k, (x, own) in enumerate(zip(problem.operands, flags, strict=True))
    ]
