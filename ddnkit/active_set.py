"""Inequality constraints at a solution: which of them hold as equations there, and how clearly.

A solution of  min f  subject to  h = 0, g ≤ 0  has multipliers λ ≥ 0 with
    ∇f − Aᵀν + Gᵀλ = 0,      λᵢ gᵢ = 0      (A = D_y h, G = D_y g).
Where each i has either λᵢ > 0 or gᵢ < 0 (strict complementarity), the same constraints stay active nearby:
y(θ) is the solution of the problem with gᵢ = 0 for the active ones and without the others, and all that is
known of equations holds. Where some i has neither, it is weakly active: the solution has a kink there. One
that follows from the others (`ddnkit.qualification`) may as well be left out, and is; where active ones meet
that do not for other inputs, there is a kink too.

Both are told by the relative change of the data that would change them: gᵢ by how much it changes with a
relative change of operands and y, λᵢ by how much its part of ∇_y L is beside what ∇_y L changes by. The
margin of an item is the least, over its constraints, of the larger of the two.

What a solver leaves of a slack or a multiplier that is zero is not known beforehand. The tolerance tells how
much it may be, and what is no more than that counts as zero. Where this decides, and y solves the problem to
rounding, less is enough: what is no more than rounding leaves.

As equations, L = f − νᵀh + λᵀg has the active ones with multipliers −λ.

Source: Nocedal and Wright, *Numerical Optimization*, theorems 12.1 and 12.5; Fiacco (1976).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .lagrangian import (
    ConstraintSet,
    constraint_jacobian,
    constraint_set,
    inequality_jacobian,
    row_basis,
)
from .linalg.items import apply
from .linalg.kkt import without_bad_items
from .linalg.rows import rows_of, unit_rows
from .perturbation import STEP, perturb
from .problem import Problem, flat
from .qualification import (
    are_dependent,
    are_equations,
    do_not_meet,
    moves_apart,
    null_projector,
    touching,
)
from .solution import SETTLED
from .solution_size import moved_operands, size_of_solution

#: What a solution that is good to the tolerance may leave of a slack or a multiplier, in tolerances.
EDGE = 10
_PROBES = 3
#: A relative move in which what bends is told from what does not.
_FAR_ENOUGH = 1e-2
#: Of the way from y onto a constraint.
_ONTO = 1 - 2**-10


def sharp_edge(dtype: torch.dtype) -> float:
    """What a solution that is good to rounding may leave of a slack or a multiplier."""
    eps = torch.finfo(dtype).eps
    return float(max(EDGE * SETTLED * eps, eps ** (2 / 3)))


@dataclass(frozen=True)
class ActiveSet:
    """The inequality constraints that are active at a solution.

    Attributes:
        rows: which entries of g (k,) are active in some item.
        active: in which items (B, k); weakly active ones too, unless the node's `degenerate` is "one_sided".
        margin: how clear the choice is (B,), see the module's text: 0 where a constraint is weakly active and
            the node has not chosen what to do then.
        violation: of g ≤ 0 where it is not active (B,), relative.
        size: of y (B,), by which it is told how far an active constraint is from 0.
        touching: in which items (B,) constraints all but touch, so that the margin is 0; None: not looked at.
    """

    rows: Tensor
    active: Tensor
    margin: Tensor
    violation: Tensor
    size: Tensor
    touching: Tensor | None = None

    @property
    def count(self) -> int:
        """How many constraints they are."""
        return len(self.rows)

    def of_items(self, items: Any) -> ActiveSet:
        """Those of some items of the batch."""
        parts = {k: v for k, v in vars(self).items() if k != "rows" and v is not None}
        return replace(self, **{name: value[items] for name, value in parts.items()})

    def with_mask(self, active: Tensor) -> ActiveSet:
        """The same with other items of `active`, as a transform makes of them."""
        return replace(self, active=active)

    def values(self, problem: Problem, y: Tensor) -> Tensor:
        """g (B, k), zero where it is not active."""
        g = problem.inequalities(y)
        assert g is not None  # a problem without has no active set
        return torch.where(self.active, g[:, self.rows], 0.0)


@torch.no_grad()
def active_set(
    problem: Problem,
    y: Tensor,
    tolerance: float,
    derived: Sequence[bool] | None = None,
    *,
    strongly: bool = False,
) -> ActiveSet | None:
    """The active set at y (B, *y); None where the problem has no inequality constraints.

    Args:
        derived: for each operand whether its derivative may be asked for; None: of all.
        strongly: of those with a multiplier alone, as if there were no others.
    """
    g = problem.inequalities(y)
    if g is None:
        return None
    gradient = problem.gradient(y)
    size = size_of_solution(problem, y, gradient, tolerance)
    sharp = sharp_edge(y.dtype)
    # Where nothing is to fail, the solution is taken for one.
    edge = EDGE * tolerance if tolerance < torch.inf else sharp
    of_size = distances(problem, y, g, size)
    near = of_size <= edge
    # Beside its own size; or beside that of y, where the norm has one unit for all unknowns.
    own = torch.zeros_like(size) if problem.selection is None else size
    distance = distances(problem, y, g, own)
    rows = near.any(dim=0).nonzero()[:, 0]
    held = near[:, rows]
    G = inequality_jacobian(problem, y, rows)
    changes = _changes_of_slope(problem, y, flat(gradient))
    c = _largest(problem, changes)
    relative, left, kept = _relative_multipliers(problem, y, gradient, (c, changes), G, held, edge)
    # Let go, and ∇_y L is not zero without them: y is no minimum while they hold.
    refused = held & ~kept & (left > edge * c.norm(dim=1)).unsqueeze(1)
    strong = held & (relative > edge)
    limit = y.new_full((len(y), 1), edge)
    unclear = (near & (of_size > sharp)).any(dim=1) | (held & ~strong).any(dim=1)
    if sharp < edge and bool(unclear.any()):
        close = held & (of_size[:, rows] <= sharp)
        other, left, _ = _relative_multipliers(problem, y, gradient, (c, changes), G, close, sharp)
        solved = left <= SETTLED * torch.finfo(y.dtype).eps * c.norm(dim=1)
        use = (unclear & solved).unsqueeze(1)
        relative = torch.where(use, other, relative)
        strong = torch.where(use, close & (other > sharp), strong)
        held, limit = torch.where(use, close, held), torch.where(use, sharp, limit)
        refused = refused & ~use
    small = held & (distance[:, rows] > limit)
    lost, beyond = _moved_onto_the_rows(problem, y, gradient, rows, strong, strong & small)
    strong = strong & ~lost
    noise, level = _on_the_boundary(problem, y, gradient, rows, g[:, rows], G, strong, small, limit)
    strong = strong & ~level
    weak = held & ~strong & ~refused & (~small | noise | level | (lost & ~beyond))
    scales = _sums(y, g[:, rows], G, distance[:, rows])
    dependence = _dependence(problem, y, g[:, rows], scales, rows, G, strong, weak, size, derived)
    follows, equations, apart = dependence
    weak = weak & ~follows
    chosen = problem.node.degenerate in ("one_sided", "least_norm") or tolerance == torch.inf
    clear = distance.clone()
    of_weak = torch.inf if chosen else 0.0
    told = torch.where(strong, relative, distance[:, rows])
    # That y is no minimum is told by its slope, and the rest would only confuse.
    told = told.masked_fill(follows | refused | equations, torch.inf)
    clear[:, rows] = told.masked_fill((weak & ~equations) | apart, of_weak)
    if strongly:
        kept = strong.any(dim=0)
        rows, strong, relative = rows[kept], strong[:, kept], relative[:, kept]
        clear = torch.where(strong, relative, torch.inf)
        margin = clear.amin(dim=1) if clear.shape[1] else torch.full_like(size, torch.inf)
        return ActiveSet(rows, strong, margin, torch.zeros_like(size), size)
    let_go = problem.node.degenerate == "one_sided"
    active = strong | (weak & equations if let_go else weak)
    inactive = torch.ones_like(near)
    inactive[:, rows] = ~(strong | weak)
    meet = _nearly_touching(problem, y, rows, G, strong, size, edge)
    return ActiveSet(
        rows=rows,
        active=active,
        margin=clear.amin(dim=1).masked_fill(meet, 0.0),
        violation=torch.where(inactive & (g > 0), distance, 0.0).amax(dim=1),
        size=size,
        touching=meet,
    )


def distances(problem: Problem, y: Tensor, g: Tensor, size: Tensor) -> Tensor:
    """|g| relative to how much it changes with a relative change of operands and y (B, q), the entries of
    y taken as at least as large as ``size`` (B,)."""
    step, scale = STEP[y.dtype], torch.zeros_like(g)
    size = size.reshape(-1, *[1] * (y.ndim - 1))
    for probe in range(_PROBES):
        moved = y + (perturb(torch.ones_like(y), step, 0, probe) - 1) * torch.maximum(y.abs(), size)
        there = problem.with_operands(moved_operands(problem, probe)).inequalities(moved)
        assert there is not None
        change = (there - g).abs() / step
        scale = torch.maximum(scale, torch.where(change.isfinite(), change, 0.0))
    # 0/0 is on the boundary; an infinite bound, and what never moves, is as far as can be.
    return torch.where(g == 0, 0.0, torch.where(g.isfinite(), g.abs() / scale, torch.inf))


def _relative_multipliers(
    problem: Problem,
    y: Tensor,
    gradient: Tensor,
    of_slope: tuple[Tensor, list[Tensor]],
    G: Tensor,
    held: Tensor,
    edge: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """λ (B, k) of the rows G (B, k, m) where they are ``held``, relative to what changes of ∇f (B, m), the
    largest of each entry and all of them, make of its part of ∇_y L, in ∇f and by way of the other
    multipliers; the size of what all of them leave of ∇f, (B,), and which rows were kept.

    Least squares; rows whose λ is negative are let go, the most negative first, as a solution with a
    nonnegative one may have them.
    """
    A = constraint_jacobian(problem.with_active_set(None), y)
    own = 0 if A is None else A.shape[1]
    lengths = G.square().sum(dim=-1)
    c, changes = of_slope
    weight = apply(G.abs(), c)
    while True:
        rows = G * held.unsqueeze(-1)
        (stacked,) = without_bad_items(rows if A is None else torch.cat([A, rows], dim=1))
        of = rows_of(stacked).multipliers
        everything = of(flat(gradient))
        found = -everything[:, own:]
        moved = torch.stack([of(change)[:, own:].abs() for change in changes]).amax(dim=0)
        most = torch.maximum(weight, moved * lengths)
        relative = torch.where(held & (found != 0), found * lengths / most, 0.0)
        worst = relative.amin(dim=1, keepdim=True) if relative.shape[1] else relative
        dropped = held & (relative < -edge) & (relative == worst)
        if not bool(dropped.any()):
            left = flat(gradient) - apply(stacked.mT, everything)
            return relative, left.norm(dim=1), held
        held = held & ~dropped


def _sums(y: Tensor, g: Tensor, G: Tensor, distance: Tensor) -> Tensor:
    """What slacks g (B, k) of rows G are sums of, (B, k): their terms for y, and what data make of them."""
    of_data = torch.where(distance > 0, g.abs() / distance, 0.0)
    return torch.maximum(apply(G.abs(), flat(y).abs()), of_data)


def _dependence(
    problem: Problem,
    y: Tensor,
    g: Tensor,
    scales: Tensor,
    rows: Tensor,
    G: Tensor,
    strong: Tensor,
    weak: Tensor,
    size: Tensor,
    derived: Sequence[bool] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Which weakly active constraints (B, k) follow from the others that hold, which of those that hold are
    equations whatever their multipliers, and which depend on others here and do not for other operands.

    Args:
        g, scales: of these rows, and what they are sums of, (B, k).
    """
    none = torch.zeros_like(weak)
    if not len(rows) or not len(y):
        return none, none, none
    bare = problem.with_active_set(None)
    A = constraint_jacobian(bare, y)
    first = 0 if A is None else A.shape[1]
    stacked = G if A is None else torch.cat([A, G], dim=1)
    stacked = torch.where(stacked.isfinite(), stacked, 0.0)
    there = torch.cat([torch.ones_like(stacked[:, :first, 0], dtype=torch.bool), strong | weak], 1)
    items = are_dependent(stacked, there).nonzero()[:, 0]
    if not len(items):
        return none, none, none
    some, point, A, there = _items(bare, items), y[items], stacked[items], there[items]
    strong, weak, size = strong[items], weak[items], size[items]
    N = null_projector(A, there)
    h = some.all_constraints(point)
    values, scales = g[items], scales[items]
    if h is not None:
        values = torch.cat([h, values], dim=1)
        scales = torch.cat([apply(A[:, :first].abs(), flat(point).abs()), scales], dim=1)
    off = do_not_meet(torch.where(there, values, 0.0), scales, A, N, point, size)[:, first:]
    apart = (off & there[:, first:]) | moves_apart(some, point, A, N, there, rows, derived)
    equations = are_equations(N, first) & there[:, first:]
    follows = torch.zeros_like(weak)
    if bool((weak & ~apart).any()):
        # In the span of those that hold strongly, around y as well.
        Q = row_basis(A * torch.cat([there[:, :first], strong], dim=1).unsqueeze(-1))
        own, _ = unit_rows(A[:, first:])
        within = (own - own @ Q @ Q.mT).norm(dim=-1) <= torch.finfo(y.dtype).eps ** 0.5
        kept = ActiveSet(rows, strong | (weak & within), size, size, size)
        meet = touching(some.with_active_set(kept), point, size) > 0
        follows = weak & within & ~meet.unsqueeze(1) & ~apart
    at = (items,)
    return none.index_put(at, follows), none.index_put(at, equations), none.index_put(at, apart)


def _items(problem: Problem, items: Tensor) -> Problem:
    """Some items of a batch, each with captured tensors of its own."""
    flags = problem.operands_batched
    operands = [
        x[items] if own else x.expand(len(items), *x.shape)
        for x, own in zip(problem.operands, flags, strict=True)
    ]
    return problem.resize(operands, len(items), [True] * len(operands))


def _moved_onto_the_rows(
    problem: Problem, y: Tensor, gradient: Tensor, rows: Tensor, strong: Tensor, doubted: Tensor
) -> tuple[Tensor, Tensor]:
    """Which of the ``doubted`` among the ``strong`` constraints (B, k) have no multiplier where they hold:
    (B, k) twice, for those that may or may not be active, and of these for those that are not.

    A slack s of a strong row is an error of y along its gradient a, which no residual shows: the multiplier
    takes up whatever ∇f has there. With H the curvature of L, the multiplier at y is
        λ(s) = λ(0) + s aᵀHa / |a|⁴ + …,
    of which λ(0), where the row holds, is the solution's. Of y = max(x, 0) + δ with x > 0 it is λ(0) = −x,
    and λ(δ) = δ: the multiplier is the error. So λ is taken again at y − A⁺r, r being what the rows and
    equations are off by, a step of Newton's method onto them:
    * λ(0) ≥ ½ λ(s): active, and s changes little;
    * λ(0) ≤ −2 λ(s): the straight line through both is zero at ⅔ s or more, where L has its minimum along a:
      so far from the row that it is not active;
    * else the error of y is as large as what would tell.
    Where the slack is small beside y's own entries, this is so already: λ is told beside what a relative
    change of y makes of it, and s is a smaller one.
    """
    if not bool(doubted.any()):
        return doubted, doubted
    none = y.new_zeros(len(y))
    own = 0 if (h := problem.with_active_set(None).constraints(y)) is None else h.shape[1]
    stated = problem.with_active_set(ActiveSet(rows, strong, none, none, none))

    def multipliers(constraints: ConstraintSet, slope: Tensor) -> Tensor:
        return -constraints.multipliers(slope)[:, own : own + len(rows)]

    here = constraint_set(stated, y, in_numbers=True)
    # Not the last bit of the way: a domain may end there, and a logarithm's slope is infinite.
    there = y - (_ONTO * here.restore(here.values())).reshape(y.shape)
    known = multipliers(here, flat(gradient))
    found = multipliers(
        constraint_set(stated, there, in_numbers=True), flat(problem.gradient(there))
    )
    lost = doubted & ~(found >= 0.5 * known)
    return lost, lost & (found <= -2 * known)


def _on_the_boundary(
    problem: Problem,
    y: Tensor,
    gradient: Tensor,
    rows: Tensor,
    g: Tensor,
    G: Tensor,
    strong: Tensor,
    apart: Tensor,
    edge: Tensor,
) -> tuple[Tensor, Tensor]:
    """What ∇_y L tells on the boundary, of those slacks g (B, k) of ``rows`` that are small beside y, but not
    beside the entries of y that they are of (``apart``): (B, k) twice.

    Such an entry may be right to the last digit, as one of a softmax is, or be what rounding has left of 0.
    Told along the constraint, tangent to the equations and to the others that are ``strong``:

    * noise: ∇_y L is the same there, but for what a relative change of the data by ``edge`` makes of it;
    * level: it is zero there, as is that of (y − x)² for x = 0, which no relative change moves.
    """
    if not bool(apart.any()):
        return apart, apart
    none = y.new_zeros(len(y))
    others = ActiveSet(rows, strong & ~apart, none, none, none)
    step = STEP[y.dtype]

    def constraints(problem: Problem, y: Tensor) -> ConstraintSet:
        return constraint_set(problem.with_active_set(others), y, in_numbers=True)

    nu = constraints(problem, y).multipliers(flat(gradient))
    here = constraints(problem, y).slope(nu)
    lengths = G.square().sum(dim=-1)
    # A lower bound −yᵢ = −s and its −1: y becomes the bound itself, at which log y and the like are infinite.
    step_there = apply((G * apart.unsqueeze(-1)).mT, torch.where(apart, -g / lengths, 0.0))
    there = constraints(problem, y + step_there.reshape(y.shape)).slope(nu)
    by_data = []
    for probe in range(_PROBES):
        moved = problem.with_operands(moved_operands(problem, probe))
        by_data.append(constraints(moved, perturb(y, step, 0, probe)).slope(nu) - here)
    A = constraint_jacobian(problem.with_active_set(others), y)
    if A is not None:
        normal = row_basis(A)
        G = G - (G @ normal) @ normal.mT
    along = [apply(G, x).abs() for x in (there - here, there, *by_data)]
    change, left, most = along[0], along[1], torch.stack(along[2:]).amax(dim=0) / step
    free = apart & (G.square().sum(dim=-1) > step * lengths)
    level = free & (left <= torch.finfo(y.dtype).eps * change)
    return free & (change <= edge * most), level


def _nearly_touching(
    problem: Problem,
    y: Tensor,
    rows: Tensor,
    G: Tensor,
    strong: Tensor,
    size: Tensor,
    edge: float,
) -> Tensor:
    """In which items ``strong`` constraints all but touch, (B,): where their gradients, with the equations',
    are at an angle of at most ``edge``, not of rounding, and they bend unlike each other along the boundary.

    Multipliers may then be shared out in many ways, each with another curvature of L on the tangent space,
    and so with another derivative. A circle and an ellipse in it that touch are such. Rows that are
    written twice bend alike, and where nothing is left of the tangent space, nothing bends.
    """
    none = torch.zeros_like(strong.any(dim=1))
    if not bool(strong.any()):
        return none
    free = problem.with_active_set(None)
    A = constraint_jacobian(free, y)
    held = G * strong.unsqueeze(-1)
    held = held if A is None else torch.cat([A, held], dim=1)
    lengths = held.norm(dim=-1)
    lengths = torch.where(lengths > 0, lengths, 1.0)
    held = held / lengths.unsqueeze(-1)

    def values(move: Tensor) -> Tensor:
        """h and g at y + move (B, m), in units of their rows."""
        there = y + move.reshape(y.shape)
        g, h = free.inequalities(there), free.all_constraints(there)
        assert g is not None  # a problem without has no active set
        g = g[:, rows] * strong
        return (g if h is None else torch.cat([h, g], dim=1)) / lengths

    move = flat(perturb(torch.ones_like(y), _FAR_ENOUGH, 0, 0) - 1) * size.unsqueeze(1)
    here = values(0 * move)
    most = STEP[y.dtype] * move.norm(dim=1, keepdim=True)
    if bool(((values(move) - here - apply(held, move)).abs() <= most).all()):
        return none
    (held,) = without_bad_items(held)
    U, S, Vh = torch.linalg.svd(held)
    small = S / S[:, :1] <= edge  # the first is the largest, and above 0

    def rest(count: int) -> Tensor:
        more = small.new_ones(len(small), count - small.shape[1])
        return torch.cat([small, more], dim=1)

    nearly = small & (S / S[:, :1] > 8 * max(held.shape[1:]) * torch.finfo(S.dtype).eps)
    combinations = U.mT[:, : S.shape[1]] * nearly.unsqueeze(-1)
    tangent = Vh * rest(Vh.shape[1]).unsqueeze(-1)
    along = apply(tangent.mT, apply(tangent, move))
    own = 0 if A is None else A.shape[1]
    of_strong = combinations[:, :, own:].square().sum(dim=-1) > STEP[y.dtype]
    apart = apply(combinations, values(along) - here - apply(held, along)).abs()
    return (of_strong & (apart > most)).any(dim=1)


def _changes_of_slope(problem: Problem, y: Tensor, gradient: Tensor) -> list[Tensor]:
    """How ∇f (B, m) changes with some relative changes of operands and y, for each of size one."""
    step, changes = STEP[y.dtype], []
    for probe in range(_PROBES):
        there = problem.with_operands(moved_operands(problem, probe))
        changes.append((flat(there.gradient(perturb(y, step, 0, probe))) - gradient) / step)
    return changes


def _largest(problem: Problem, changes: list[Tensor]) -> Tensor:
    """Of the changes of each entry of ∇f (B, m)."""
    scale = torch.stack(changes).abs().amax(dim=0)
    if problem.selection is not None:
        # In the one unit that the norm has: of an entry that is 0 the multiplier may be all rounding.
        scale = torch.maximum(scale, scale.square().mean(dim=1, keepdim=True).sqrt())
    return scale
