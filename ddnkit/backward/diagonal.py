"""A Hessian that is diagonal and positive: the system of the theorem solved by its Schur complement.

Where the objective is a sum over the unknowns and the constraints are linear (entropies, barriers,
projections, transport), G = diag(g), and in units of curvature 1 (`ddnkit.linalg.kkt`) G̃ = I:
    z̃ = P r̃,      μ = (Ã⁺)ᵀ r̃,      Ã = A diag(g)^-½.
With an orthonormal basis of Ã's rows that is the Schur complement A G⁻¹Aᵀ = ÃÃᵀ of the whole system,
factorised with as many digits as its rows are independent. Nothing is of size m×m: O(m p²) time.

That G is diagonal is seen from two of its products: with 1, which gives g, and with a vector x without
structure, which must give g x to rounding in every component.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..lagrangian import constraint_set
from ..linalg.kkt import (
    NOISE_FACTOR,
    finite_items,
    lost_rank,
    relative,
    solve_scaled,
    wide_dtype,
    without_bad_items,
)
from ..linalg.rows import rows_of
from ..problem import Problem, flat
from .form import SystemSolution, SystemSolve
from .precision import SAME_OPERATOR, float64_problem, rounding_may_decide, uncertainty
from .tangent_operator import Operator, hessian_operator

#: G x and g x may differ by so many roundings, in each component.
_ROUNDINGS = 64


def diagonal_solve(
    problem: Problem, y: Tensor, nu: Tensor, operator: Operator | None = None
) -> SystemSolve | None:
    """The system's solution where G is diagonal and positive in every item; else None.

    Args:
        operator: products with G in y's dtype, where there is one already.
    """
    if y.numel() == 0 or not _few_rows(problem, y):
        return None
    G = hessian_operator(problem, y, nu) if operator is None else operator
    ones = torch.ones_like(flat(y))
    g, instance, point = G(ones), problem, y
    if y.dtype == torch.float32:
        # In float32 1/y of a small y is infinite.
        found = _in_float64(problem, y, nu, g)
        if found is not None:
            G, g, instance, point = found
    if not bool((g > 0).all() & g.isfinite().all()):
        return None
    x = _without_structure(g)
    if not bool(((G(x) - g * x).abs() <= _ROUNDINGS * torch.finfo(g.dtype).eps * g * x).all()):
        return None
    eps = torch.finfo(y.dtype).eps
    if rounding_may_decide(g.amax(dim=-1) / g.amin(dim=-1), eps):
        noise = uncertainty(row_sums, g, instance, point, nu.to(g.dtype), eps)
        if not bool((noise * NOISE_FACTOR < g).all()):
            return None
    return _solve_of(instance, point, g, G, eps, felt=eps if instance is problem else 0.0)


def _few_rows(problem: Problem, y: Tensor) -> bool:
    """Whether the constraint gradients may be kept: a manifold has products without them, and is not made to
    keep more of their Gram matrix than a vector has entries."""
    manifold = problem.manifold
    if manifold is None or constraint_set(problem, y).parametric:
        return True
    return int(manifold.equations(y).shape[-1]) ** 2 <= flat(y).shape[1]


def row_sums(problem: Problem, y: Tensor, nu: Tensor | None) -> Tensor:
    """G·1, (B, m)."""
    assert nu is not None
    return hessian_operator(problem, y, nu)(torch.ones_like(flat(y)))


def _in_float64(
    problem: Problem, y: Tensor, nu: Tensor, g: Tensor
) -> tuple[Operator, Tensor, Problem, Tensor] | None:
    """Products with G in float64, and g, where that is the same problem as in float32."""
    instance = float64_problem(problem)
    if instance is None:
        return None
    point = y.double()
    try:
        G = hessian_operator(instance, point, nu.double())
        wide = G(torch.ones_like(flat(point)))
    except Exception:  # whatever a node throws that is not made for float64
        return None
    same = ((wide - g).abs() <= SAME_OPERATOR * wide.abs()) | ~g.isfinite()
    if wide.dtype != torch.float64 or not bool(same.all()):
        return None
    return G, wide, instance, point


def _solve_of(
    problem: Problem, y: Tensor, g: Tensor, G: Operator, eps: float, felt: float
) -> SystemSolve | None:
    wide = wide_dtype(g)
    D = g.to(wide).rsqrt()
    A = own = constraint_set(problem, y, in_numbers=True).A
    if A is None and problem.manifold is not None:
        A = problem.manifold.equation_rows(y)
    rows = lost = None
    good = torch.ones_like(D[:, 0], dtype=torch.bool)
    if A is None:
        A = D.new_zeros(len(D), 0, D.shape[-1])
    else:
        if not bool(A.isfinite().all()):
            good = finite_items(A)
            (A,) = without_bad_items(A)
        given = A.to(wide)
        A = given * D.unsqueeze(-2)
        rows = rows_of(A, eps)
        lost = lost_rank(rows, given, eps)

    def project(v: Tensor) -> Tensor:
        return v if rows is None else rows.without(rows.without(v))

    def solve(r: Tensor) -> SystemSolution:
        right = D * torch.where(r.isfinite().all(dim=-1, keepdim=True), r, 0.0).to(wide)
        # Products with G itself and not with g, of which the whole factorisation is taken on trust.
        z, mu, residual, doubt = solve_scaled(
            right,
            lambda z: D * G((D * z).to(g.dtype)).to(wide),
            project,
            rows,
            A,
        )
        size = right.norm(dim=-1)
        residual = relative(residual + felt * z.norm(dim=-1), size)
        if doubt is not None and lost is not None:
            doubt = torch.where(lost & (size > 0), 1.0, doubt).to(r.dtype)
        sound = good & r.isfinite().all(dim=-1)
        residual = torch.where(sound, residual, torch.nan)
        z = D * z
        mu = mu[..., :0] if own is None else mu  # a manifold's own, which nobody asks for
        return SystemSolution(z.to(r.dtype), residual.to(r.dtype), mu.to(r.dtype), doubt)

    return SystemSolve(solve)


def _without_structure(like: Tensor) -> Tensor:
    index = torch.arange(1, like.shape[-1] + 1, dtype=torch.float64, device=like.device)
    return (0.5 + (index * 1.6180339887498949) % 1.0).to(like.dtype).expand_as(like)


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)
