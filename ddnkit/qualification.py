"""Dependent constraints at a solution: those that stay dependent nearby, and those that only meet there.

Constraints whose gradients are dependent do no harm where they stay so: one that is written twice, a third
line through the corner of two others that moves with them. The set is then described by the independent ones,
and all that is known of these holds. It is otherwise

* where constraints *touch*: two curves with one tangent, g² = 0 in place of g = 0. The linearised constraints
  leave directions open that the constraints do not. There need be no multipliers, and what follows from the
  linearised constraints is no derivative;
* where active inequality constraints *meet* that need not: for other operands they are apart, as y ≤ a and
  y ≤ b at a ≠ b, or turn, as y₁ ≤ 0 and y₁ + t y₂ ≤ 0 at t ≠ 0. Which of them holds nearby depends on the
  side: y = min(a, b) has a kink.

And there are those that cannot but hold: y ≤ a and y ≥ a. Where u ≥ 0 and uᵀG = νᵀA, for rows G of g ≤ 0
and A of h = 0, Σ uᵢgᵢ is the same for all y with h = 0, to first order: zero, so that gᵢ = 0 wherever uᵢ > 0.
They are equations, whatever their multipliers, to which any multiple of u may be added.

All of it is looked at where rows are dependent alone, which rarely is the case.

Source: Janin, *Directional derivative of the marginal function in nonlinear programming* (1984), for the
constant rank condition; Ralph and Dempe, *Directional derivatives of the solution of a parametric nonlinear
program* (1995).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
#: Roundings of what a constraint is a sum of.
_MEETING = 64


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


def are_equations(N: Tensor, first: int) -> Tensor:
    """Which of the inequality constraints cannot but hold where they meet, (B, k); see the module's text.

    Args:
        N: as in `null_projector`, of ``first`` equations and k inequality constraints.

    Asked of the vectors N eᵢ, and of their sum: enough for pairs such as equal bounds, and their copies.
    """
    own = N[:, first:, first:]
    # Of a sum that is zero rounding may be above it.
    least = _NO_PART if N.dtype == torch.float64 else _ROUNDINGS * torch.finfo(N.dtype).eps
    vectors = torch.cat([own, own.sum(dim=1, keepdim=True)], dim=1)
    fine = (vectors >= -least).all(dim=2, keepdim=True)
    return (fine & (vectors > least)).any(dim=1)


def do_not_meet(
    values: Tensor, scales: Tensor, A: Tensor, N: Tensor, y: Tensor, size: Tensor
) -> Tensor:
    """Which of the constraints (B, p) depend on others in their gradients, and do not meet at y or near it.

    For u with uᵀA = 0, uᵀ(h, g) is the same at y as at the solution, but for the square of their distance.
    There it is zero if they all hold. Three lines that all but go through one point are told from three
    that do: at y no two of them need be told apart.

    Args:
        values: of the constraints, zero where one does not hold, (B, p).
        scales: what they are sums of, (B, p).
        A: their gradients (B, p, m), and N as in `null_projector`.
    """
    _, length = unit_rows(A)
    length = length.squeeze(-1)
    values, scales = values / length, scales / length
    known = apply(N.abs(), _MEETING * torch.finfo(y.dtype).eps * scales)
    curved = values.abs().amax(dim=1).square() / (_CURVED * size)
    return apply(N, values).abs() > known + curved.unsqueeze(1)


def moves_apart(
    problem: Problem,
    y: Tensor,
    A: Tensor,
    N: Tensor,
    there: Tensor,
    rows: Tensor,
    derived: Sequence[bool] | None,
) -> Tensor:
    """Which inequality constraints (B, k) depend on others at y, and do not for other operands.

    With T the derivative of all constraints for the operands, rows at the length that makes those of A one:
    where (N T)ᵢ is not zero beside what it is a sum of, they are moved apart. Where they are not, but the
    same is true of the derivative T_t of A t for a tangent t (A t = 0), they turn: dy has −(P G P)⁺ Σ νᵢ dAᵢ
    in it, which is another one for each choice of the multipliers.

    Args:
        A: of equations, and of the inequality constraints ``rows`` (k,), (B, p, m).
        N: as in `null_projector`.
        there: which of them hold, (B, p).
        derived: for each operand whether its derivative is asked for; None, and those left out: all.
    """
    flags = [*(derived or ()), *[True] * len(problem.operands)]
    batch, count = A.shape[:2]
    operands = [
        x.detach() if own else x.detach().expand(batch, *x.shape)
        for x, own in zip(problem.operands, problem.operands_batched, strict=True)
    ]
    first = count - len(rows)
    apart = torch.zeros_like(there[:, first:])
    with torch.enable_grad():
        leaves = [
            x.clone().requires_grad_() if x.is_floating_point() and flag else x
            for x, flag in zip(operands, flags, strict=False)
        ]
        wanted = [x for x in leaves if x.requires_grad]
        if not wanted:
            return apart
        here, variable = problem.resize(leaves, batch, [True] * len(leaves)), y.detach()
        variable = variable.clone().requires_grad_()
        _, length = unit_rows(A)
        h, g = here.constraints(variable), here.inequalities(variable)
        assert g is not None  # whose rows they are
        parts = [g[:, rows]] if h is None else [h, g[:, rows]]
        values = torch.where(there, torch.cat(parts, dim=1) / length.squeeze(-1), 0.0)
        held = A * there.unsqueeze(-1)
        any_way = flat(relative_changes(y, y.shape[1:], 1.0, 23, 2).expand(y.shape))
        tangent = any_way - apply(pseudo_inverse(held), apply(held, any_way))

        def slopes(of: Tensor, weights: Tensor) -> list[Tensor]:
            if not of.requires_grad:
                return []
            found = torch.autograd.grad(of, wanted, weights, retain_graph=True, allow_unused=True)
            pairs = zip(wanted, found, strict=True)
            return [flat(torch.zeros_like(x) if d is None else d) for x, d in pairs]

        def of_rows(weights: Tensor, t: Tensor) -> list[Tensor]:
            """weightsᵀ T_t of each operand."""
            if not values.requires_grad:
                return []
            (row,) = torch.autograd.grad(values, variable, weights, create_graph=True)
            return slopes(flat(row), t)

        def parted(
            along: Callable[[Tensor], list[Tensor]], beside: Callable[[Tensor], list[Tensor]]
        ) -> Tensor:
            """Where (N T)ᵢ is not zero, by weightsᵀ T of each operand, beside that of each row."""
            eye = torch.eye(count, dtype=A.dtype, device=A.device)
            sizes = [beside(e.expand(batch, -1)) for e in eye]
            off = [along(N[:, i]) for i in range(first, count)] if any(sizes) else []
            found = torch.zeros_like(apart)
            # Of each operand by itself, whose units may be any.
            for k in range(len(wanted) if off else 0):
                T = torch.stack([_size(row, k, y) for row in sizes], dim=1)
                left = torch.stack([_size(row, k, y) for row in off], dim=1)
                edge = torch.finfo(A.dtype).eps ** 0.5
                found = found | (left > edge * apply(N[:, first:].abs(), T))
            return found

        def of_values(weights: Tensor) -> list[Tensor]:
            """weightsᵀ T of each operand."""
            return slopes(values, weights)

        moved = parted(of_values, of_values)
        # Beside what they are in any direction: at a vertex a tangent is nothing but rounding.
        turned = parted(lambda w: of_rows(w, tangent), lambda w: of_rows(w, any_way))
    return (moved | turned) & there[:, first:]


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
