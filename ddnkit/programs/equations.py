"""The equations of a call as two functions of tensors alone, without a branch on a value: to be traced.

`at_solution` says all that is to be known at y, and whether it is clear; `way_back` takes an incoming
gradient v to the operands (`ddnkit.implicit.solution_equation` derives the formula). They are the implicit
function theorem for the plain case, and know when it is plain: what is not clearly regular, a strict
minimum and solved, is left to the eager way, which has more patience. So they raise no alarm, and give no
verdict but "trusted". A y that could be nearer to the solution is left to the eager way as well, which
looks at what that does to the gradient.

The system, in units in which each unknown has curvature 1 (`ddnkit.linalg.kkt`), D = |diag G|^-½:
    G̃ = D G D = L Lᵀ,   V = L⁻¹ D Aᵀ,   S = VᵀV = A G⁻¹ Aᵀ,
and for right sides r, and c of the constraints,
    u = L⁻¹ D r,   μ = S⁻¹(Vᵀu − c),   z = D L⁻ᵀ(u − V μ)       solve    G z + Aᵀμ = r,   A z = c.
Cholesky's factors exist where G is positive definite, which says that y is a strict minimum. Where it is
so on the tangent space alone, G + Aᵀ R A in place of G, R > 0 diagonal, changes neither z nor the set of
solutions, and for A z = 0 not μ either (`Shape.TANGENT`).

A Hessian that is diagonal, as that of an entropy is, is no matrix here (`Shape.DIAGONAL`): two products with
it tell its diagonal, and that there is nothing beside it.

How regular is read off the factors: with unit diagonal in G̃, Lᵢᵢ² is what is left of the curvature of the
i-th unknown when the ones before it may move along.

Scales. A component of ∇_y L or of h is small beside the terms that meet in it, |G||y| + |Aᵀ||ν| and |A||y|:
a backward error by component (Oettli and Prager), of y and the multipliers alone. What the inputs could take
on themselves is left out, so that the figure is no smaller than that of the certificate.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad, vmap

from ..certificate import ONE_PROBE_SIZE, PROBES_OF_FEW, clear_margin, settled_each
from ..lagrangian import Unconstrained, constraint_set, objective_gradient, vjp
from ..perturbation import STEP, relative_changes
from ..problem import Problem, flat
from ..solution import SETTLED


class Shape(enum.Enum):
    """What G is taken for: positive definite, so on the tangent space alone, or a diagonal."""

    DEFINITE = enum.auto()
    TANGENT = enum.auto()
    DIAGONAL = enum.auto()


class Limits(NamedTuple):
    """What is clear.

    Attributes:
        rounding: largest stationarity and infeasibility, so that nothing better is to be had.
        residual: largest residual of the adjoint system, relative.
        pivot: least pivot of a factor of a matrix with unit diagonal.
        margin: least margin of the constraints' rows, as the certificate has it.
    """

    rounding: float
    residual: float
    pivot: float
    margin: float

    @classmethod
    def of(cls, dtype: torch.dtype, tolerance: float) -> Limits:
        """For problems of that type."""
        eps = torch.finfo(dtype).eps
        residual = 1e-5 if dtype == torch.float32 else 1e-9
        return cls(
            min(tolerance, SETTLED * eps),
            min(tolerance, residual),
            eps**0.25,
            clear_margin(dtype, tolerance),
        )


def at_solution(
    problem: Problem, limits: Limits, shape: Shape
) -> Callable[..., tuple[Tensor, ...]]:
    """The function of y (B, *y) and the operands that says what is to be known at y.

    It gives whether this is the plain case, of all items, and y solved to rounding; stationarity,
    feasibility and licq (B,), see `Certificate`; and what `way_back` needs.
    """

    def found(y: Tensor, *operands: Tensor) -> tuple[Tensor, ...]:
        Y = flat(y)
        here = local(problem.with_operands(operands), y, shape)
        r = here.gradient
        if shape is Shape.DIAGONAL:
            scale = (here.hessian * Y).abs()
        else:
            scale = (here.hessian * Y.unsqueeze(-2)).abs().sum(dim=-1)
        feasibility, licq = torch.zeros_like(Y[:, 0]), torch.ones_like(Y[:, 0])
        clear = []
        if here.rows is not None:
            A, size = here.rows.A, here.rows.A.abs()
            r = r - times(A.mT, here.rows.nu)
            scale = scale + times(size.mT, here.rows.nu.abs())
            feasibility = largest_ratio(here.rows.h, times(size, Y.abs()))
            licq = here.rows.margin
            clear += [here.rows.pivot >= limits.pivot, licq >= limits.margin]
            clear.append(feasibility <= limits.rounding)
        stationarity = largest_ratio(r, scale)
        system, pivot = factorise(here, shape)
        clear += [stationarity <= limits.rounding, pivot >= limits.pivot]
        # The eager way squares sizes, and says so where there is no number for that.
        clear.append((scale + Y.abs()).amax(dim=-1) <= torch.finfo(y.dtype).max ** 0.5)
        rest = [] if here.rows is None else [here.rows.nu]
        flags = torch.stack(clear)
        return flags.all(), stationarity, feasibility, licq, *system.parts(), *rest

    return found


def way_back(
    problem: Problem, limits: Limits, shape: Shape, wrt: Sequence[int]
) -> Callable[..., tuple[Tensor, ...]]:
    """The function of v, y, the rest of `at_solution`, and the operands, that gives the gradient.

    It gives whether the system is solved clearly, its residual (B,), and the gradient for each operand of
    ``wrt``.
    """

    def found(
        v: Tensor, y: Tensor, rest: Sequence[Tensor], *operands: Tensor
    ) -> tuple[Tensor, ...]:
        here = problem.with_operands(operands)
        rest, at = without_bounds(here, y, rest)
        constrained = stated(here, y) is not None
        system = System.of(rest[:-1] if constrained else rest, shape)
        nu = rest[-1] if constrained else None
        right = -flat(v)
        z, mu = system.solve(right)
        z = z.to(y.dtype)
        D, A = system.D, system.A
        # In y's type: its rounding in G z is one that G itself has.
        error = right - system.curvature_product(z)
        size = torch.linalg.vector_norm(D * right, dim=-1)
        if mu is not None and A is not None:
            mu = mu.to(y.dtype)
            error = error - times(A.mT, mu)
            length = torch.linalg.vector_norm(A * D.unsqueeze(1), dim=-1)
            if here.node.has_inequalities:  # of a row that does not hold
                length = torch.where(length > 0, length, 1.0)
            off = torch.linalg.vector_norm(times(A, z) / length, dim=-1)
        left = torch.linalg.vector_norm(D * error, dim=-1)
        if mu is not None:
            left = left + off
        residual = torch.where(left == 0, left, left / size)

        def pairing(*moving: Tensor) -> Tensor:
            values = list(operands)
            for i, x in zip(wrt, moving, strict=True):
                values[i] = x
            there = problem.with_operands(values)
            total = (flat(grad(lambda y: lagrangian(there, y, nu))(y)) * z).sum()
            if at is not None:
                total = total - (error * at.bound(there, y)).sum()
            h = None if mu is None else stated(there, y)
            return total if h is None or mu is None else total + (mu * h).sum()

        gradients = grad(pairing, argnums=tuple(range(len(wrt))))(*(operands[i] for i in wrt))
        clear = (residual <= limits.residual).all()
        return clear, residual.to(y.dtype), *gradients

    return found


#: Numbers up to which several points are evaluated as one batch: beyond it arithmetic is what takes time,
#: and memory is worth more.
_TOGETHER = 2**17


def measure(
    problem: Problem, y: Tensor, limits: Limits, tolerance: float
) -> Callable[..., tuple[Tensor, ...]]:
    """The function of y (B, *y) and the operands that says how well y is solved, with no matrix: for a way
    back that is the node's own.

    It gives whether all items pass; stationarity, feasibility and licq (B,), as the certificate measures
    them; and where nothing better is to be had (B,), `Certificate.settled`.

    Args:
        y: a solution, of whose shape others are.
    """
    step, shape, kind = STEP[y.dtype], y.shape, constraint_set(problem, y)
    few = shape[1:].numel() < ONE_PROBE_SIZE
    probes = range(PROBES_OF_FEW if few else 1)
    # As in the certificate: the normal part of rows that are scaled is scaled with them.
    by_rows = kind.normal_by_rows and shape[-2] >= ONE_PROBE_SIZE

    def factors(x: Tensor, stream: int) -> Tensor:
        """1 + c for each probe, (probes, 1, *x); of one problem (probes, *x)."""
        own = x.shape[1:-1] if by_rows and stream == 0 else x.shape[1:]
        changes = [relative_changes(x, own, step, stream, probe) for probe in probes]
        found = torch.stack(changes).add_(1)
        found = found.reshape(*found.shape, *[1] * (len(x.shape[1:]) - len(own)))
        found = found.expand(-1, *x.shape[1:]).contiguous()
        return found if len(y) == 1 else found.unsqueeze(1)

    moving = [(y, True), *zip(problem.operands, problem.operands_batched, strict=True)]
    change_by = [factors(x, k) if own else None for k, (x, own) in enumerate(moving)]
    y_factors = factors(y, 0)
    size = len(y) * sum(f.numel() for f in change_by if f is not None)
    together: list[Tensor | None] | None = None
    if size <= _TOGETHER:
        together = [
            None if f is None else torch.cat([torch.ones_like(f[:1]), f]) for f in change_by
        ]
    passes = y.new_tensor([[tolerance], [tolerance], [torch.finfo(y.dtype).max ** 0.5]])

    def found(y: Tensor, *operands: Tensor) -> tuple[Tensor, ...]:
        here, given = problem.with_operands(operands), (y, *operands)
        points = [(here, y)]
        for k in range(len(probes)):
            point, *there = (
                x if f is None else x * f[k] for x, f in zip(given, change_by, strict=True)
            )
            points.append((problem.with_operands(there), point))

        def gradients() -> Sequence[Tensor]:
            if together is None:
                return [objective_gradient(*point) for point in points]
            # As one batch: of a small problem an operation takes as long for one point as for two.
            Y, *there = (
                x if f is None else (x * f).reshape(-1, *x.shape[1:])
                for x, f in zip(given, together, strict=True)
            )
            batch = problem.resize(there, len(Y), problem.operands_batched)
            return objective_gradient(batch, Y).split(len(y))

        feasibility = torch.zeros_like(flat(y)[:, 0])
        licq, clear = torch.ones_like(feasibility), list[Tensor]()
        if kind.parametric:
            rows = _rows(here, y, objective_gradient(here, y))
            licq = rows.margin
            size = torch.linalg.vector_norm(times(rows.A.abs(), flat(y).abs()), dim=-1)
            feasibility = _ratio(torch.linalg.vector_norm(rows.h, dim=-1), size)
            clear = [rows.pivot >= limits.pivot, licq >= limits.margin]

            def slope(there: Problem, point: Tensor) -> Tensor:
                return flat(grad(lambda y: lagrangian(there, y, rows.nu))(point))

            r, *moved = (slope(*point) for point in points)
            changes = [x - r for x in moved]
        else:
            g, *moved = gradients()
            constraints = constraint_set(here, y)
            nu, feasibility = constraints.multipliers(g), constraints.off_manifold()
            r = constraints.less_normal(g, nu)
            if by_rows:
                # Less (1 + c) G in place of (1 + c) N + R: they differ by c R, and so a stationarity s
                # comes out between s/(1 + s) and s/(1 − s).
                scaled = [flat(f.reshape(1, *shape[1:])) for f in y_factors]
                changes = [
                    torch.addcmul(x, f, g, value=-1) for x, f in zip(moved, scaled, strict=True)
                ]
            else:
                changes = [
                    constraint_set(*point).less_normal(x, nu) - r
                    for x, point in zip(moved, points[1:], strict=True)
                ]
        lengths = [torch.linalg.vector_norm(x, dim=-1) for x in changes]
        scale = reduce(torch.maximum, lengths) / step
        stationarity = _ratio(torch.linalg.vector_norm(r, dim=-1), scale)
        settled = torch.maximum(stationarity, feasibility) <= SETTLED * torch.finfo(y.dtype).eps
        if kind.any_units:
            uneven = (r.abs() > settled_each(y) / step * changes[0].abs()).any(dim=-1)
            settled = settled & ~uneven
        good = (torch.stack([stationarity, feasibility, scale]) <= passes).all()
        if clear:
            good = good & torch.stack(clear).all()
        return good, stationarity, feasibility, licq, settled

    return found


class Rows(NamedTuple):
    """The constraints at y.

    Attributes:
        h: (B, p). A: their gradients (B, p, m). nu: the multipliers (B, p) that minimise ‖∇f − Aᵀν‖.
        margin: of the rows (B,), see `Certificate.licq`. pivot: of their Gram matrix, the least (B,).
    """

    h: Tensor
    A: Tensor
    nu: Tensor
    margin: Tensor
    pivot: Tensor


class Local(NamedTuple):
    """A problem at y.

    Attributes:
        gradient: ∇f (B, m).
        hessian: D²_yy L (B, m, m), or its diagonal (B, m).
        alone: whether there is nothing beside each entry of the diagonal (B, m), where that was asked for.
        rows: of the constraints, if there are any; zero for those that do not hold.
        there: which of the rows hold (B, p), None: all.
        free: which unknowns are at no bound (B, m), None: all.
    """

    gradient: Tensor
    hessian: Tensor
    alone: Tensor | None
    rows: Rows | None
    there: Tensor | None = None
    free: Tensor | None = None


def local(problem: Problem, y: Tensor, shape: Shape) -> Local:
    """The derivatives at y.

    Those of second order item by item, the items side by side: the other way round, a product with a
    matrix of each item would have to be made for each unknown anew.
    """
    g = objective_gradient(problem, y)
    free = isinstance(constraint_set(problem, y), Unconstrained)
    rows = None if free else _rows(problem, y, g)
    return Local(g, *hessian(problem, y, None if rows is None else rows.nu, shape), rows)


def hessian(
    problem: Problem, y: Tensor, nu: Tensor | None, shape: Shape
) -> tuple[Tensor, Tensor | None]:
    """`Local.hessian` and `Local.alone`."""

    def slope(here: Problem, y: Tensor, some: Tensor) -> Tensor:
        return flat(grad(lambda y: lagrangian(here, y, None if nu is None else some))(y))

    own = flat(y)[:, :0] if nu is None else nu
    if shape is not Shape.DIAGONAL:
        return jacobian(problem, y, own, slope), None
    values, pull = vjp(lambda y: slope(problem, y, own), y)
    index = torch.arange(1, values.shape[-1] + 1, dtype=values.dtype, device=values.device)
    pattern = (0.5 + (index * 0.6180339887498949) % 1.0).expand_as(values)
    d, found = flat(pull(torch.ones_like(values))[0]), flat(pull(pattern)[0])
    beside = (found - d * pattern).abs()
    alone = beside <= _ROUNDINGS * torch.finfo(values.dtype).eps * d.abs()
    return d, alone


def _rows(problem: Problem, y: Tensor, g: Tensor) -> Rows:
    h = problem.all_constraints(y)
    assert h is not None
    A = jacobian(problem, y, h[:, :0], lambda here, y, _: here.all_constraints(y))
    return Rows(h, A, *multipliers(A, g))


def stated(problem: Problem, y: Tensor) -> Tensor | None:
    """h, and g without the bounds, of all of them, (B, p + k); None where there are none."""
    h, k = problem.all_constraints(y), problem.inequality_sizes(y)[0]
    if not k:
        return h
    g = problem.inequalities(y)
    assert g is not None  # as k tells
    return g[:, :k] if h is None else torch.cat([h, g[:, :k]], dim=-1)


class AtBounds(NamedTuple):
    """Which unknowns are at a bound.

    Attributes:
        lower, upper: (B, m).
    """

    lower: Tensor
    upper: Tensor

    @property
    def free(self) -> Tensor:
        """Which are at none."""
        return ~(self.lower | self.upper)

    def bound(self, problem: Problem, y: Tensor) -> Tensor:
        """The bounds that they are at, (B, m); 0 for the others."""
        pair = problem.bounds(y)
        assert pair is not None  # as there are some to be at
        upper = torch.where(self.upper, pair[1], 0.0)
        return torch.where(self.lower, pair[0], upper)


def without_bounds(
    problem: Problem, y: Tensor, rest: Sequence[Tensor]
) -> tuple[Sequence[Tensor], AtBounds | None]:
    """What is left at a solution for the way back, without which unknowns are at bounds, and that."""
    if not any(problem.bound_sides(y)):
        return rest, None
    return rest[:-2], AtBounds(*rest[-2:])


#: Of an entry of the diagonal, that two products with it may differ by.
_ROUNDINGS = 64


def lagrangian(problem: Problem, y: Tensor, nu: Tensor | None) -> Tensor:
    """Of all items together, for multipliers of `stated`."""
    value, h = problem.objective(y).sum(), stated(problem, y)
    return value if h is None or nu is None else value - (nu * h).sum()


class System(NamedTuple):
    """The system at y with its factors (see the module's text), those in float64.

    Attributes:
        G: (B, m, m), or its diagonal (B, m).
        D: 0 for an unknown at a bound, which stays there: z is 0, and so are V and what u is made of.
        L: None for a diagonal, whose factor is one.
        A, V, S: None without constraints.
    """

    G: Tensor
    D: Tensor
    L: Tensor | None
    A: Tensor | None = None
    V: Tensor | None = None
    S: Tensor | None = None

    @classmethod
    def of(cls, parts: Sequence[Tensor], shape: Shape) -> System:
        """From its `parts`."""
        if shape is Shape.DIAGONAL:
            return cls(parts[0], parts[1], None, *parts[2:])
        return cls(*parts)

    def parts(self) -> list[Tensor]:
        """What there is of it."""
        return [x for x in self if x is not None]

    def curvature_product(self, z: Tensor) -> Tensor:
        """G z for (B, m)."""
        return self.G * z if self.L is None else times(self.G, z)

    def solve(self, r: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """z (B, m) and μ (B, p) with G z + Aᵀμ = r, A z = c; 0 where c is None. In float64."""
        u, mu = self.D * r, None
        if self.L is not None:
            u = torch.linalg.solve_triangular(self.L, u.unsqueeze(-1), upper=False).squeeze(-1)
        if self.V is not None and self.S is not None:
            t = times(self.V.mT, u)
            mu = _invert(self.S, t if c is None else t - c)
            u = u - times(self.V, mu)
        if self.L is not None:
            u = torch.linalg.solve_triangular(self.L.mT, u.unsqueeze(-1), upper=True).squeeze(-1)
        return self.D * u, mu


def factorise(here: Local, shape: Shape) -> tuple[System, Tensor]:
    """The system at y, and the least pivot of its factors (B,)."""
    G, A = here.hessian, None if here.rows is None else here.rows.A
    L: Tensor | None = None
    free = here.free
    if shape is Shape.DIAGONAL:
        assert here.alone is not None
        D = G.double().rsqrt()
        positive = G > 0 if free is None else (G > 0) | ~free
        clear = (here.alone & positive).all(dim=-1)
        D = D if free is None else torch.where(free, D, 0.0)
        pivot = torch.where(clear, torch.ones_like(D[:, 0]), 0.0)
    else:
        if shape is Shape.TANGENT and A is not None:
            # As much as the curvatures on the diagonal, along each constraint.
            along = A if free is None else A * free.unsqueeze(-2)
            weight = G.diagonal(dim1=-2, dim2=-1).abs().mean(dim=-1, keepdim=True)
            weight = weight / torch.linalg.vector_norm(along, dim=-1).square()
            if here.there is not None:
                weight = torch.where(here.there, weight, 0.0)
            G = G + along.mT @ (weight.unsqueeze(-1) * along)
        D = G.diagonal(dim1=-2, dim2=-1).double().rsqrt()
        D = D if free is None else torch.where(free, D, 0.0)
        scaled = G.double() * D.unsqueeze(-1) * D.unsqueeze(-2)
        L, pivot = cholesky(scaled if free is None else _with_ones(scaled, ~free))
    if A is None:
        return System(G, D, L), pivot
    V = (A * D.unsqueeze(-2)).mT
    if L is not None:
        V = torch.linalg.solve_triangular(L, V, upper=False)
    S = V.mT @ V
    if here.there is not None:
        S = _with_ones(S, ~here.there)
    if S.shape[-1] == 1:
        return System(G, D, L, A, V, S.squeeze(-1)), pivot
    s = S.diagonal(dim1=-2, dim2=-1).rsqrt()
    F, least = cholesky(s.unsqueeze(-1) * S * s.unsqueeze(-2))
    # S⁻¹ = (s⁻¹F)⁻ᵀ(s⁻¹F)⁻¹
    return System(G, D, L, A, V, F / s.unsqueeze(-1)), torch.minimum(pivot, least)


def _with_ones(M: Tensor, there: Tensor) -> Tensor:
    """M (B, n, n) with ones added to the diagonal ``there`` (B, n)."""
    if M.shape[-1] == 1:
        return M + there.unsqueeze(-1)
    return M + torch.diag_embed(there.to(M.dtype))


def jacobian(
    problem: Problem,
    y: Tensor,
    nu: Tensor,
    function: Callable[[Problem, Tensor, Tensor], Tensor | None],
) -> Tensor:
    """The derivative (B, n, m) of a function (1, n) of the problem of one item, y (1, *y) and ν (1, p)."""
    flags = problem.operands_batched

    def one(y: Tensor, nu: Tensor, *operands: Tensor) -> Tensor:
        inside = [x.unsqueeze(0) if own else x for x, own in zip(operands, flags, strict=True)]
        here = problem.resize(inside, 1, flags)

        def values(y: Tensor) -> Tensor:
            found = function(here, y.unsqueeze(0), nu.unsqueeze(0))
            assert found is not None
            return found.squeeze(0)

        found, pull = vjp(values, y)
        basis = torch.eye(len(found), dtype=found.dtype, device=found.device)
        return vmap(pull)(basis)[0].reshape(len(found), -1)

    dims = (0, 0, *(0 if own else None for own in flags))
    found: Tensor = vmap(one, in_dims=dims)(y, nu, *problem.operands)
    return found


def times(M: Tensor, x: Tensor) -> Tensor:
    """M x for (B, n, k) and (B, k)."""
    if M.shape[-1] == 1:
        return M.squeeze(-1) * x
    if M.shape[-2] == 1:
        return (M.squeeze(-2) * x).sum(dim=-1, keepdim=True)
    return (M @ x.unsqueeze(-1)).squeeze(-1)


def largest_ratio(r: Tensor, scale: Tensor) -> Tensor:
    """Of |r| to the sizes of its terms: 0/0 is 0."""
    return (r.abs() / (scale + torch.finfo(r.dtype).tiny)).amax(dim=-1)


def _ratio(size: Tensor, scale: Tensor) -> Tensor:
    """0/0 is 0."""
    return size / (scale + torch.finfo(size.dtype).tiny)


def multipliers(A: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The ν (B, p) that minimises ‖g − Aᵀν‖, the rows' margin (`Certificate.licq`), and their least pivot."""
    p = A.shape[1]
    length = torch.linalg.vector_norm(A, dim=-1)
    if p == 1:
        one = torch.ones_like(length[:, 0])
        nu = times(A, g) / length.square()
        return nu, one, torch.where(length[:, 0] > 0, one, 0.0)
    unit = A / length.unsqueeze(-1)
    gram = unit @ unit.mT
    L, pivot = cholesky(gram)

    def solve(x: Tensor) -> Tensor:
        return torch.cholesky_solve(times(unit, x).unsqueeze(-1), L).squeeze(-1)

    nu = solve(g)
    nu = nu + solve(g - times(unit.mT, nu))
    values = torch.linalg.eigvalsh(gram)
    margin = (values[:, 0] / values[:, -1]).sqrt()
    return nu / length, margin, pivot


def cholesky(M: Tensor) -> tuple[Tensor, Tensor]:
    """The factor of M (B, n, n), and its least pivot (B,): 0 where there is no factor."""
    L, failed = torch.linalg.cholesky_ex(M)
    return L, torch.where(failed == 0, L.diagonal(dim1=-2, dim2=-1).amin(dim=-1), 0.0)


def _invert(factor: Tensor, t: Tensor) -> Tensor:
    """S⁻¹ t."""
    if factor.ndim == 2:
        return t / factor
    return torch.cholesky_solve(t.unsqueeze(-1), factor).squeeze(-1)
