"""Strictly convex quadratic programs by a program: steps from one set of constraints that hold to the next.

    min ½yᵀHy + qᵀy   subject to   A y = b,   C y ≤ d,   l ≤ y ≤ u.
A step solves the problem with those constraints that hold as equations and without the others. Those with a
negative multiplier leave, those that are violated enter (a primal-dual active set method). Where nothing
changes any more, all conditions of optimality hold. Where that comes to dependent constraints, or to no end,
it begins anew, and one constraint enters or leaves at a time, the worst.

The problem is convex, and has one solution, where H, A and C do not depend on y, which the traced derivatives
show, and H is positive definite on the null space of A, which the factors of the first step show: nothing
but the equations holds there. So the way does not matter, and it is the solution that the node's own solver
finds. Steps that come to no end, or to dependent constraints, are left to that one.

Source: Hintermüller, Ito and Kunisch, *The primal-dual active set strategy as a semismooth Newton method*
(2003).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..lagrangian import objective_gradient
from ..node import DeclarativeNode
from ..problem import Problem, flat
from ..solution import Solution, Status
from ..solver import as_solver
from ..solvers.interior_point import InteriorPoint
from .equations import (
    Limits,
    Local,
    Rows,
    Shape,
    factorise,
    hessian,
    jacobian,
    stated,
    times,
)
from .held import Sides, least_squares
from .newton import starts_are_alike, starts_together
from .program import Program, trace

#: Of the traced derivatives, which are matrices.
MOST_UNKNOWNS = 256
#: Steps, after which one at a time is tried, and after which the solver is asked.
_MOST_AT_ONCE, _MOST = 8, 32


class QuadraticProgram(NamedTuple):
    """The solver of quadratic programs of one signature.

    Attributes:
        step: see `_step`.
        solver: the node's, as it names it.
        together: whether the starts of all items are found at once, by vmap, which gives the same.
        none: of the inequality constraints (B, q).
        wide: whether it is solved in float64, as the solver does.
    """

    step: Program
    solver: Any
    together: bool
    none: Tensor
    wide: bool

    @classmethod
    def of(
        cls, problem: Problem, start: Tensor, limits: Limits, shape: Shape
    ) -> QuadraticProgram | None:
        """Traced for a problem; None where it is another one, or another solver is at work.

        Raises:
            NotAProgramError: its functions cannot be traced.
        """
        node = problem.node
        if type(node).solve is not DeclarativeNode.solve:
            return None
        solver = as_solver(node.solver)
        if type(solver) is not InteriorPoint or solver.max_time is not None:
            return None
        if start.shape[1:].numel() > MOST_UNKNOWNS:
            return None
        wide = start.dtype != torch.float64
        if wide:
            problem, start = problem.in_float64(), start.double()
            limits = Limits.of(start.dtype, limits.rounding)
        derivatives = trace(_derivatives(problem), [start, *problem.operands])
        if any(0 in inputs for inputs in derivatives.made_of):
            return None
        none = torch.zeros_like(Sides.of(problem, start).values(problem, start), dtype=torch.bool)
        step = trace(
            _step(problem, start, limits, shape),
            [torch.tensor(True), start, none, *problem.operands],
        )
        return cls(step, node.solver, starts_are_alike(problem), none, wide)

    def start(self, problem: Problem) -> Tensor | None:
        """Where the solver starts (B, *y); None where it is not the one that was traced."""
        if problem.node.solver != self.solver:
            return None
        return starts_together(problem) if self.together else problem.start()

    def examples(self, y: Tensor, operands: Sequence[Tensor]) -> list[Tensor]:
        """Inputs of the step."""
        return [torch.tensor(True), self._wide(y), self.none, *map(self._wide, operands)]

    def _wide(self, x: Tensor) -> Tensor:
        return x.double() if self.wide and x.dtype == torch.float32 else x

    def solve(self, start: Tensor, operands: Sequence[Tensor]) -> Solution | None:
        """The solution (B, *y) from ``start``; None where the solver is to be asked."""
        at_once, *begin = self.examples(start.contiguous(), operands)
        y, held, *operands = begin
        iterations = torch.zeros(len(start), dtype=torch.long)
        quick = True
        for turn in range(_MOST):
            flags, y, held, moved = self.step(at_once, y, held, *operands)
            plain, ended = flags.tolist()
            if plain and ended:
                status = torch.full((len(start),), int(Status.CONVERGED))
                return Solution(y.to(start.dtype), status, iterations, InteriorPoint.name)
            if quick and (not plain or turn == _MOST_AT_ONCE):
                quick, at_once, (y, held) = False, ~at_once, begin[:2]
            elif not plain:
                return None
            iterations = iterations + moved
        return None


def _derivatives(problem: Problem) -> Callable[..., Sequence[Tensor]]:
    """The function of y and the operands that gives those which are to be the same for all y."""

    def found(y: Tensor, *operands: Tensor) -> Sequence[Tensor]:
        here = problem.with_operands(operands)
        parts = [hessian(here, y, None, Shape.DEFINITE)[0]]
        h = stated(here, y)
        if h is not None:
            parts.append(jacobian(here, y, h[:, :0], lambda here, y, _: stated(here, y)))
        return parts

    return found


def _step(
    problem: Problem, start: Tensor, limits: Limits, shape: Shape
) -> Callable[..., tuple[Tensor, ...]]:
    """The function of whether constraints enter and leave at once, y, those that hold (B, q), and the
    operands, that gives: whether all is plain, and all is done; the next y and constraints; and which items
    go on (B,)."""
    sides, near = Sides.of(problem, start), torch.finfo(start.dtype).eps ** 0.5

    def step_once(
        at_once: Tensor, y: Tensor, held: Tensor, *operands: Tensor
    ) -> tuple[Tensor, ...]:
        here = problem.with_operands(operands)
        at = sides.at_bounds(held)
        free = None if at is None else at.free
        if at is not None:
            y = torch.where(at.free, flat(y), at.bound(here, y)).reshape(y.shape)
        g, h = objective_gradient(here, y), stated(here, y)
        H, alone = hessian(here, y, None, shape)
        rows = there = None
        if h is not None:
            A = jacobian(here, y, h[:, :0], lambda here, y, _: stated(here, y))
            there = torch.ones_like(h, dtype=torch.bool)
            if sides.own:
                there = torch.cat([there[:, sides.own :], held[:, : sides.own]], dim=-1)
                h, A = torch.where(there, h, 0.0), torch.where(there.unsqueeze(-1), A, 0.0)
            rows = Rows(h, A, h, h, h)
        system, pivot = factorise(Local(g, H, alone, rows, there, free), shape)
        d, mu = system.solve(-g, None if h is None else -h)
        moved = y + d.reshape(y.shape)
        slope = g + (H * d if shape is Shape.DIAGONAL else times(H, d))
        if rows is not None and mu is not None and there is not None:
            if shape is Shape.TANGENT:  # μ is that of the lifted system
                mu = -least_squares(rows.A, there, free, slope.unsqueeze(-1))[0].squeeze(-1)
            slope = slope + times(rows.A.mT, mu)
        parts = []
        if sides.own and mu is not None:
            parts.append(mu[:, mu.shape[1] - sides.own :])
        parts += [slope] * sides.lower + [-slope] * sides.upper
        multiplier = torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
        wrong = torch.where(held, -multiplier, sides.values(here, moved))
        leaves = torch.where(held, wrong, 0.0).amax(dim=-1, keepdim=True) > 0
        worst = torch.where(leaves & ~held, 0.0, wrong)
        one = (wrong > 0) & (worst == worst.amax(dim=-1, keepdim=True))
        after = held ^ ((wrong > 0) & (at_once | one))
        size = torch.linalg.vector_norm(flat(moved), dim=-1)
        same = (after == held).all(dim=-1)
        done = same & (torch.linalg.vector_norm(d, dim=-1) <= near * size)
        flags = torch.stack([pivot >= limits.pivot, done]).all(dim=1)
        return flags, moved, after, ~done

    return step_once
