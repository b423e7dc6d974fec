"""The costly figures of a certificate: curvature, condition, and a bound on the gradient's error.

Curvatures are eigenvalues of P G P on the tangent space: all of them for few unknowns, the extreme ones
by Lanczos for many (a lowest one that is then an upper bound). They are those in y's own units where these
tell the least from rounding. An entropy's range over any number of decades, in units that nobody has
chosen: where the least is not told, the unknowns are measured in units of curvature 1
(`ddnkit.linalg.kkt`), and curvature and condition are those of G̃ = D G D on the null space of A D. Signs
are the same in either (Sylvester's law of inertia), and so is what is singular.

Error bound, for an incoming gradient v, or of the worst of three where there is none yet. At a point y
that solves the problem inexactly, one step of Newton's method,
    y⁺ = y + n + (P G P)⁺ P(−∇L − G n),    n = −A⁺h,
lies nearer to the solution by the square of the distance. The gradient there differs from the one at y
by the error of the latter, up to the same square. With ρ the reduction of ‖∇L‖ by the step, the error
is estimated as ‖g(y) − g(y⁺)‖ / ((1 − ρ)‖g(y⁺)‖), doubled for safety, plus what rounding and the adjoint
residual may add (and, of a solution to the last digits, its backward error, whose step would be rounding):
the condition times each, and what the gradient moves by when each entry of y, and of the linear system's
solution, is moved by a few roundings, which finds terms that cancel in the gradient itself. In float32 also
how far it is from the gradient of the same problem in float64, which tells the rounding of the last passes.
Where the step does not reduce ‖∇L‖ by half, y is too far for any estimate: infinity.

With certify="fast" the change by that step is all that is looked at, and only of a y that is not solved to
rounding (`Certificate.settled`, `solution_error`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from .backward.form import BackwardForm
from .backward.precision import SAME_OPERATOR, float64_problem, perturb_by_rounding, uncertainty
from .backward.tangent_operator import Projector, hessian_operator, matrix_of
from .certificate import TOLERANCE, Certificate
from .gauge import vertical_direction
from .implicit.solution_equation import gradient_of_operands
from .implicit.tangent_equation import LinearSystems
from .kinks import kinks_of
from .lagrangian import (
    OnManifold,
    constraint_set,
    lagrangian_hessian,
    least_squares_multipliers,
)
from .linalg.items import apply
from .linalg.kkt import NOISE_FACTOR, wide_dtype
from .linalg.lanczos import extreme_eigenvalues
from .problem import Problem, flat
from .solution import Solution

#: Unknowns up to which all curvatures are computed.
_ALL_CURVATURES = 256
_PROBES = 3
#: Roundings of its entries that y is moved by.
_MOVED_BY = 4
#: A slope within so many of those moves is y's own rounding, or that of its evaluation.
_SLOPE_ROUNDINGS = 16
#: What the gradient moves by then may by chance be this much less than what rounding can make of it.
_CHANCE = 16
#: Refinements of a step, while it leads no nearer.
_STEPS_OF_SMALL = 4
#: Of the probes; not one that anyone draws inputs with, which would make them the same numbers.
_SEED = 0x5EED_A55E


@torch.no_grad()
def assess(
    problem: Problem,
    solution: Solution,
    form: BackwardForm,
    certificate: Certificate,
    v: Tensor | None = None,
    wanted: Sequence[bool] = (),
) -> Certificate:
    """The certificate with `curvature`, `condition` and `error_bound` measured.

    Args:
        problem, solution: a solved batch.
        form: solves the linear systems.
        v: (B, *y), the incoming gradient that the bound is for; None for the worst of three others.
        wanted: of the first operands, whether a derivative may be asked for; if of none, all are.
    """
    y = solution.y
    if len(y) == 0:
        empty = y.new_zeros(0)
        return dataclasses.replace(certificate, curvature=empty, condition=empty, error_bound=empty)
    nu = _multipliers(problem, y)
    curvature, condition = _curvatures(problem, y, nu)
    bound = _error_bound(problem, y, nu, form, certificate, condition, v, wanted)
    return dataclasses.replace(
        certificate, curvature=curvature, condition=condition, error_bound=bound
    )


@torch.no_grad()
def error_bound(
    problem: Problem,
    y: Tensor,
    form: BackwardForm,
    certificate: Certificate,
    v: Tensor,
    wanted: Sequence[bool] = (),
) -> Tensor:
    """The bound for one incoming gradient v (B, *y), given the curvatures of an assessed certificate."""
    assert certificate.condition is not None
    nu = _multipliers(problem, y)
    return _error_bound(problem, y, nu, form, certificate, certificate.condition, v, wanted)


@torch.no_grad()
def solution_error(
    problem: Problem,
    y: Tensor,
    nu: Tensor,
    systems: LinearSystems,
    certificate: Certificate,
    rough: Tensor,
    v: Tensor,
    wanted: Sequence[bool] = (),
) -> Tensor:
    """How much y, and the gradient for v (B, *y), change by a step of Newton's method from y, relative.

    Of each operand by itself, whose units may be any: the largest, doubled. It is no bound, but of the size
    of the gradient's error, whatever the units and the offset of data and y, and however flat the valley.

    Args:
        rough: items (B,) that it is asked for; 0 for the others.
        wanted: as `assess` takes it.
    """
    better, before, after = _newton_step(problem, y, nu, systems)
    better = torch.where(rough.reshape(-1, *[1] * (y.ndim - 1)), better, y)
    held = _kinks_hold(problem, better, certificate.tolerance)
    problem = _for_each_item(problem)
    wrt = _wanted_operands(problem, wanted)
    here, there = (_gradients(problem, point, v, systems, wrt) for point in (y, better))
    changes, sizes = _distances(here, there), _sizes(problem, there, wrt)
    error = torch.where(changes > 0, changes / sizes, 0.0).amax(dim=0)
    of_y = flat(better - y).norm(dim=-1)
    size = flat(better).norm(dim=-1)
    if (
        problem.kinks is not None
    ):  # held at 0, an entry is nothing beside the size that y is measured by
        size = torch.maximum(size, problem.kinks.size * better[0].numel() ** 0.5)
    of_y = torch.where(of_y > 0, of_y / size, 0.0)
    # Of a v that is normal up to that error of y, as of a loss that the constraints hold constant, the
    # gradient is zero up to it, and has no relative error.
    eps = torch.finfo(y.dtype).eps
    tangent = constraint_set(problem, y, in_numbers=True).project(flat(v)).norm(dim=-1)
    idle = tangent <= (4 * of_y + 64 * eps) * flat(v).norm(dim=-1)
    error = torch.maximum(torch.where(idle, 0.0, error), of_y)
    # Steps that do not lead to the solution tell nothing of where it is; but from rounding to rounding.
    backward = torch.maximum(certificate.stationarity, certificate.feasibility)
    left = torch.maximum(0.5 * backward, 1e3 * eps * torch.ones_like(backward))
    nearer = after * backward <= left * before
    slope, beside = (
        constraint_set(problem, point, in_numbers=True).slope(nu)
        for point in (y, _rounded_nearby(y))
    )
    rounded = slope.norm(dim=-1) <= _SLOPE_ROUNDINGS * (beside - slope).norm(dim=-1)
    rounded = rounded & (certificate.feasibility <= 64 * eps)
    error = torch.where((nearer | rounded) & held, 2 * error, torch.inf)
    return torch.where(rough, torch.where(error.isnan(), torch.inf, error), 0.0)


def curvature_along_gauge(problem: Problem, y: Tensor, nu: Tensor) -> Tensor | None:
    """‖P G w‖ relative to the size of G, (B,), at a solution (`ddnkit.gauge`); None without a gauge."""
    w = vertical_direction(problem, y)
    if w is None:
        return None
    constraints, G = constraint_set(problem, y, in_numbers=True), hessian_operator(problem, y, nu)
    product = G(w)
    along = (w * product).sum(dim=-1)
    found = torch.hypot(constraints.project(product).norm(dim=-1), along)
    probe = flat(_probe(y, 0))
    of_probe = G(probe).norm(dim=-1) / probe.norm(dim=-1)
    size = torch.maximum(product.norm(dim=-1), of_probe)
    return (found / torch.where(found > 0, size, 1.0)).detach()


def _for_each_item(problem: Problem) -> Problem:
    """The problem with its floating operands, also those that all items share, for each item by itself."""
    size, flags, operands = problem.batch_size, list(problem.operands_batched), problem.operands
    for i, x in enumerate(operands):
        if x.is_floating_point() and not flags[i]:
            operands[i], flags[i] = x.expand(size, *x.shape), True
    return problem.resize(operands, size, flags)


def _wanted_operands(problem: Problem, wanted: Sequence[bool]) -> list[int]:
    """Which floating operands a derivative may be asked for. What others would have, as one that y does not
    depend on, is no matter."""
    wrt = [i for i, x in enumerate(problem.operands) if x.is_floating_point()]
    return [i for i in wrt if i >= len(wanted) or wanted[i]] or wrt


def _gradients(
    problem: Problem, y: Tensor, v: Tensor, systems: LinearSystems, wrt: Sequence[int]
) -> list[Tensor]:
    """The gradient for each operand of ``wrt``, (B, n) each."""
    return [flat(g) for g in gradient_of_operands(systems, problem, y, v, wrt)] if wrt else []


def _distances(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Distances of two gradients (k, B), for each of k operands."""
    return torch.stack([(x - y).norm(dim=-1) for x, y in zip(a, b, strict=True)])


def _sizes(problem: Problem, gradients: Sequence[Tensor], wrt: Sequence[int]) -> Tensor:
    """What changes of gradients are compared with, (k, B): their sizes, each operand's in its own unit.

    One that is the tolerance of the others, by what changes of the operands make of y, is held against that:
    of an input that y does not depend on nothing is left but rounding.
    """
    # An infinite entry, as of a bound that is none, has no size.
    operands = [flat(problem.operands[i]).nan_to_num(0.0, 0.0, 0.0) for i in wrt]
    # Changes of the size that its entries differ by, where they do: an offset that they share says nothing.
    whole = torch.stack([x.norm(dim=-1) for x in operands])
    spread = torch.stack([(x - x.mean(dim=-1, keepdim=True)).norm(dim=-1) for x in operands])
    rounding = 64 * torch.finfo(spread.dtype).eps * whole
    weight = torch.where(spread > rounding, spread, whole)
    sizes = torch.stack([g.norm(dim=-1) for g in gradients])
    least = TOLERANCE[gradients[0].dtype] * (sizes * weight).amax(dim=0)
    return torch.maximum(sizes, torch.where(weight > 0, least / weight, 0.0))


def _curvatures(problem: Problem, y: Tensor, nu: Tensor) -> tuple[Tensor, Tensor]:
    curvature, condition = _curvatures_in(problem, y, nu, None)
    unit = _units(problem, y, nu, curvature)
    if unit is None:
        return curvature, condition
    scaled, of_scaled = _curvatures_in(problem, y, nu, unit)
    better = (curvature < _least_visible(y)) & (scaled > curvature)
    return torch.where(better, scaled, curvature), torch.where(better, of_scaled, condition)


def _least_visible(y: Tensor) -> float:
    return float(torch.finfo(y.dtype).eps ** 0.5)


def _units(problem: Problem, y: Tensor, nu: Tensor, curvature: Tensor) -> Tensor | None:
    """Units of curvature 1, where y's own do not tell the least curvature, and rounding is not what does."""
    if bool((curvature >= _least_visible(y)).all()):
        return None
    h = _diagonal(problem, y, nu)
    noise = uncertainty(_diagonal, h, problem, y, nu, torch.finfo(y.dtype).eps)
    if not bool((h > NOISE_FACTOR * noise).any()):
        return None
    # A unit for all unknowns of an item, or for none.
    known = ((h > NOISE_FACTOR * noise) & h.isfinite()).all(dim=-1, keepdim=True)
    return torch.where(known, torch.where(known, h, 1.0).rsqrt(), 1.0)


def _diagonal(problem: Problem, y: Tensor, nu: Tensor | None) -> Tensor:
    """That of the Hessian of the Lagrangian, (B, m), by a product for each unknown."""
    assert nu is not None
    G, ones = hessian_operator(problem, y, nu), torch.ones_like(flat(y))
    columns = (G(torch.nn.functional.pad(ones[:, j : j + 1], (j, len(ones[0]) - j - 1)))[:, j]
               for j in range(ones.shape[-1]))  # fmt: skip
    return torch.stack(list(columns), dim=-1)


def _curvatures_in(
    problem: Problem, y: Tensor, nu: Tensor, unit: Tensor | None
) -> tuple[Tensor, Tensor]:
    P, curvature_of = Projector(problem, y, unit), hessian_operator(problem, y, nu)

    def G(v: Tensor) -> Tensor:
        return curvature_of(v) if unit is None else unit * curvature_of(unit * v)

    like = flat(y)
    if like.shape[-1] > _ALL_CURVATURES:
        lowest, largest, _ = extreme_eigenvalues(lambda v: P(G(v)), like, project=P)
        size = torch.maximum(lowest.abs(), largest.abs())
        return lowest / size, size / lowest.clamp(min=0)
    tangent = matrix_of(P, like)
    matrix = matrix_of(lambda v: P(G(P(v))), like)
    finite = matrix.isfinite().flatten(1).all(dim=1) & tangent.isfinite().flatten(1).all(dim=1)
    keep = finite.reshape(-1, 1, 1)
    matrix, tangent = torch.where(keep, matrix, 0.0), torch.where(keep, tangent, 0.0)
    # LAPACK converges on no float32 matrix whose entries range over its exponents.
    dtype = wide_dtype(y)
    matrix, tangent = matrix.to(dtype), tangent.to(dtype)
    largest_entry = matrix.abs().flatten(1).amax(dim=-1).reshape(-1, 1, 1)
    matrix = matrix / torch.where(largest_entry > 0, largest_entry, 1.0)
    # Directions normal to the constraints are moved out of the way of both ends.
    size = torch.linalg.matrix_norm(matrix).clamp(min=torch.finfo(dtype).tiny)
    eye = torch.eye(like.shape[-1], dtype=dtype, device=y.device)
    values = torch.linalg.eigvalsh(
        (matrix + matrix.mT) / 2 + 4 * size.reshape(-1, 1, 1) * (eye - tangent)
    )
    on_tangent = values < 2 * size.unsqueeze(-1)
    count = on_tangent.sum(dim=-1)
    lowest = values.amin(dim=-1)
    sizes = torch.where(on_tangent, values.abs(), 0.0)
    largest = sizes.amax(dim=-1)
    least = torch.where(on_tangent, values.abs(), torch.inf).amin(dim=-1)
    # No tangent direction at all: the constraints alone determine y.
    curvature = torch.where(count == 0, 1.0, lowest / largest)
    condition = torch.where(count == 0, 1.0, largest / least)
    return tuple(torch.where(finite, x, torch.nan).to(y.dtype) for x in (curvature, condition))  # type: ignore[return-value]


def _error_bound(
    problem: Problem,
    y: Tensor,
    nu: Tensor,
    form: BackwardForm,
    certificate: Certificate,
    condition: Tensor,
    v: Tensor | None,
    wanted: Sequence[bool],
) -> Tensor:
    if not any(x.is_floating_point() for x in problem.operands):
        return y.new_zeros(len(y))
    systems = LinearSystems(form)
    better, before, after = _newton_step(problem, y, nu, systems)
    reduction = torch.where(before > 0, after / before, 0.0)
    eps = torch.finfo(y.dtype).eps
    # A step from a solution to the last digit is rounding, and may be larger than an entry near 0 is.
    backward = torch.maximum(certificate.stationarity, certificate.feasibility)
    exact = backward <= 1e3 * eps
    reduction = torch.where(exact, 0.0, reduction)
    better = torch.where(exact.reshape(-1, *[1] * (y.ndim - 1)), y, better)
    held = exact | _kinks_hold(problem, better, certificate.tolerance)
    problem = _for_each_item(problem)
    wrt = _wanted_operands(problem, wanted)
    off = _rounded_nearby(y)
    if problem.kinks is not None:  # beside an active kink is another problem
        smooth = problem.kinks.active.logical_not().all(dim=-1)
        off = torch.where(smooth.reshape(-1, *[1] * (y.ndim - 1)), off, y)
    probes = [v] if v is not None else [_probe(y, k) for k in range(_PROBES)]
    changes, moves, sizes, rounded = [], [], [], []
    for probe in probes:
        here, there = (_gradients(problem, point, probe, systems, wrt) for point in (y, better))
        beside = _gradients(problem, off, probe, _Rounded(form), wrt)
        rounded.append(_rounding_of(here, problem, y, probe, systems, wrt))
        changes.append(_distances(here, there))
        moves.append(_distances(here, beside))
        sizes.append(_sizes(problem, there, wrt))
    change, move, size = torch.stack(changes), torch.stack(moves), torch.stack(sizes)
    move = move + torch.stack(rounded) / (_CHANCE / 2)
    # A probe may happen to have no gradient, whose relative error would say nothing of the others'.
    size = torch.maximum(size, 0.1 * size.square().mean(dim=0).sqrt())
    error = torch.where(change > 0, change / size, 0.0).amax(dim=(0, 1))
    rounding = torch.where(move > 0, move / size, 0.0).amax(dim=(0, 1))
    residual = certificate.adjoint_residual
    solving = eps if residual is None else eps + residual
    solving = solving + torch.where(exact, backward, 0.0)
    bound = 2 * error / (1 - reduction) + condition * solving + _CHANCE * rounding
    bound = bound + _rounding_of_curvatures(problem, y, nu)
    bound = torch.where((reduction <= 0.5) & held, bound, torch.inf)
    return torch.where(bound.isnan(), torch.inf, bound)


def _rounding_of(
    gradients: Sequence[Tensor],
    problem: Problem,
    y: Tensor,
    v: Tensor,
    systems: LinearSystems,
    wrt: Sequence[int],
) -> Tensor:
    """What float32 has made of gradients (k, B): their distance from those of the same problem in float64.

    0 where it is not to be had, as of a problem that is another in float64.
    """
    nothing = torch.stack([g.new_zeros(len(g)) for g in gradients])
    instance = float64_problem(problem) if y.dtype == torch.float32 else None
    if instance is None:
        return nothing
    try:
        wide = _gradients(instance, y.double(), v.double(), systems, wrt)
    except Exception:  # whatever a node throws that is not made for float64
        return nothing
    apart, size = _distances(wide, gradients), _sizes(instance, wide, wrt)
    return torch.where(apart <= SAME_OPERATOR * size, apart, 0.0).to(y.dtype)


def _rounding_of_curvatures(problem: Problem, y: Tensor, nu: Tensor) -> Tensor:
    """How far the system's solution may be off (B,), relative, by what rounding has made of the Hessian: of
    one whose terms cancel, as far out on a function that grows like |y|, it may be most of it.

    In units of curvature 1, which each unknown's rounding is relative to. Of float32 the gradient in float64
    tells.
    """
    m = flat(y).shape[1]
    any_units = constraint_set(problem, y).any_units
    if y.dtype != torch.float64 or not any_units or not 0 < m <= _ALL_CURVATURES:
        return y.new_zeros(len(y))
    G = lagrangian_hessian(problem, y, nu)
    noise = uncertainty(lagrangian_hessian, G, problem, y, nu, torch.finfo(y.dtype).eps)
    h = G.diagonal(dim1=-2, dim2=-1).abs()
    known = (h > NOISE_FACTOR * noise.diagonal(dim1=-2, dim2=-1)).all(dim=-1, keepdim=True)
    unit = torch.where(known, torch.where(known, h, 1.0).rsqrt(), 1.0)
    G, noise = [unit.unsqueeze(-1) * x * unit.unsqueeze(-2) for x in (G, noise)]
    _, condition = _curvatures_in(problem, y, nu, unit)
    off = noise.flatten(1).norm(dim=1) / G.abs().flatten(1).amax(dim=1) * condition
    return off.nan_to_num(0.0, posinf=torch.inf)


class _Rounded(LinearSystems):
    """With what the systems give moved by some roundings of each entry: what cancels in the products with it
    that a gradient is made of, as where unknowns have very different units, is moved by as much."""

    def solve_system(
        self, problem: Problem, y: Tensor, nu: Tensor, r: Tensor, multipliers: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """See `LinearSystems.solve_system`."""
        z, mu = super().solve_system(problem, y, nu, r, multipliers)

        def off(x: Tensor) -> Tensor:
            return perturb_by_rounding(x.flatten(0, 1), torch.finfo(y.dtype).eps, 0).reshape(
                x.shape
            )

        return off(z), None if mu is None else off(mu)


def _rounded_nearby(y: Tensor) -> Tensor:
    """y with each entry moved by some roundings of itself."""
    index = torch.arange(1, y.shape[1:].numel() + 1, dtype=torch.float64, device=y.device)
    pattern = (1.6180339887498949 * index * index).sin().sign().reshape(y.shape[1:])
    return torch.addcmul(y, y, (_MOVED_BY * torch.finfo(y.dtype).eps * pattern).to(y.dtype))


def _newton_step(
    problem: Problem, y: Tensor, nu: Tensor, systems: LinearSystems
) -> tuple[Tensor, Tensor, Tensor]:
    """y⁺, and ‖∇L‖ + ‖h‖ before and after the step."""
    constraints = constraint_set(problem, y, in_numbers=True)
    right = -constraints.slope(nu)
    normal = torch.zeros_like(right)
    if constraints.parametric:
        # Each unknown by a part of itself: any share of a sum is a large step of a small one.
        size = flat(y).abs()
        largest = size.amax(dim=-1, keepdim=True)
        least = torch.finfo(y.dtype).eps * torch.where(largest > 0, largest, 1.0)
        normal = -constraints.restore(constraints.values(), torch.where(size > 0, size, least))
        right = right - hessian_operator(problem, y, nu)(normal)
    tangent = systems.solve_tangent(problem, y, nu, right.unsqueeze(0)).squeeze(0)
    better = constraints.move(normal + tangent)
    before, after = _violation(problem, y), _violation(problem, better)
    worse = (after <= 0.5 * before).logical_not_()
    if isinstance(constraints, OnManifold) or not bool(worse.any()):
        return better, before, after
    # Of an entry that is nothing beside others, a probability of 1e-78, the step is rounding of theirs: once
    # more for what it leaves, less what constraints take of that. What large entries leave again is rounding,
    # and of a small one may still be more than all of it: a small one takes the rest by its own curvature.
    curvature = hessian_operator(problem, y, nu)

    def left_by(tangent: Tensor) -> Tensor:
        left = right - curvature(tangent)
        A = constraints.A
        if A is None:
            return left
        return left - apply(A.mT, least_squares_multipliers(A * size.unsqueeze(-2), left * size))

    own = torch.zeros_like(right)
    if right.shape[-1] <= _ALL_CURVATURES:
        h, size_of_all = _diagonal(problem, y, nu), flat(y).abs()
        small = size_of_all <= torch.finfo(y.dtype).eps ** 0.5 * size_of_all.amax(-1, keepdim=True)
        own = torch.where(small & (h > 0), h, torch.inf).reciprocal()
    for _ in range(_STEPS_OF_SMALL):
        tangent = tangent + systems.solve_tangent(
            problem, y, nu, left_by(tangent).unsqueeze(0)
        ).squeeze(0)
        tangent = tangent + own * left_by(tangent)
        refined = y + (normal + tangent).reshape(y.shape)
        after_refined = _violation(problem, refined)
        nearer = worse & (after <= after_refined).logical_not_()
        better = torch.where(nearer.reshape(-1, *[1] * (y.ndim - 1)), refined, better)
        after = torch.where(nearer, after_refined, after)
        if bool((after <= 0.5 * before)[worse].all()):
            break
    return better, before, after


def _kinks_hold(problem: Problem, y: Tensor, tolerance: float) -> Tensor:
    """Items (B,) whose active kinks are so, or are none, at a better y too, where their arguments are 0.

    Near to a kink in the size of an offset may be far from it in what the solution is made of.
    """
    kinks = problem.kinks
    if kinks is None or not kinks.count:
        return torch.ones(len(y), dtype=torch.bool, device=y.device)
    free = problem.with_kinks(None)
    there = kinks_of(free, y, free.record(y), tolerance)
    return kinks.margin >= 1 if there is None else (there.margin > 0) & (there.excess <= 0)


def _violation(problem: Problem, y: Tensor) -> Tensor:
    constraints = constraint_set(problem, y, in_numbers=True)
    slope = constraints.slope(constraints.multipliers(constraints.gradient()))
    return slope.norm(dim=-1) + constraints.restore(constraints.values()).norm(dim=-1)


def _multipliers(problem: Problem, y: Tensor) -> Tensor:
    constraints = constraint_set(problem, y, in_numbers=True)
    return constraints.multipliers(constraints.gradient())


def _probe(y: Tensor, k: int) -> Tensor:
    generator = torch.Generator().manual_seed(_SEED + k)
    shape = y.shape[1:]
    # The same for all items, so that a figure does not depend on an item's place in the batch.
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(y).expand(y.shape)
