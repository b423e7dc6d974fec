"""The solution of least norm where solutions form a set: how it is found, and how it is differentiated.

A node with ``selection = "least_norm"`` means, of all y that solve its problem, the one of least Euclidean
norm: the limit, for δ → 0, of the solutions with a term (δ/2)‖y‖² added. Near a solution y let V be an
orthonormal basis of the directions in which the Lagrangian curves on the tangent space of its constraints:
those that hold as equations, strongly active inequalities among them. The solutions nearby are then among the
points with
    h(y) = 0,      Vᵀ ∇_y L(y) = 0,                                                            (*)
equations with independent gradients beside those of h itself. So the one of least norm solves
    min ½‖y‖²    subject to (*) and to the other inequality constraints,
an ordinary problem with a regular solution. A `Problem` with a `Selection` states it; all that is known of
solutions, gradients of every order among it, is applied to it as to any other. V is a constant there: the
equations have the same solutions nearby for every V whose product with the curvature is regular.

*Where this holds.* (*) is no more than the set of solutions if that is a smooth surface whose tangent space
is the null space of the curvature, here and at inputs nearby (f is Morse–Bott): a quadratic or any convex
function of A y for a matrix A of constant rank, the face of a linear program, |y₁y₂ − x|². It fails where a
valley is flat to an order higher than the second, as y⁴ at 0, and where the inputs change a rank or the
face: there the selected solution jumps. Both are looked for. The inputs that want a derivative are moved a
little, y along its valley, and then to (*). There all of ∇_y L must vanish, and the directions along (*) be
without curvature, as at y. `Selection.error` is what is found, and the policy acts on it.

The set need not be convex. Then it is a local minimum of the norm on it, which the point that the solver has
found leads to, and one of several that are equal has no gradient, as for any problem.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .active_set import ActiveSet, active_set
from .backward.precision import uncertainty
from .certificate import measure, tolerance_of
from .errors import InputError
from .kinks import Kinks, kinks_of
from .lagrangian import (
    constraint_jacobian,
    constraint_set,
    lagrangian_hessian,
    least_squares_multipliers,
    pseudo_inverse,
    row_basis,
)
from .linalg.items import apply
from .linalg.kkt import NOISE_FACTOR, RANK_REVEALING_SIZE, EigenInverse, KKTInverse, unit_curvature
from .node import DeclarativeNode
from .perturbation import STEP, perturb, relative_changes
from .problem import Problem, flat
from .solution import Solution, Status
from .solver import as_solver

#: A curvature within so many tolerances of the largest may be what an inexact solution leaves of none; and no
#: larger one.
_LOOSE, _LOOSEST = 10, 1e-2
_ROUNDS = 24
_RESTORATIONS = 4
#: The part of the way to the least norm that is left out, from which on an item is given up.
_GIVEN_UP = 0.99
#: δ, beside the slope of f for a y of size 1.
_DAMPING = 1e-3
#: Exponents of the rounding: how far inputs and y are moved to see whether solutions remain a set of the
#: same kind, and from where on what is seen there is no rounding. A change of rank shows in the square of the
#: first.
_MOVED, _SEEN = 0.2, 0.65
_INTEGERS = {torch.float64: torch.int64, torch.float32: torch.int32}
_FLOATS = {integer: real for real, integer in _INTEGERS.items()}


@dataclass(frozen=True)
class Selection:
    """What makes of a problem that of the solution of least norm, see the module's text.

    Attributes:
        bits: V (B, m, r), columns of zero where an item has fewer, in the memory of integers: as an operand
            it goes through transforms with the batch, and is nothing to differentiate or to perturb.
        held: the strongly active inequality constraints, equations here; None where there are none.
        kinks: of the node's functions at y.
        centre: (B, m) likewise, the point to be near to; None for 0.
        least: of the curvatures that count the least over the largest (B,).
        saddle: how negative the least curvature is, relative to the largest (B,).
        error: how far solutions nearby are from a set of the same kind (B,), relative; 0 where they are one.
    """

    bits: Tensor
    held: ActiveSet | None
    kinks: Kinks | None
    centre: Tensor | None = None
    least: Tensor | None = None
    saddle: Tensor | None = None
    error: Tensor | None = None

    @property
    def masks(self) -> list[Tensor]:
        """The operands without a derivative that it brings: those that tell what is active, and `bits`."""
        held = [x.active for x in (self.held, self.kinks) if x is not None and x.count]
        return [*held, self.bits, *([] if self.centre is None else [self.centre])]

    def with_masks(self, masks: Iterator[Tensor]) -> Selection:
        """The same with other `masks`."""
        held, kinks = self.held, self.kinks
        if held is not None and held.count:
            held = held.with_mask(next(masks))
        if kinks is not None and kinks.count:
            kinks = kinks.with_mask(next(masks))
        bits = next(masks)
        centre = None if self.centre is None else next(masks)
        return dataclasses.replace(self, held=held, kinks=kinks, bits=bits, centre=centre)

    def of_items(self, items: Any) -> Selection:
        """That of some items of the batch."""
        held = None if self.held is None else self.held.of_items(items)
        kinks = None if self.kinks is None else self.kinks.of_items(items)
        tensors = {k: v[items] for k, v in vars(self).items() if isinstance(v, Tensor)}
        return dataclasses.replace(self, held=held, kinks=kinks, **tensors)

    @property
    def directions(self) -> int:
        """How many columns V has."""
        return self.bits.shape[-1]

    def objective(self, y: Tensor) -> Tensor:
        """½‖y‖², or the same of the distance from the centre, (B,)."""
        off = flat(y) if self.centre is None else flat(y) - _from_bits(self.centre, y)
        return 0.5 * off.square().sum(dim=1)

    def values(self, stated: Problem, y: Tensor) -> Tensor:
        """Vᵀ∇_y L (B, r) of the problem as it is stated."""
        constraints = constraint_set(stated, y)
        nu = constraints.multipliers(constraints.gradient())
        return apply(_from_bits(self.bits, y).mT, constraints.slope(nu))

    def inequalities(self, stated: Problem, y: Tensor) -> Tensor | None:
        """g (B, q) of the problem as it is stated, with those that are equations here out of the way."""
        g = stated.inequalities(y)
        if g is None or self.held is None or not self.held.count:
            return g
        own, _, _ = stated.inequality_sizes(y)
        away = torch.full_like(g, -torch.inf)
        away[:, :own] = -1.0
        return torch.where(self._held(stated, y, g), away, g)

    def bounds(self, stated: Problem, y: Tensor) -> tuple[Tensor, Tensor] | None:
        """Likewise of the bounds (B, m)."""
        pair, g = stated.bounds(y), stated.inequalities(y)
        if pair is None or g is None or self.held is None or not self.held.count:
            return pair
        m = pair[0].shape[1]
        held = self._held(stated, y, g)[:, -2 * m :]
        return (
            pair[0].masked_fill(held[:, :m], -torch.inf),
            pair[1].masked_fill(held[:, m:], torch.inf),
        )

    def _held(self, stated: Problem, y: Tensor, g: Tensor) -> Tensor:
        """Which of g are equations here (B, q), and of a fixed unknown both bounds."""
        assert self.held is not None
        held = torch.zeros_like(g, dtype=torch.bool)
        held = held.index_copy(1, self.held.rows, self.held.active)
        _, lower, upper = stated.inequality_sizes(y)
        if not lower:
            return held
        own, below, above = held.split([g.shape[1] - lower - upper, lower, upper], dim=1)
        gaps = g[:, -lower - upper : -upper] + g[:, -upper:]  # lower − upper
        either = (below | above) & (gaps == 0)
        return torch.cat([own, below | either, above | either], dim=1)


def _to_bits(x: Tensor) -> Tensor:
    return x.detach().contiguous().view(_INTEGERS[x.dtype])


def _from_bits(bits: Tensor, like: Tensor) -> Tensor:
    return bits.view(_FLOATS[bits.dtype]).to(like.dtype)


# -- where solutions form a set --------------------------------------------------------------------


@dataclass(frozen=True)
class _Valley:
    """The curvatures at a point.

    Attributes:
        basis: V (B, m, r). null: an orthonormal basis (B, m, m) of the directions without curvature, with
            columns of zero; None where no item has any.
        least, saddle: see `Selection`.
    """

    basis: Tensor
    null: Tensor | None
    least: Tensor
    saddle: Tensor | None

    def flat(self, like: Tensor) -> Tensor:
        """Which items have a direction without curvature, (B,)."""
        if self.null is None:
            return torch.zeros(len(like), dtype=torch.bool, device=like.device)
        return (self.null != 0).flatten(1).any(dim=1)


def _stated_at(problem: Problem, y: Tensor, tolerance: float) -> Problem:
    """The problem with what holds as an equation for all solutions near y."""
    problem = problem.with_active_set(active_set(problem, y, tolerance, strongly=True))
    return problem.with_kinks(kinks_of(problem, y, problem.record(y), tolerance))


def _valley(stated: Problem, y: Tensor, loose: float = 0.0) -> _Valley:
    """The curvatures at y, where those below ``loose`` of the largest count as none."""
    A = constraint_jacobian(stated, y)
    nu = None if A is None else least_squares_multipliers(A, stated.gradient(y))
    G = lagrangian_hessian(stated, y, nu)
    m = G.shape[-1]
    if m > RANK_REVEALING_SIZE:
        raise InputError(
            f"{type(stated.node).__name__}: selection = 'least_norm' takes the eigenvalues of the curvature, "
            f"of up to {RANK_REVEALING_SIZE} unknowns; this y has {m}"
        )

    def measured() -> Tensor:
        return uncertainty(lagrangian_hessian, G, stated, y, nu, torch.finfo(y.dtype).eps)

    noise = G.abs() * (loose / (NOISE_FACTOR * m)) if loose else None
    found = KKTInverse(G, A, noise=noise, measure=measured)
    rows = y.new_zeros(len(y), m, 0) if A is None else row_basis(A)
    null = found.null
    taken = rows @ rows.mT
    if null is not None:
        null = null.to(y.dtype)
        taken = taken + null @ null.mT
    values, vectors = torch.linalg.eigh(torch.where(found.good.reshape(-1, 1, 1), taken, 0.0))
    curved = values < 0.5
    basis = vectors * curved.unsqueeze(-2)
    basis = basis[..., : int(curved.sum(dim=-1).max()) if len(y) else 0]
    least = y.new_ones(len(y))
    if isinstance(found.inverse, EigenInverse):
        inverse = found.inverse.inverse.abs()
        kept = inverse > 0
        sizes = torch.where(kept, 1 / torch.where(kept, inverse, 1.0), torch.nan)
        largest = sizes.nan_to_num(nan=0.0).amax(dim=-1)
        smallest = sizes.nan_to_num(nan=torch.inf).amin(dim=-1)
        least = torch.where(kept.any(dim=-1), smallest / largest, 1.0).to(y.dtype)
    saddle = found.inverse.saddle
    return _Valley(basis, null, least, None if saddle is None else saddle.to(y.dtype))


def _selected(
    stated: Problem, valley: _Valley, centre: Tensor | None = None, error: Tensor | None = None
) -> Problem:
    selection = Selection(
        bits=_to_bits(valley.basis),
        held=stated.active_set,
        kinks=stated.kinks,
        centre=None if centre is None else _to_bits(centre),
        least=valley.least,
        saddle=valley.saddle,
        error=error,
    )
    return stated.with_active_set(None).with_kinks(None).with_selection(selection)


def _restored(selected: Problem, y: Tensor, items: Tensor) -> Tensor:
    """The nearest point of (*) for these items, by the method of Gauss and Newton."""
    for _ in range(_RESTORATIONS):
        with torch.no_grad():
            values = selected.constraints(y)
        A = constraint_jacobian(selected, y)
        if values is None or A is None:
            return y
        step = apply(pseudo_inverse(A), values)
        if bool((step.norm(dim=1) <= 4 * torch.finfo(y.dtype).eps * flat(y).norm(dim=1)).all()):
            return y
        y = torch.where(_column(items, y), y - step.reshape(y.shape), y)
    return y


def _column(items: Tensor, y: Tensor) -> Tensor:
    return items.reshape(-1, *[1] * (y.ndim - 1))


def _settled(stated: Problem, y: Tensor, tolerance: float) -> Tensor:
    """y of items that lie in a valley, moved so near to its bottom that its curvatures are told from 0."""
    rough = _valley(stated, y, min(_LOOSE * tolerance, _LOOSEST))
    flat_items = rough.flat(y)
    return _restored(_selected(stated, rough), y, flat_items) if bool(flat_items.any()) else y


def _in_float64(problem: Problem, y: Tensor, work: Callable[[Problem, Tensor], Any]) -> Any:
    """What is done in float64, unless the node's own tensors keep it to their dtype."""
    if y.dtype == torch.float64 or y.device.type == "mps":
        return work(problem, y)
    try:
        return work(problem.in_float64(), y.double())
    except RuntimeError:
        return work(problem, y)


# -- the solution of least norm --------------------------------------------------------------------


@torch.no_grad()
def least_norm(problem: Problem, solution: Solution) -> Solution:
    """The solutions of least norm, from any of each item's; those of items with one solution as they are.

    Args:
        solution: batched.
    """
    solution = _with_bounded(problem, solution)
    y = solution.y.detach()
    tolerance = tolerance_of(problem, y, None)
    status = torch.as_tensor(solution.status, device=y.device)
    usable = flat(y).isfinite().all(dim=1) & (status < int(Status.NON_FINITE))
    if not bool(usable.any()):
        return solution

    def work(problem: Problem, y: Tensor) -> Tensor:
        return _least_norm(problem, y, usable, tolerance)

    found = _in_float64(problem, torch.where(_column(usable, y), y, 0.0), work)
    found = torch.where(_column(usable, y), found.to(y.dtype), y)
    return dataclasses.replace(solution, y=found, uniqueness=None)


def _with_bounded(problem: Problem, solution: Solution) -> Solution:
    """The solutions, with those of items that only seem unbounded.

    Along a face that reaches to infinity f falls by rounding. With a small term (δ/2)‖y‖² it does not, and of
    a linear program the solution then is the one of least norm, if δ is small enough.
    """
    status = torch.as_tensor(solution.status, device=solution.y.device)
    lost = (status == int(Status.UNBOUNDED)).nonzero()[:, 0]
    node = problem.node
    if not len(lost) or type(node).solve is not DeclarativeNode.solve:
        return solution
    flags = problem.operands_batched
    pairs = zip(problem.operands, flags, strict=True)
    part = problem.resize([x[lost] if own else x for x, own in pairs], len(lost), flags)
    try:
        start = part.start().to(solution.y.dtype)
    except InputError:
        return solution
    slope = flat(part.gradient(start)).norm(dim=1) / flat(start).norm(dim=1).clamp(min=1)
    delta = _DAMPING * float(slope.min())
    damped = copy.copy(node)

    def objective(*xs: Any, y: Any) -> Tensor:
        parts = [y] if isinstance(y, Tensor) else list(y.values() if isinstance(y, dict) else y)
        norm = sum((x.square().sum() for x in parts), parts[0].new_zeros(()))
        return type(node).objective(damped, *xs, y=y) + delta / 2 * norm

    damped.objective = objective  # type: ignore[method-assign]
    y = damped.solve_problem(part.with_node(damped), start).y.to(solution.y.dtype)
    tolerance = tolerance_of(part, y, None)
    sound = flat(y).isfinite().all(dim=1)
    y = torch.where(_column(sound, y), y, start)
    stated = _stated_at(part, y, tolerance)
    found = sound & measure(stated, Solution(y).batched(len(y)), tolerance).solved
    whole, every = solution.y.clone(), status.clone()
    whole[lost[found]], every[lost[found]] = y[found], int(Status.CONVERGED)
    return dataclasses.replace(solution, y=whole, status=every)


def _least_norm(problem: Problem, given: Tensor, usable: Tensor, tolerance: float) -> Tensor:
    stated = _stated_at(problem, given, tolerance)
    y = _settled(stated, given, tolerance)
    valley = _valley(stated, y)
    in_valley = valley.flat(y) & usable
    if not bool(in_valley.any()):
        return given
    solver = as_solver("interior_point" if problem.node.has_inequalities else "newton")
    done, share = ~in_valley, torch.zeros_like(flat(y)[:, 0])
    for _ in range(_ROUNDS):
        selected = _selected(stated, valley, centre=share.unsqueeze(1) * flat(y))
        found = solver.solve(selected, y).y
        there = torch.where(_column(done, y), y, found)
        good = _is_solution(problem, stated, selected, y, there, tolerance)
        good = good & ~done
        y = torch.where(_column(good, y), there, y)
        stated = _stated_at(problem, y, tolerance)
        valley = _valley(stated, y)
        # V has turned on the way where the valley is curved: the same by the one that belongs to y now.
        nearest = good & (share == 0) & _is_nearest(_selected(stated, valley), y, tolerance)
        # One that led off the solutions goes on by shorter ways.
        share = torch.where(good, torch.where(share > 0.1, share / 2, 0.0), (1 + share) / 2)
        done = done | nearest | (share >= _GIVEN_UP)
        if bool(done.all()):
            break
    y = _without_rounding(problem, y, given, in_valley, tolerance)
    return torch.where(_column(in_valley, y), y, given)


def _is_solution(
    problem: Problem, stated: Problem, selected: Problem, y: Tensor, there: Tensor, tolerance: float
) -> Tensor:
    """Whether these are solutions as good as y, (B,)."""
    sound = flat(there).isfinite().all(dim=1)
    there = torch.where(_column(sound, y), there, y)
    certificate = measure(stated, Solution(there).batched(len(y)), tolerance)
    slope = flat(stated.gradient(perturb(there, STEP[y.dtype], 0, 0)) - stated.gradient(there))
    unit = (slope.norm(dim=1) / STEP[y.dtype]) * flat(there).norm(dim=1)
    higher = problem.objective(there) - problem.objective(y)
    rounding = 64 * torch.finfo(y.dtype).eps * problem.objective(y).abs()
    good = sound & certificate.solved & (higher <= tolerance * unit + rounding)
    active = active_set(selected, there, tolerance)
    return good if active is None else good & (active.violation <= tolerance)


def _is_nearest(selected: Problem, y: Tensor, tolerance: float) -> Tensor:
    """Whether y solves the problem of least norm to what a step of Newton's method leaves, (B,)."""
    selected = selected.with_active_set(active_set(selected, y, tolerance))
    constraints = constraint_set(selected, y, in_numbers=True)
    slope = constraints.slope(constraints.multipliers(constraints.gradient()))
    return slope.norm(dim=1) <= torch.finfo(y.dtype).eps ** 0.6 * flat(y).norm(dim=1)


def _without_rounding(
    problem: Problem, y: Tensor, given: Tensor, items: Tensor, tolerance: float
) -> Tensor:
    """y with 0 where all of it is what rounding has left of that."""
    eps = torch.finfo(y.dtype).eps
    nothing = items & (flat(y).norm(dim=1) <= 64 * eps * flat(given).norm(dim=1))
    if not bool(nothing.any()):
        return y
    zero = torch.where(_column(nothing, y), 0.0, y)
    solved = measure(
        _stated_at(problem, zero, tolerance), Solution(zero).batched(len(y)), tolerance
    )
    return torch.where(_column(nothing & solved.solved, y), 0.0, y)


# -- the problem of which it is the solution -------------------------------------------------------


@torch.no_grad()
def problem_of_selection(
    problem: Problem, y: Tensor, tolerance: float, moving: Sequence[bool] = ()
) -> Problem:
    """The problem whose solution at y is the selected one: with a `Selection`, and the constraints that are
    active beside its equations.

    Args:
        moving: for each of the first operands, whether a derivative may be asked for; the others' may.
    """

    def work(wide: Problem, y: Tensor) -> tuple[_Valley, Tensor, Tensor]:
        stated = _stated_at(wide, y, tolerance)
        y = _settled(stated, y, tolerance)
        valley = _valley(stated, y)
        return valley, _error_nearby(stated, y, valley, moving), y

    valley, error, _ = _in_float64(problem, y, work)
    stated = _stated_at(problem, y, tolerance)
    narrow = _Valley(
        valley.basis.to(y.dtype),
        None,
        valley.least.to(y.dtype),
        None if valley.saddle is None else valley.saddle.to(y.dtype),
    )
    selected = _selected(stated, narrow, error=error.to(y.dtype))
    return selected.with_active_set(active_set(selected, y, tolerance))


def _error_nearby(stated: Problem, y: Tensor, valley: _Valley, moving: Sequence[bool]) -> Tensor:
    """See `Selection.error`."""
    in_valley = valley.flat(y)
    error = torch.zeros_like(flat(y)[:, 0])
    if valley.null is None or not bool(in_valley.any()):
        return error
    eps = torch.finfo(y.dtype).eps
    seen = torch.full_like(error, torch.nan)
    for sign in (1, -1):
        there, point = _moved(stated, y, valley.null, sign * eps**_MOVED, moving)
        selected = _selected(there, valley)
        point = _restored(selected, point, in_valley)
        found = torch.maximum(_slope_left(there, point), _curvature_gained(there, selected, point))
        seen = torch.fmax(seen, found)  # NaN: beyond the functions' domain
    seen = torch.where(seen <= eps**_SEEN, 0.0, seen).nan_to_num(nan=torch.inf)
    return torch.where(in_valley, seen, 0.0)


def _moved(
    stated: Problem, y: Tensor, null: Tensor, step: float, moving: Sequence[bool]
) -> tuple[Problem, Tensor]:
    """Other inputs, and a y along the valley."""
    operands = stated.operands
    for k, x in enumerate(operands):
        if not x.is_floating_point() or not (k >= len(moving) or moving[k]) or not x.numel():
            continue
        size = flat(x).abs().amax(dim=1) if stated.operands_batched[k] else x.abs().amax()
        size = torch.where(size > 0, size, 1.0)
        size = size.reshape(-1, *[1] * (x.ndim - 1)) if stated.operands_batched[k] else size
        shape = x.shape[1:] if stated.operands_batched[k] else x.shape
        operands[k] = x + size * relative_changes(x, shape, step, k + 1, 0)
    pattern = relative_changes(y, (flat(y).shape[1],), 1.0, 0, 0).expand(len(y), -1)
    way = apply(null, apply(null.mT, pattern))
    length = way.norm(dim=1, keepdim=True)
    size = flat(y).norm(dim=1, keepdim=True)
    size = torch.where(size > 0, size, 1.0)
    way = step * size * way / torch.where(length > 0, length, 1.0)
    return stated.with_operands(operands), y + way.reshape(y.shape)


def _slope_left(stated: Problem, y: Tensor) -> Tensor:
    """‖∇_y L‖ relative to what it changes by with a relative change of operands and y, (B,)."""
    constraints = constraint_set(stated, y, in_numbers=True)
    nu = constraints.multipliers(constraints.gradient())
    slope = constraints.slope(nu)
    step, scale = STEP[y.dtype], torch.zeros_like(slope[:, 0])
    flags = stated.operands_batched
    for probe in range(2):
        operands = [
            perturb(x, step, k + 1, probe) if own else x
            for k, (x, own) in enumerate(zip(stated.operands, flags, strict=True))
        ]
        there = constraint_set(
            stated.with_operands(operands), perturb(y, step, 0, probe), in_numbers=True
        )
        scale = torch.maximum(scale, (there.slope(nu) - slope).norm(dim=1) / step)
    size = slope.norm(dim=1)
    return torch.where(size == 0, size, size / scale)


def _curvature_gained(stated: Problem, selected: Problem, y: Tensor) -> Tensor:
    """The curvature along (*) at y, in units in which each unknown's own is 1, (B,)."""
    A = constraint_jacobian(stated, y)
    nu = None if A is None else least_squares_multipliers(A, stated.gradient(y))
    G = lagrangian_hessian(stated, y, nu)
    bad = ~(G.flatten(1).isfinite().all(dim=1) & flat(y).isfinite().all(dim=1))
    G = G.masked_fill(bad.reshape(-1, 1, 1), 0.0)
    rows = constraint_jacobian(selected, y)
    eye = torch.eye(G.shape[-1], dtype=G.dtype, device=G.device)
    Q = G.new_zeros(*G.shape[:-1], 0) if rows is None else row_basis(rows)
    along = eye - Q @ Q.mT
    rounding = 32 * torch.finfo(G.dtype).eps * G.abs().flatten(1).amax(dim=1, keepdim=True)
    D = unit_curvature(G, A, rounding.expand(-1, G.shape[-1]))
    values, vectors = torch.linalg.eigh((along + along.mT) / 2)
    null = vectors * (values > 0.5).unsqueeze(-2)
    length = (null / D.unsqueeze(-1)).norm(dim=-2, keepdim=True)
    null = null / torch.where(length > 0, length, 1.0)
    return (null.mT @ G @ null).flatten(1).norm(dim=1).masked_fill(bad, torch.nan)
