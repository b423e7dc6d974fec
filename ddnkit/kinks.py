"""Kinks at a solution: which are active, and the derivative along them.

Let a term w·φ(a(x, y)) of the objective have a kink at a = 0, with slopes φ'₋ and φ'₊ on its two sides. A
solution at the kink is stationary if some slope t between them makes it so,
    ∇(f − w φ(a)) + w t ∇a = 0.
With t strictly between, the solution stays at the kink for all data nearby: it solves the smooth problem in
which a = 0 is a constraint. torch takes the slope s there, so that the multiplier of that constraint, from
∇f − ν ∇a = 0 with torch's ∇f, tells the slope:
    t = s − ν / w.
So an active kink is a constraint like any other, and everything that differentiates constrained problems
applies. It does not matter which slope torch takes: the multiplier makes up for it.

With t at an end of its range the solution leaves the kink to one side, and has a derivative to each side at
most. With t outside, or where the kink is concave (w (φ'₊ − φ'₋) < 0), the point is no solution at all.

For the largest of several entries, m = max xᵢ with ∇m = Σ sᵢ ∇xᵢ by torch, the constraints are xᵢ − m = 0 for
those that tie, and any ∇m = Σ tᵢ ∇xᵢ with tᵢ ≥ 0, Σ tᵢ = 1 is one: t = s − (ν − s Σν) / w, within [0, 1].

Source: the active manifolds of Lewis, *Active sets, nonsmoothness, and sensitivity* (SIAM J. Optim.
2002); strict complementarity is his condition that 0 lies in the relative interior.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .kink_table import KinkPoint, slope_of_a_clamp_at_its_end
from .lagrangian import (
    constraint_jacobian,
    first_order_change,
    least_squares_multipliers,
)
from .perturbation import STEP, perturb
from .problem import Problem, Recorded, flat
from .recording import Recorder, Step, Trace
from .solution_size import moved_operands, size_of_solution

_functorch = torch._C._functorch

#: What a solution that is good to the tolerance may leave of a slope or an argument, in tolerances.
_EDGE = 10
#: Roundings of an argument within which it may be at its kink.
_BESIDE = 64
#: By so much more than an argument is away from its kink, a kink must change what it is in.
_SEEN = 16


#: A kink in an evaluation: the operation, its place, and which of those there. Items that take other branches
#: have others.
Key = tuple[str, str, int]


@dataclass(frozen=True)
class Column:
    """Entries of one kink that are held where they are active."""

    function: str
    point: Key
    entries: Tensor


@dataclass(frozen=True)
class Kinks:
    """The kinks of a node's functions at a solution.

    Attributes:
        columns: those that are active in some item, as constraints.
        active: in which items (B, p).
        margin: per item (B,), how far the slopes of the active kinks are from the ends of their
            ranges, relative to these: 1 where none is active, 0 or less where there is no derivative.
        excess: per item (B,), how far beyond, where y is no solution; else 0.
        told: what leaves items without a derivative, a text each.
        unruled: which items (B,) are near a kink that there is no rule for: without a derivative too,
            unless they are stationary beside it.
        size: of y (B,), by which a distance from a kink is told.
    """

    columns: tuple[Column, ...]
    active: Tensor
    margin: Tensor
    excess: Tensor
    told: tuple[str, ...]
    unruled: Tensor
    size: Tensor

    @property
    def count(self) -> int:
        """How many constraints they are."""
        return self.active.shape[-1]

    def with_mask(self, active: Tensor) -> Kinks:
        """The same with other items of `active`, as a transform makes of them."""
        return replace(self, active=active)

    def of_items(self, items: Any) -> Kinks:
        """Those of some items of the batch."""
        return replace(
            self,
            active=self.active[items],
            margin=self.margin[items],
            excess=self.excess[items],
            unruled=self.unruled[items],
            size=self.size[items],
        )

    def margin_of(self, stationary: Tensor) -> Tensor:
        """The margin (B,), where it is known which items are stationary (B,)."""
        return torch.where(self.unruled & ~stationary, 0.0, self.margin)

    def arguments(self, problem: Problem, y: Tensor) -> Tensor:
        """a (B, p), zero where it is not active."""
        values = flat(problem.each(_Arguments(problem, self.columns), y))
        return torch.where(self.active, values, 0.0)


class _Arguments:
    """A function of one problem: the arguments of the kinks of ``columns``, in a row."""

    __name__ = "kinks"

    def __init__(self, problem: Problem, columns: Sequence[Column]):
        self.problem, self.columns = problem, columns

    def __call__(self, *xs: Any, y: Any) -> Tensor:
        parts = [y] if isinstance(y, Tensor) else list(y.values() if isinstance(y, dict) else y)
        node = self.problem.node
        functions = {
            "objective": node.objective,
            "equality_constraints": node.equality_constraints,
            "inequality_constraints": node.inequality_constraints,
        }
        rows = []
        for name in dict.fromkeys(column.function for column in self.columns):
            with Recorder(name, [("y", part) for part in parts]) as recorder:
                functions[name](*xs, y=y)
            points = _by_key(recorder.trace)
            for column in self.columns:
                if column.function != name:
                    continue
                found = points.get(column.point)
                rows.append(
                    parts[0].new_zeros(len(column.entries))
                    if found is None
                    else found[1].argument.reshape(-1)[column.entries]
                )
        return torch.cat(rows)


@torch.no_grad()
def kinks_of(problem: Problem, y: Tensor, recorded: Recorded, tolerance: float) -> Kinks | None:
    """The kinks at y, from one evaluation there; None if the functions have none.

    The evaluation's graph is left in place.
    """
    if not any(trace.kinks for trace in recorded.traces):
        return None
    B, tried = len(y), _EDGE * tolerance
    margin, excess, told, known = y.new_ones(B), y.new_zeros(B), [], []
    unruled = torch.zeros(B, dtype=torch.bool, device=y.device)
    size = size_of_solution(problem, y, _gradient(recorded), tolerance)
    # What is not active is no part of the problem nearby, kinks and all.
    free = _are_inactive(problem, y)
    for point in _nearest_kinks(problem, y, recorded.traces, size):
        if free and point.function == "inequality_constraints":
            continue
        candidate = point.distance <= tried
        if point.tied is not None:  # the largest itself is always at no distance
            groups = _sum_ties(candidate.to(y.dtype), point)
            candidate = candidate & (groups >= 2)
        if not bool(candidate.any()):
            continue
        if point.outputs is None:
            # Beside it, a solution is one of the smooth problem on that side, and else is not stationary.
            at_it = point.distance <= _BESIDE * torch.finfo(y.dtype).eps
            margin = torch.where(at_it.any(dim=1), 0.0, margin)
            unruled = unruled | candidate.any(dim=1)
            told.append(f"{point.told} has a kink or a jump, at a distance of {_least(point)}")
        else:
            known.append((point, candidate, candidate.any(dim=0).nonzero()[:, 0]))
    if not known:
        none = unruled.new_zeros(B, 0)
        return Kinks((), none, margin, excess, tuple(told), unruled, size)
    columns = tuple(Column(point.function, point.key, entries) for point, _, entries in known)
    # Held where they may be active: the multipliers tell which of them are.
    masks = [(near & ~_leading(point, near))[:, entries] for point, near, entries in known]
    held = problem.with_kinks(
        Kinks(columns, torch.cat(masks, dim=1), margin, excess, (), unruled, size)
    )
    gradient = flat(_gradient(recorded))
    A = constraint_jacobian(held, y)
    assert A is not None
    nu = least_squares_multipliers(A, gradient)
    own = 0 if recorded.constraints is None else recorded.constraints.shape[-1]
    # Active inequality constraints stand between the equations and the kinks.
    first = own if problem.active_set is None else own + problem.active_set.count
    weights = _weights(recorded, nu[:, :own], [point for point, _, _ in known])
    edge = _EDGE * tolerance
    visible = _visible(held, y, nu, A[:, first:], known, weights)
    # The weight of relu(a)² is as small as a; that of a kink may be small beside an offset of the data.
    away = torch.cat([point.distance[:, entries] for point, _, entries in known], dim=1)
    limit = (_SEEN * away).clamp(min=_BESIDE * torch.finfo(y.dtype).eps, max=edge)
    # Just at it, that of relu(a)² is zero, and the other one may be as small as it likes.
    limit = torch.where(away == 0, 0.0, limit)
    at_it = torch.cat([candidate[:, entries] for _, candidate, entries in known], dim=1)
    at_it = at_it & (away <= _BESIDE * torch.finfo(y.dtype).eps)
    quiet = at_it & (visible <= limit)
    bent = _bent(held, y, nu, A[:, first:], quiet, at_it & ~quiet, size)
    if bool(bent.any()):
        margin = torch.where(bent, 0.0, margin)
        told += [
            f"{point.told} is at its kink, where the second derivative of the objective differs from "
            "that nearby"
            for (point, _, _), of_point in zip(known, _spread(known, quiet), strict=True)
            if bool((of_point & bent.unsqueeze(1)).any())
        ]
    known = [
        (point, candidate & _with_its_group(point, of_point), entries)
        for (point, candidate, entries), of_point in zip(
            known, _spread(known, visible > limit), strict=True
        )
    ]
    # What the tolerance leaves is relative to the terms that meet: of a steep kink, an exact penalty's, it
    # is less of the range.
    least = _rounding_of_slopes(known, weights, gradient)
    edges = _spread(known, torch.maximum(edge / visible.clamp(min=1.0), least))
    edges = [torch.where(of_point > 0, of_point, edge) for of_point in edges]
    judged = _all_judged(known, nu[:, first:], weights, edges)
    room = [inside - of_point for (_, inside), of_point in zip(judged, edges, strict=True)]
    failed = torch.cat(room, dim=1).amin(dim=1) <= 0
    if bool(failed.any()):
        # Multipliers of dependent kinks are not unique: those nearest to the middles of their ranges.
        other = _central(known, nu, first, weights, A, gradient)
        nu = torch.where(failed.unsqueeze(1), other, nu)
        judged = _all_judged(known, nu[:, first:], weights, edges)
    active = []
    for (point, candidate, entries), (is_active, inside), ends in zip(
        known, judged, edges, strict=True
    ):
        held_there = is_active & ~_leading(point, candidate)
        active.append(held_there[:, entries])
        # A slope just beyond an end is at the end, as far as the tolerance tells.
        margin = torch.minimum(margin, (inside - ends).amin(dim=1))
        beyond = torch.where(-inside > ends, -inside, 0.0).amax(dim=1)
        excess = torch.maximum(excess, beyond)
        told += _describe(point, inside, ends)
    active_of_all = torch.cat(active, dim=1)
    texts = tuple(dict.fromkeys(told))
    return Kinks(columns, active_of_all, margin, excess, texts, unruled, size)


def _are_inactive(problem: Problem, y: Tensor) -> bool:
    """Whether none of the node's own inequality constraints, which bounds are not, may be active in any item.

    One that is active in another item is evaluated for all, and 0 times its second derivative is NaN at such
    a kink as a norm's.
    """
    held, node = problem.active_set, problem.node
    if held is None or node.selection is not None or node.degenerate == "one_sided":
        return False
    return not bool((held.rows < problem.inequality_sizes(y)[0]).any())


#: A kink, where it may be active (B, n), and in which entries it is in some item.
_Known = tuple["_Point", Tensor, Tensor]


def _jumps(known: Sequence[_Known], weights: Sequence[Tensor]) -> Tensor:
    """By how much each kink changes what it is in (B, p)."""
    return torch.cat(
        [
            weight[:, entries].abs() * abs(point.right - point.left)
            for (point, _, entries), weight in zip(known, weights, strict=True)
        ],
        dim=1,
    )


def _rounding_of_slopes(
    known: Sequence[_Known], weights: Sequence[Tensor], gradient: Tensor
) -> Tensor:
    """What rounding leaves of a slope t (B, p), relative to its range.

    That of the terms which ν is made of: of a steep kink at which torch takes 0, as of relu, it is far less
    than a rounding of the range.
    """
    terms = gradient.abs().amax(dim=1, keepdim=True)
    for (point, _, entries), weight in zip(known, weights, strict=True):
        steep = (weight * point.slope)[:, entries].abs().amax(dim=1, keepdim=True)
        terms = torch.maximum(terms, steep)
    jumps = _jumps(known, weights)
    rounding = 64 * torch.finfo(gradient.dtype).eps * terms / torch.where(jumps > 0, jumps, 1.0)
    return torch.where(jumps > 0, rounding, 64 * torch.finfo(gradient.dtype).eps)


def _visible(
    held: Problem,
    y: Tensor,
    nu: Tensor,
    rows: Tensor,
    known: Sequence[_Known],
    weights: Sequence[Tensor],
) -> Tensor:
    """By how much each kink changes ∇_y L (B, p), relative to the terms that meet in its entries.

    That of relu(a)² has a weight of 2 relu(a), and is none.
    """
    jumps = _jumps(known, weights)
    step, scale = STEP[y.dtype], torch.zeros_like(flat(y))
    for probe in range(3):
        operands = moved_operands(held, probe)
        moved = perturb(y, step, 0, probe)
        change, _ = first_order_change(held, y, nu, operands, moved)
        scale = torch.maximum(scale, change.abs() / step)
    size = (jumps.unsqueeze(-1) * rows[:, : jumps.shape[1]]).abs()
    return torch.where(size == 0, size, size / scale.unsqueeze(1)).amax(dim=-1)


def _bent(
    held: Problem, y: Tensor, nu: Tensor, rows: Tensor, quiet: Tensor, loud: Tensor, size: Tensor
) -> Tensor:
    """The items (B,) in which ∇_y L has other derivatives beside y than torch's at y, and no jump.

    As those of |a|² or relu(a)² are at a = 0: of the second there is none, and of the first torch says 0.

    Args:
        quiet, loud: of the kinks at y (B, p), those that change ∇_y L by nothing, and those that do.
    """
    bent = torch.zeros(len(y), dtype=torch.bool, device=y.device)
    if not bool(quiet.any()):
        return bent

    def reached(kinks: Tensor) -> Tensor:
        return ((rows[:, : kinks.shape[1]] != 0) & kinks.unsqueeze(-1)).any(dim=1)

    # Away from those alone, relative to what y is, so as to stay where it is positive.
    by = torch.where(size > 0, size, 1.0).unsqueeze(1)
    by = torch.where(flat(y) == 0, by, flat(y).abs()) * (reached(quiet) & ~reached(loud))
    eps = torch.finfo(y.dtype).eps
    pattern = flat(perturb(torch.ones_like(y), 1.0, 0, 0) - 1)
    along = (pattern * by).reshape(y.shape)

    def change(point: Tensor) -> Tensor:
        return first_order_change(held, point, nu, held.operands, point + along)[0]

    here = change(y)
    for away in (eps**0.5, -(eps**0.5)):
        far, near = change(y + away * along), change(y + away / 8 * along)
        larger = torch.maximum(here.abs(), near.abs())
        least = eps**0.25 * larger.amax(dim=1, keepdim=True)
        jump = (near - here).abs()
        # What a smooth function changes by is an eighth there.
        jumps = (jump > 1e-2 * larger + least) & (2 * jump > (far - here).abs())
        bent = bent | jumps.any(dim=1)
    return bent


def _spread(known: Sequence[_Known], columns: Tensor) -> list[Tensor]:
    """What is said of columns (B, p), for all entries of each kink."""
    found, at = [], 0
    for point, _, entries in known:
        of_point = torch.zeros_like(point.distance, dtype=columns.dtype)
        of_point[:, entries] = columns[:, at : at + len(entries)]
        at += len(entries)
        found.append(of_point)
    return found


def _all_judged(
    known: Sequence[_Known], nu: Tensor, weights: Sequence[Tensor], edges: Sequence[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    return [
        _judge(point, candidate, of_point * candidate, weight, edge)
        for (point, candidate, _), of_point, weight, edge in zip(
            known, _spread(known, nu), weights, edges, strict=True
        )
    ]


def _central(
    known: Sequence[_Known], nu: Tensor, own: int, weights: Sequence[Tensor], A: Tensor, g: Tensor
) -> Tensor:
    """The ν with Aᵀν = g whose slopes are nearest to the middles of their ranges, relative to these."""
    middle, half, at = torch.zeros_like(nu), torch.zeros_like(nu), own
    for (point, _, entries), weight in zip(known, weights, strict=True):
        w, columns = weight[:, entries], slice(at, at + len(entries))
        at += len(entries)
        half[:, columns] = w.abs() * abs(point.right - point.left) / 2
        if point.tied is None:
            middle[:, columns] = w * (point.slope[:, entries] - (point.left + point.right) / 2)
    # The others may be what they like.
    free = 1e3 * half.amax(dim=1, keepdim=True)
    half[:, :own] = free
    half[:, at:] = free
    rows = half.unsqueeze(-1) * A
    rest = g - (A.mT @ middle.unsqueeze(-1)).squeeze(-1)
    return middle + half * least_squares_multipliers(rows, rest)


def _describe(point: _Point, inside: Tensor, edges: Tensor) -> list[str]:
    if bool((inside > edges).all()):
        return []
    if bool((inside >= -edges).all()):
        return [
            f"{point.told} is at its kink, and the solution is about to leave it: at most a one-sided "
            "derivative exists"
        ]
    return [f"{point.told} is at its kink, and none of its slopes there makes y a solution"]


@dataclass
class _Point:
    """A kink for the whole batch; arguments (B, n) and the like. ``items``: which come by it; None: all."""

    function: str
    key: Key
    told: str
    argument: Tensor
    distance: Tensor
    outputs: list[Tensor] | None
    slope: Tensor
    left: float
    right: float
    share: float
    shape: tuple[int, ...]
    tied: tuple[int, ...] | None
    items: Sequence[int] | None


def _nearest_kinks(
    problem: Problem, y: Tensor, traces: Sequence[Trace], size: Tensor
) -> list[_Point]:
    """The kinks of every function, with how near their arguments are to zero: relative to how much
    they change with a relative change of operands and y, the entries of y taken as at least as large as
    ``size`` (B,)."""
    points = _points(traces)
    scales = [torch.zeros_like(point.argument) for point in points]
    step = STEP[y.dtype]
    size = size.reshape(-1, *[1] * (y.ndim - 1))
    for probe in range(3):
        operands = moved_operands(problem, probe)
        moved = y + (perturb(torch.ones_like(y), step, 0, probe) - 1) * (y.abs() + size)
        others = _points(problem.with_operands(operands).record(moved).traces)
        if [p.argument.shape for p in others] != [p.argument.shape for p in points]:
            break  # another branch was taken
        for k, (point, other) in enumerate(zip(points, others, strict=True)):
            change = (other.argument - point.argument).abs() / step
            scales[k] = torch.maximum(scales[k], change)
    for point, scale in zip(points, scales, strict=True):
        distance = point.argument.abs()
        # 0/0 is at the kink; what never moves (scale 0) stays where it is.
        point.distance = torch.where(distance == 0, distance, distance / scale)
    return points


def _points(traces: Sequence[Trace]) -> list[_Point]:
    functions: dict[str, list[Trace]] = {}
    for trace in traces:
        functions.setdefault(trace.function, []).append(trace)
    points = []
    for function, items in functions.items():
        of_items = [_by_key(item) for item in items]
        for key in dict.fromkeys(key for item in of_items for key in item):
            have = [k for k, item in enumerate(of_items) if key in item]
            found = [of_items[k][key] for k in have]
            points.append(
                _point(function, key, found, None if len(have) == len(items) else have, len(items))
            )
    return points


def _by_key(trace: Trace) -> dict[Key, tuple[Step, KinkPoint]]:
    counts: dict[tuple[str, str], int] = {}
    found: dict[Key, tuple[Step, KinkPoint]] = {}
    for step, point in trace.kinks:
        at = step.name, str(step.place)
        counts[at] = counts.get(at, 0) + 1
        found[at[0], at[1], counts[at]] = step, point
    return found


def _point(
    function: str,
    key: Key,
    found: Sequence[tuple[Step, KinkPoint]],
    items: Sequence[int] | None,
    count: int,
) -> _Point:
    step, first = found[0]
    parts = [plain(point.argument).detach() for _, point in found]
    argument = _join(parts)
    outputs = None
    if first.output is not None:
        outputs = [point.output for _, point in found if point.output is not None]
    if first.slope is not None:
        slope = _join([plain(p.slope).detach() for _, p in found if p.slope is not None])
    else:
        tie = slope_of_a_clamp_at_its_end() if first.tie is None else first.tie
        at_tie = torch.full_like(argument, tie)
        slope = torch.where(
            argument > 0, first.right, torch.where(argument < 0, first.left, at_tie)
        )
    # Far away in the items that do not come by it.
    argument, slope = _in_all(argument, items, count, 1.0), _in_all(slope, items, count, 0.0)
    return _Point(
        function, key, f"`{step.name}`{'' if step.place is None else f' ({step.place})'}",
        flat(argument), flat(argument), outputs, flat(slope), first.left, first.right, first.share,
        tuple(argument.shape[1:]), first.tied, items,
    )  # fmt: skip


def _in_all(values: Tensor, items: Sequence[int] | None, count: int, fill: float) -> Tensor:
    """Values of some items (len(items), …) as those of all (count, …)."""
    if items is None:
        return values
    whole = values.new_full((count, *values.shape[1:]), fill)
    whole[list(items)] = values
    return whole


def plain(x: Tensor) -> Tensor:
    """A tensor seen inside of our vmap as the batch of it, (B, …); of one problem, (1, …)."""
    if not _functorch.is_batchedtensor(x):
        return x.unsqueeze(0)
    return _functorch.get_unwrapped(x).movedim(_functorch.maybe_get_bdim(x), 0)


def _join(parts: Sequence[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    shapes = {part.shape for part in parts}
    return torch.cat(list(parts)) if len(shapes) == 1 else parts[0].new_zeros(len(parts), 0)


def _gradient(recorded: Recorded) -> Tensor:
    evaluation = recorded.evaluation
    if not evaluation.values.requires_grad:
        return torch.zeros_like(evaluation.point)
    with torch.enable_grad():
        total = evaluation.values.sum()
    (g,) = torch.autograd.grad(total, evaluation.point, retain_graph=True, allow_unused=True)
    return torch.zeros_like(evaluation.point) if g is None else g


def _weights(recorded: Recorded, nu: Tensor, points: Sequence[_Point]) -> list[Tensor]:
    """∂L / ∂output of each kink, as large as its argument (B, n)."""
    with torch.enable_grad():
        total = recorded.evaluation.values.sum()
        if recorded.constraints is not None:
            total = total - (nu * recorded.constraints).sum()
    raw = [_unwrap(out) for point in points for out in point.outputs or ()]
    if not total.requires_grad or not raw:
        return [torch.zeros_like(point.argument) for point in points]
    # One that is detached has no weight.
    on_graph = [out for out in raw if out.requires_grad]
    if not on_graph:
        return [torch.zeros_like(point.argument) for point in points]
    rest = iter(torch.autograd.grad(total, on_graph, retain_graph=True, allow_unused=True))
    found = iter([next(rest) if out.requires_grad else None for out in raw])
    weights = []
    for point in points:
        parts = []
        for out in point.outputs or ():
            g = next(found)
            g = torch.zeros_like(_unwrap(out)) if g is None else g
            batched = _functorch.is_batchedtensor(out)
            parts.append(
                g.movedim(_functorch.maybe_get_bdim(out), 0) if batched else g.unsqueeze(0)
            )
        B = len(point.argument)
        whole = _in_all(torch.cat(parts), point.items, B, 0.0)
        if point.tied:
            for d in point.tied:
                if whole.dim() <= len(point.shape):
                    whole = whole.unsqueeze(d + 1)
        if whole.dim() == 1:
            whole = whole.reshape(B, *[1] * len(point.shape))
        weights.append(flat(whole.expand(B, *point.shape)) * point.share)
    return weights


def _unwrap(x: Tensor) -> Tensor:
    return _functorch.get_unwrapped(x) if _functorch.is_batchedtensor(x) else x


def _sum_ties(values: Tensor, point: _Point) -> Tensor:
    """Sums (B, n) over those that tie for the same entry."""
    shaped = values.reshape(-1, *point.shape)
    dims = [d + 1 for d in point.tied] if point.tied else list(range(1, shaped.dim()))
    return flat(shaped.sum(dims, keepdim=True).expand_as(shaped))


def _with_its_group(point: _Point, seen: Tensor) -> Tensor:
    # The difference of the largest entry to itself has no gradient.
    return seen if point.tied is None else _sum_ties(seen.to(point.distance.dtype), point) > 0


def _leading(point: _Point, candidate: Tensor) -> Tensor:
    """Of those that tie, the one whose row is left out: it would only depend on the others'."""
    if point.tied is None:
        return torch.zeros_like(candidate)
    best = (candidate & (point.argument == 0)).reshape(-1, *point.shape)
    dims = [d + 1 for d in point.tied] if point.tied else list(range(1, best.dim()))
    rest = [d for d in range(best.dim()) if d not in dims]
    grouped = best.permute(*rest, *dims)
    flat_groups = grouped.reshape(*grouped.shape[: len(rest)], -1)
    first = flat_groups & (flat_groups.cumsum(dim=-1) == 1)
    order = [*rest, *dims]
    back = [order.index(d) for d in range(best.dim())]
    return flat(first.reshape(grouped.shape).permute(*back))


def _judge(
    point: _Point, candidate: Tensor, nu: Tensor, weight: Tensor, edge: Tensor
) -> tuple[Tensor, Tensor]:
    """Which candidates are active (B, n), and how far inside of its range each slope is, 1 if not.

    Args:
        edge: what a solution that is good to the tolerance leaves of a slope, relative to its range.
    """
    a, eps = point.argument, torch.finfo(nu.dtype).eps
    counts = candidate & (weight != 0)
    multiplier = nu / torch.where(counts, weight, 1.0)
    if point.tied is not None:
        multiplier = multiplier - point.slope * _sum_ties(multiplier, point)
    t = point.slope - multiplier
    low, high = min(point.left, point.right), max(point.left, point.right)
    inside = torch.minimum(t - low, high - t) / (high - low)
    inside = torch.where(weight * (point.right - point.left) < 0, -1.0, inside)  # concave
    # Beside the kink, and stationary with the slope of that side: smooth there.
    side = torch.where(a > 0, point.right, point.left)
    beside = (point.distance > _BESIDE * eps) & ((t - side).abs() <= edge * (high - low))
    active = counts & ~beside
    if point.tied is not None:
        # A single one that is left has nothing to tie with.
        active = active & (_sum_ties(active.to(nu.dtype), point) >= 2)
    return active, torch.where(active, inside, 1.0)


def _least(point: _Point) -> str:
    return f"{float(point.distance.min()):.0e}"
