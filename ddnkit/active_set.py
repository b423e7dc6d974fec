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
    constraint_jacobian,
    inequality_jacobian,
    least_squares_multipliers,
    row_basis,
)
from .linalg.items import apply
from .perturbation import STEP, perturb
from .problem import Problem, flat
from .qualification import are_dependent, moves_apart, touching
from .solution import SETTLED
from .solution_size import moved_operands, size_of_solution

#: What a solution that is good to the tolerance may leave of a slack or a multiplier, in tolerances.
EDGE = 10
_PROBES = 3


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
    """

    rows: Tensor
    active: Tensor
    margin: Tensor
    violation: Tensor
    size: Tensor

    @property
    def count(self) -> int:
        """How many constraints they are."""
        return len(self.rows)

    def of_items(self, items: Any) -> ActiveSet:
        """Those of some items of the batch."""
        parts = {name: value for name, value in vars(self).items() if name != "rows"}
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
    c = _change_of_slope(problem, y, flat(gradient))
    relative, left, kept = _relative_multipliers(problem, y, gradient, c, G, held, edge)
    # Let go, and ∇_y L is not zero without them: y is no minimum while they hold.
    refused = held & ~kept & (left > edge * c.norm(dim=1)).unsqueeze(1)
    strong = held & (relative > edge)
    weak = held & ~strong & ~refused & (distance[:, rows] <= edge)
    unclear = (near & (of_size > sharp)).any(dim=1) | (held & ~strong).any(dim=1)
    if sharp < edge and bool(unclear.any()):
        held = held & (of_size[:, rows] <= sharp)
        other, left, _ = _relative_multipliers(problem, y, gradient, c, G, held, sharp)
        solved = left <= SETTLED * torch.finfo(y.dtype).eps * c.norm(dim=1)
        use = (unclear & solved).unsqueeze(1)
        relative = torch.where(use, other, relative)
        strong = torch.where(use, held & (other > sharp), strong)
        clearly = held & ~strong & (distance[:, rows] <= sharp)
        weak = torch.where(use, clearly, weak)
        refused = refused & ~use
    follows, apart = _dependence(problem, y, rows, G, strong, weak, size, derived)
    weak = weak & ~follows
    chosen = problem.node.degenerate in ("one_sided", "least_norm") or tolerance == torch.inf
    clear = distance.clone()
    of_weak = torch.inf if chosen else 0.0
    told = torch.where(strong, relative, distance[:, rows])
    # That y is no minimum is told by its slope, and the rest would only confuse.
    told = told.masked_fill(follows | refused, torch.inf)
    clear[:, rows] = told.masked_fill(weak | apart, of_weak)
    if strongly:
        kept = strong.any(dim=0)
        rows, strong, relative = rows[kept], strong[:, kept], relative[:, kept]
        clear = torch.where(strong, relative, torch.inf)
        margin = clear.amin(dim=1) if clear.shape[1] else torch.full_like(size, torch.inf)
        return ActiveSet(rows, strong, margin, torch.zeros_like(size), size)
    active = strong if problem.node.degenerate == "one_sided" else strong | weak
    inactive = torch.ones_like(near)
    inactive[:, rows] = ~(strong | weak)
    return ActiveSet(
        rows=rows,
        active=active,
        margin=clear.amin(dim=1),
        violation=torch.where(inactive & (g > 0), distance, 0.0).amax(dim=1),
        size=size,
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
    c: Tensor,
    G: Tensor,
    held: Tensor,
    edge: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """λ (B, k) of the rows G (B, k, m) where they are ``held``, relative to c (B, m), what ∇f changes by, the
    size of what they leave of ∇f, (B,), and which rows were kept.

    Least squares; rows whose λ is negative are let go, the most negative first, as a solution with a
    nonnegative one may have them.
    """
    A = constraint_jacobian(problem.with_active_set(None), y)
    own = 0 if A is None else A.shape[1]
    lengths = G.square().sum(dim=-1)
    weight = apply(G.abs(), c)
    while True:
        rows = G * held.unsqueeze(-1)
        stacked = rows if A is None else torch.cat([A, rows], dim=1)
        everything = least_squares_multipliers(stacked, gradient)
        found = -everything[:, own:]
        relative = torch.where(held & (found != 0), found * lengths / weight, 0.0)
        worst = relative.amin(dim=1, keepdim=True) if relative.shape[1] else relative
        dropped = held & (relative < -edge) & (relative == worst)
        if not bool(dropped.any()):
            left = flat(gradient) - apply(stacked.mT, everything)
            return relative, left.norm(dim=1), held
        held = held & ~dropped


def _dependence(
    problem: Problem,
    y: Tensor,
    rows: Tensor,
    G: Tensor,
    strong: Tensor,
    weak: Tensor,
    size: Tensor,
    derived: Sequence[bool] | None,
) -> tuple[Tensor, Tensor]:
    """Which weakly active constraints (B, k) follow from the others that hold, and which of those that hold
    depend on others here and do not for other operands."""
    none = torch.zeros_like(weak)
    if not len(rows) or not len(y):
        return none, none
    bare = problem.with_active_set(None)
    A = constraint_jacobian(bare, y)
    equations = 0 if A is None else A.shape[1]
    stacked = G if A is None else torch.cat([A, G], dim=1)
    stacked = torch.where(stacked.isfinite(), stacked, 0.0)
    there = torch.cat(
        [torch.ones_like(stacked[:, :equations, 0], dtype=torch.bool), strong | weak], 1
    )
    items = are_dependent(stacked, there).nonzero()[:, 0]
    if not len(items):
        return none, none
    some = _items(bare, items)
    parts = some, y[items], stacked[items], there[items], rows
    apart = none.index_put((items,), moves_apart(*parts, derived))
    follows = none
    if bool((weak[items] & ~apart[items]).any()):
        # In the span of those that hold strongly, around y as well.
        held = torch.cat([there[items][:, :equations], strong[items]], dim=1)
        Q = row_basis(stacked[items] * held.unsqueeze(-1))
        own = G[items] / G[items].norm(dim=-1, keepdim=True).clamp_min(torch.finfo(G.dtype).tiny)
        within = (own - own @ Q @ Q.mT).norm(dim=-1) <= torch.finfo(y.dtype).eps ** 0.5
        held = strong[items] | (weak[items] & within)
        kept = ActiveSet(rows, held, *[size[items]] * 3)
        meet = touching(some.with_active_set(kept), y[items], size[items]) > 0
        follows = none.index_put((items,), weak[items] & within & ~meet.unsqueeze(1))
    return follows & ~apart, apart


def _items(problem: Problem, items: Tensor) -> Problem:
    """Some items of a batch, each with captured tensors of its own."""
    flags = problem.operands_batched
    operands = [
        x[items] if own else x.expand(len(items), *x.shape)
        for x, own in zip(problem.operands, flags, strict=True)
    ]
    return problem.resize(operands, len(items), [True] * len(operands))


def _change_of_slope(problem: Problem, y: Tensor, gradient: Tensor) -> Tensor:
    """How much each entry of ∇f (B, m) changes with a relative change of operands and y."""
    step = STEP[y.dtype]
    scale = torch.zeros_like(gradient)
    for probe in range(_PROBES):
        there = problem.with_operands(moved_operands(problem, probe))
        change = flat(there.gradient(perturb(y, step, 0, probe))) - gradient
        scale = torch.maximum(scale, change.abs() / step)
    if problem.selection is not None:
        # In that one unit too: of an entry that is 0 the multiplier may be all rounding.
        scale = torch.maximum(scale, scale.square().mean(dim=1, keepdim=True).sqrt())
    return scale
