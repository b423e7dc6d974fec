"""The equations of a call as two functions of tensors alone, without a branch on a value: to be traced.

`at_solution` says all that is to be known at y, and whether it is clear; `way_back` takes an incoming
gradient v to the operands (`ddnkit.implicit.solution_equation` derives the formula). They are the implicit
function theorem for the plain case, and know when it is plain: what is not clearly regular, a strict
minimum and solved, is left to the eager way, which has more patience. So they raise no alarm, and give no
verdict but "trusted".

The system, in units in which each unknown has curvature 1 (`ddnkit.linalg.kkt`), D = |diag G|^-½:
    G̃ = D G D = L Lᵀ,   V = L⁻¹ D Aᵀ,   S = VᵀV = A G⁻¹ Aᵀ,
and for right sides r, and c of the constraints,
    u = L⁻¹ D r,   μ = S⁻¹(Vᵀu − c),   z = D L⁻ᵀ(u − V μ)       solve    G z + Aᵀμ = r,   A z = c.
Cholesky's factors exist where G is positive definite, which says that y is a strict minimum. Where it is
so on the tangent space alone, G + Aᵀ R A in place of G, R > 0 diagonal, changes neither z nor the set of
solutions, and for A z = 0 not μ either: `lifted` says that this is to be used.

How regular is read off the factors: with unit diagonal in G̃, Lᵢᵢ² is what is left of the curvature of the
i-th unknown when the ones before it may move along.

Scales. A component of ∇_y L or of h is small beside the terms that meet in it, |G||y| + |Aᵀ||ν| and |A||y|:
a backward error by component (Oettli and Prager), of y and the multipliers alone. What the inputs could take
on themselves is left out, so that the figure is no smaller than that of the certificate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad, vmap

from ..lagrangian import objective_gradient, vjp
from ..problem import Problem, flat


class Limits(NamedTuple):
    """What is clear.

    Attributes:
        tolerance: largest stationarity and infeasibility.
        residual: largest residual of the adjoint system, relative.
        pivot: least pivot of a factor of a matrix with unit diagonal.
    """

    tolerance: float
    residual: float
    pivot: float

    @classmethod
    def of(cls, dtype: torch.dtype, tolerance: float) -> Limits:
        """For problems of that type."""
        eps = torch.finfo(dtype).eps
        residual = 1e-5 if dtype == torch.float32 else 1e-9
        return cls(tolerance, min(tolerance, residual), eps**0.25)


class AtSolution(NamedTuple):
    """What is known at y; the figures first.

    Attributes:
        clear: one flag for the batch: this is the plain case.
        stationarity, feasibility, licq: (B,), see `Certificate`.
        rest: what `way_back` needs.
    """

    clear: Tensor
    stationarity: Tensor
    feasibility: Tensor
    licq: Tensor
    rest: tuple[Tensor, ...]


def at_solution(
    problem: Problem, limits: Limits, lifted: bool
) -> Callable[..., tuple[Tensor, ...]]:
    """The function of y and the operands that gives an `AtSolution`, flat."""

    def found(y: Tensor, *operands: Tensor) -> tuple[Tensor, ...]:
        here = problem.with_operands(operands)
        Y = flat(y)
        g = objective_gradient(here, y)
        stationarity = licq = None
        A = c = nu = None
        clear = []
        if here.manifold is not None or here.has_constraints(y):
            c, pull = vjp(here.all_constraints, y)
            A = _rows(pull, c)
            nu, licq, margin = _multipliers(A, g)
            clear.append(margin >= limits.pivot)

        def slope(y: Tensor) -> Tensor:
            value = here.objective(y).sum()
            if nu is not None:
                value = value - (nu * here.all_constraints(y)).sum()
            return value

        gradient, pull = vjp(lambda y: flat(grad(slope)(y)), y)
        G = _rows(pull, gradient)
        r = g if A is None or nu is None else g - _times(A.mT, nu)
        scale = (G * Y.unsqueeze(-2)).abs().sum(dim=-1)
        feasibility = torch.zeros_like(Y[:, 0])
        if A is not None and nu is not None and c is not None:
            size = A.abs()
            scale = scale + _times(size.mT, nu.abs())
            feasibility = _largest_ratio(c, _times(size, Y.abs()))
            clear.append(feasibility <= limits.tolerance)
        stationarity = _largest_ratio(r, scale)
        clear.append(stationarity <= limits.tolerance)
        factors, regular = _factors(G, A, lifted)
        clear += [x >= limits.pivot for x in regular]
        if licq is None:
            licq = torch.ones_like(feasibility)
        flags = torch.stack([x if x.ndim == 1 else x.all(dim=-1) for x in clear])
        rest = (*factors, *([] if nu is None else [nu]))
        return flags.all(), stationarity, feasibility, licq, *rest

    return found


def way_back(
    problem: Problem, limits: Limits, wrt: Sequence[int]
) -> Callable[..., tuple[Tensor, ...]]:
    """The function of v, y, the rest of an `AtSolution`, and the operands, that gives whether the system
    is solved clearly, its residual (B,), and the gradient for each operand of ``wrt``.
    """

    def found(
        v: Tensor, y: Tensor, rest: Sequence[Tensor], *operands: Tensor
    ) -> tuple[Tensor, ...]:
        here = problem.with_operands(operands)
        constrained = here.manifold is not None or here.has_constraints(y)
        G, D, L, *more = rest
        right = -flat(v)
        scaled = D * right
        u = torch.linalg.solve_triangular(L, scaled.unsqueeze(-1), upper=False).squeeze(-1)
        nu = mu = None
        tangent = u
        if constrained:
            A, V, S, nu = more
            mu = _solved(S, _times(V.mT, u))
            tangent = u - _times(V, mu)
        z = torch.linalg.solve_triangular(L.mT, tangent.unsqueeze(-1), upper=True).squeeze(-1) * D
        z = z.to(y.dtype)
        # In y's type: its rounding in G z is one that G itself has.
        error = right - _times(G, z)
        size = torch.linalg.vector_norm(scaled, dim=-1)
        if mu is not None:
            mu = mu.to(y.dtype)
            error = error - _times(A.mT, mu)
            off = _times(A, z)
            length = torch.linalg.vector_norm(A * D.unsqueeze(1), dim=-1)
            off = torch.linalg.vector_norm(off / length, dim=-1)
        left = torch.linalg.vector_norm(D * error, dim=-1)
        if mu is not None:
            left = left + off
        residual = torch.where(left == 0, left, left / size)

        def pairing(*moving: Tensor) -> Tensor:
            values = list(operands)
            for i, x in zip(wrt, moving, strict=True):
                values[i] = x
            there = problem.with_operands(values)

            def slope(y: Tensor) -> Tensor:
                value = there.objective(y).sum()
                if nu is not None:
                    value = value - (nu * there.all_constraints(y)).sum()
                return value

            total = (flat(grad(slope)(y)) * z).sum()
            if mu is not None:
                total = total + (mu * there.all_constraints(y)).sum()
            return total

        gradients = grad(pairing, argnums=tuple(range(len(wrt))))(*(operands[i] for i in wrt))
        clear = (residual <= limits.residual).all()
        return clear, residual.to(y.dtype), *gradients

    return found


def _rows(pull: Callable[..., tuple[Tensor, ...]], values: Tensor) -> Tensor:
    """The derivative (B, n, m) of values (B, n), of which each depends on its own item."""
    n = values.shape[-1]
    basis = torch.eye(n, dtype=values.dtype, device=values.device)
    found = vmap(pull)(basis.unsqueeze(1).expand(n, *values.shape))[0]
    return found.reshape(n, len(values), -1).movedim(0, 1)


def _times(M: Tensor, x: Tensor) -> Tensor:
    """M x for (B, n, k) and (B, k)."""
    if M.shape[-1] == 1:
        return M.squeeze(-1) * x
    if M.shape[-2] == 1:
        return (M.squeeze(-2) * x).sum(dim=-1, keepdim=True)
    return (M @ x.unsqueeze(-1)).squeeze(-1)


def _largest_ratio(r: Tensor, scale: Tensor) -> Tensor:
    """Of |r| to the sizes of its terms: 0/0 is 0."""
    return torch.where(r == 0, 0.0, r.abs() / scale).amax(dim=-1)


def _multipliers(A: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The ν (B, p) that minimises ‖g − Aᵀν‖, the rows' margin (`Certificate.licq`), and their least pivot."""
    p = A.shape[1]
    length = torch.linalg.vector_norm(A, dim=-1)
    if p == 1:
        one = torch.ones_like(length[:, 0])
        nu = _times(A, g) / length.square()
        return nu, one, torch.where(length[:, 0] > 0, one, 0.0)
    unit = A / length.unsqueeze(-1)
    gram = unit @ unit.mT
    L, pivot = _cholesky(gram)

    def solved(x: Tensor) -> Tensor:
        return torch.cholesky_solve(_times(unit, x).unsqueeze(-1), L).squeeze(-1)

    nu = solved(g)
    nu = nu + solved(g - _times(unit.mT, nu))
    values = torch.linalg.eigvalsh(gram)
    margin = (values[:, 0] / values[:, -1]).sqrt()
    return nu / length, margin, pivot


def _factors(G: Tensor, A: Tensor | None, lifted: bool) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """(G, D, L) and with constraints (A, V, S); and the least pivots."""
    if lifted and A is not None:
        # As much as the curvatures on the diagonal, along each constraint.
        weight = G.diagonal(dim1=-2, dim2=-1).abs().mean(dim=-1, keepdim=True)
        weight = weight / torch.linalg.vector_norm(A, dim=-1).square()
        G = G + A.mT @ (weight.unsqueeze(-1) * A)
    D = G.diagonal(dim1=-2, dim2=-1).double().rsqrt()
    L, pivot = _cholesky(G.double() * D.unsqueeze(-1) * D.unsqueeze(-2))
    pivots = [pivot]
    if A is None:
        return (G, D, L), pivots
    V = torch.linalg.solve_triangular(L, (A * D.unsqueeze(-2)).mT, upper=False)
    S = V.mT @ V
    if S.shape[-1] == 1:
        return (G, D, L, A, V, S.squeeze(-1)), pivots
    s = S.diagonal(dim1=-2, dim2=-1).rsqrt()
    F, pivot = _cholesky(s.unsqueeze(-1) * S * s.unsqueeze(-2))
    pivots.append(pivot)
    # S⁻¹ = (s⁻¹F)⁻ᵀ(s⁻¹F)⁻¹
    return (G, D, L, A, V, F / s.unsqueeze(-1)), pivots


def _cholesky(M: Tensor) -> tuple[Tensor, Tensor]:
    """The factor of M (B, n, n), and its least pivot (B,): 0 where there is no factor."""
    L, failed = torch.linalg.cholesky_ex(M)
    return L, torch.where(failed == 0, L.diagonal(dim1=-2, dim2=-1).amin(dim=-1), 0.0)


def _solved(factor: Tensor, t: Tensor) -> Tensor:
    """S⁻¹ t."""
    if factor.ndim == 2:
        return t / factor
    return torch.cholesky_solve(t.unsqueeze(-1), factor).squeeze(-1)
