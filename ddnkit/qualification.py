"""Dependent constraints at a solution: those that stay dependent nearby, and those that only meet there.

Constraints whose gradients are dependent do no harm where they stay so: one that is written twice, a third
line through the corner of two others that moves with them. The set is then described by the independent ones,
and all that is known of these holds. It is otherwise

* where constraints *touch*: two curves with one tangent, g² = 0 in place of g = 0. The linearised constraints
  leave directions open that the constraints do not. There need be no multipliers, and what follows from the
  linearised constraints is no derivative;
* where active inequality constraints meet that have right sides of their own, as y ≤ a and y ≤ b at a = b:
  which of them holds nearby depends on the side, and y = min(a, b) has a kink.

Both are looked at where rows are dependent alone, which rarely is the case.

Source: Janin, *Directional derivative of the marginal function in nonlinear programming* (1984), for the
constant rank condition; Ralph and Dempe, *Directional derivatives of the solution of a parametric nonlinear
program* (1995).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .lagrangian import constraint_set, pseudo_inverse
from .linalg.items import apply
from .linalg.rows import unit_rows
from .perturbation import relative_changes
from .problem import Problem, flat

#: Of the move along the tangent space: what constraints that touch are off by is its square.
_SHORTER = 30
_CORRECTIONS = 6
#: What they are off by, relative to what they change by in a move of that length in any direction, over the
#: length: a curvature beside that of y's own size.
_CURVED = 1e-3
_ROUNDINGS = 1e3
#: Of a product of two entries of a null vector.
_NO_PART = 1e-9


def are_dependent(A: Tensor, there: Tensor) -> Tensor:
    """In which items (B,) the rows of A (B, p, m) that are ``there`` (B, p) may be dependent.

    By their Gram matrix, which tells those apart for sure that keep half of the digits.
    """
    unit, _ = unit_rows(A * there.unsqueeze(-1))
    gram = unit @ unit.mT
    gram = gram + torch.diag_embed((~there).to(gram))
    factor, failed = torch.linalg.cholesky_ex(gram)
    eye = torch.eye(gram.shape[-1], dtype=A.dtype, device=A.device)
    inverse = torch.linalg.solve_triangular(factor, eye, upper=False)
    least = 1 / torch.linalg.matrix_norm(inverse).square()
    return (failed != 0) | ~(least > 8 * torch.finfo(A.dtype).eps ** 0.5 * gram.shape[-1])


def null_projector(A: Tensor, there: Tensor) -> Tensor:
    """N (B, p, p), onto the u with uᵀA = 0 of the rows of A (B, p, m) at unit length that are ``there``."""
    unit, _ = unit_rows(A * there.unsqueeze(-1))
    left, sizes, _ = torch.linalg.svd(unit.double(), full_matrices=False)
    rounding = 8 * max(A.shape[-2:]) * torch.finfo(A.dtype).eps
    kept = left * (sizes > rounding * sizes[..., :1]).unsqueeze(-2)
    there = there.to(kept)
    N = torch.diag_embed(there) - kept @ kept.mT * there.unsqueeze(-1) * there.unsqueeze(-2)
    # Some entry of a vector of length one is none of these; what rounding leaves of zero is nothing else.
    return torch.where(N.abs() > _NO_PART, N, 0.0).to(A.dtype)


def moves_apart(
    problem: Problem,
    y: Tensor,
    A: Tensor,
    there: Tensor,
    rows: Tensor,
    derived: Sequence[bool] | None,
) -> Tensor:
    """Which inequality constraints (B, k) depend on others at y, and do not for other operands.

    With N as in `null_projector` and T the derivative of all constraints for the operands, rows at the
    length that makes those of A one: where (N T)ᵢ is not zero beside what it is a sum of.

    Args:
        A: of equations, and of the inequality constraints ``rows`` (k,), (B, p, m).
        there: which of them hold, (B, p).
        derived: for each operand whether its derivative is asked for; None, and those left out: all.
    """
    flags = [*(derived or ()), *[True] * len(problem.operands)]
    N = null_projector(A, there)
    batch, count = A.shape[:2]
    operands = [
        x.detach() if own else x.detach().expand(batch, *x.shape)
        for x, own in zip(problem.operands, problem.operands_batched, strict=True)
    ]
    with torch.enable_grad():
        leaves = [
            x.clone().requires_grad_() if x.is_floating_point() and flag else x
            for x, flag in zip(operands, flags, strict=False)
        ]
        wanted = [x for x in leaves if x.requires_grad]
        here = problem.resize(leaves, batch, [True] * len(leaves))
        _, length = unit_rows(A)
        h, g = here.constraints(y), here.inequalities(y)
        assert g is not None  # whose rows they are
        parts = [g[:, rows]] if h is None else [h, g[:, rows]]
        values = torch.where(there, torch.cat(parts, dim=1) / length.squeeze(-1), 0.0)

        def along(weights: Tensor) -> list[Tensor]:
            """weightsᵀ T of each operand."""
            if not values.requires_grad or not wanted:
                return []
            found = torch.autograd.grad(
                values, wanted, weights, retain_graph=True, allow_unused=True
            )
            return [flat(x) for x in found if x is not None]

        eye = torch.eye(count, dtype=A.dtype, device=A.device)
        sizes = [along(e.expand(batch, -1)) for e in eye]
        first = count - len(rows)
        off = [along(N[:, i]) for i in range(first, count)]
    if not any(sizes):
        return torch.zeros_like(there[:, first:])
    edge = torch.finfo(A.dtype).eps ** 0.5
    # Of each operand by itself, whose units may be any.
    apart = torch.zeros_like(there[:, first:])
    for k in range(max(map(len, sizes))):
        T = torch.stack([_size(row, k, y) for row in sizes], dim=1)
        left = torch.stack([_size(row, k, y) for row in off], dim=1)
        apart = apart | (left > edge * apply(N[:, first:].abs(), T))
    return apart & there[:, first:]


def _size(parts: list[Tensor], k: int, y: Tensor) -> Tensor:
    return parts[k].norm(dim=1) if k < len(parts) else y.new_zeros(len(y))


@torch.no_grad()
def touching(problem: Problem, y: Tensor, size: Tensor) -> Tensor:
    """Whether the constraints at y (B, *y) are dependent there and not around it, (B,), as 0 or 1.

    From a point beside y, along the tangent space, the constraints are followed as far as they go together
    (by a few steps of Gauss and Newton): what is left is zero where they stay dependent, and of the order of
    the square of the move where they touch. Linear ones never do.

    Args:
        size: of y (B,), which the move is relative to.
    """
    constraints = constraint_set(problem, y, in_numbers=True)
    A = constraints.A
    assert A is not None  # what is dependent
    none = torch.zeros_like(size)
    try:
        h = constraints.values()
        inverse = pseudo_inverse(A)
        eps = torch.finfo(y.dtype).eps
        pattern = relative_changes(y, y.shape[1:], 1.0, 17, 0).expand(y.shape)
        any_way = flat(pattern)
        # Another pattern: one that is tangent by chance tells less.
        tangent = constraints.project(
            flat(relative_changes(y, y.shape[1:], 1.0, 19, 1).expand(y.shape))
        )

        def off(move: Tensor) -> Tensor:
            there = problem.all_constraints(y + move.reshape(y.shape))
            assert there is not None
            return there - h

        touches = torch.ones_like(size, dtype=torch.bool)
        for length in (eps**0.2, eps**0.2 / _SHORTER):
            step = (length * size).unsqueeze(1)
            scale = torch.maximum(off(step * any_way).abs(), off(-step * any_way).abs())
            limit = max(_CURVED * length, _ROUNDINGS * eps / length)
            move = step * tangent
            left = off(move)
            for turn in range(_CORRECTIONS + 1):
                # NaN, beyond the functions' domain, tells nothing.
                beyond = (left.abs() > limit * scale).any(dim=1)
                if turn == _CORRECTIONS or not bool((touches & beyond).any()):
                    break
                move = move - apply(inverse, left)
                left = off(move)
            touches = touches & beyond
            if y.dtype != torch.float64:
                break  # the shorter move is lost in rounding
        return torch.where(touches, 1.0, none)
    except RuntimeError:  # of a function that does not take such points
        return none
