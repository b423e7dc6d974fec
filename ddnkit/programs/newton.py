"""Newton's method by a program: the whole steps that `ddnkit.solvers.newton` takes where all is plain.

Where the Hessian of the Lagrangian is clearly positive definite on the tangent space, and the step or a
half, a quarter or an eighth of it lowers the merit function, not in a straight line, the solver takes the
largest of these and looks no further. Such a step is one program. Whatever else there is, an escape from a
saddle point, a longer step, a problem without a solution, is left to the solver, from the start: the
iterates are the same up to rounding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from ..node import DeclarativeNode
from ..problem import Problem, flat
from ..solution import Solution, Status
from ..solver import as_solver
from ..solvers.newton import Newton
from ..solvers.riemannian import Riemannian
from .equations import Limits, Shape, factorise, local, multipliers, times
from .program import Program, trace

#: As the solver's merit search has them.
_ARMIJO, _ROUNDINGS, _STRAIGHT, _LONGEST = 1e-4, 16, 1e-3, 10.0
#: Parts of a step that are tried, all at once.
_LENGTHS = (1.0, 0.5, 0.25, 0.125)


class NewtonProgram(NamedTuple):
    """Newton's method for problems of one signature.

    Attributes:
        step: see `_step`.
        solver: the node's, as it names it.
        most: steps, after which the solver is asked.
        together: whether the starts of all items are found at once, by vmap, which gives the same.
    """

    step: Program
    solver: Any
    most: int
    together: bool

    @classmethod
    def of(
        cls, problem: Problem, start: Tensor, limits: Limits, shape: Shape
    ) -> NewtonProgram | None:
        """Traced for a problem; None where another solver is at work.

        Raises:
            NotAProgramError: its functions cannot be traced.
        """
        node = problem.node
        if type(node).solve is not DeclarativeNode.solve:
            return None
        solver = as_solver(node.solver)
        if type(solver) is Riemannian and solver.iterates_by_newton(problem, start):
            solver = as_solver(Newton.name)
        if type(solver) is not Newton or solver.max_time is not None:
            return None
        eps = torch.finfo(start.dtype).eps
        tolerance = eps ** (2 / 3) if solver.tolerance is None else solver.tolerance
        penalty, running = start.new_zeros(len(start)), start.new_ones(len(start)) > 0
        step = trace(
            _step(problem, limits, shape, tolerance), [start, penalty, running, *problem.operands]
        )
        return cls(step, node.solver, solver.max_iterations, starts_are_alike(problem))

    def start(self, problem: Problem) -> Tensor | None:
        """Where the solver starts (B, *y); None where it is not the one that was traced."""
        if problem.node.solver != self.solver:
            return None
        return starts_together(problem) if self.together else problem.start()

    def examples(self, y: Tensor, operands: Sequence[Tensor]) -> list[Tensor]:
        """Inputs of the step."""
        penalty = y.new_zeros(len(y))
        return [y, penalty, penalty == 0, *operands]

    def solve(self, start: Tensor, operands: Sequence[Tensor]) -> Solution | None:
        """The solution (B, *y) from ``start``; None where the solver is to be asked."""
        y, penalty = start.contiguous(), start.new_zeros(len(start))
        running = penalty == 0
        iterations = torch.zeros(len(start), dtype=torch.long)
        for _ in range(self.most):
            flags, y, penalty, running = self.step(y, penalty, running, *operands)
            plain, ended = flags.tolist()
            if not plain:
                return None
            if ended:
                status = torch.full((len(start),), int(Status.CONVERGED))
                return Solution(y, status, iterations, Newton.name)
            iterations = iterations + running
        return None


def starts_are_alike(problem: Problem) -> bool:
    """Whether `starts_together` gives what the items' starts are one by one."""
    if problem.batch_size == 1:
        return False
    with contextlib.suppress(Exception):  # what a vmap does not take is asked for one by one
        return torch.equal(starts_together(problem), problem.start())
    return False


def starts_together(problem: Problem) -> Tensor:
    """The node's initial points (B, *y), by vmap."""
    found: Tensor = torch.vmap(problem.node.initial_point)(*problem.inputs)
    return found


def _step(
    problem: Problem, limits: Limits, shape: Shape, tolerance: float
) -> Callable[..., tuple[Tensor, ...]]:
    """The function of y, the merit function's penalties (B,), the items that are not done (B,), and the
    operands, that gives: whether all is plain, and all is done; the next y, penalties, and items."""

    def step_once(
        y: Tensor, penalty: Tensor, running: Tensor, *operands: Tensor
    ) -> tuple[Tensor, ...]:
        problem_here = problem.with_operands(operands)
        here = local(problem_here, y, shape)
        system, pivot = factorise(here, shape)
        h = here.gradient[:, :0] if here.rows is None else here.rows.h
        g, A = here.gradient, None if here.rows is None else here.rows.A
        d, mu = system.solve(-g, None if A is None else -h)
        d = d.to(y.dtype)
        if A is None or mu is None:
            nu = h
        elif shape is Shape.TANGENT:  # μ is that of the lifted system
            nu = multipliers(A, g + times(here.hessian, d))[0]
        else:
            nu = -mu.to(y.dtype)
        size, whole = _norm(flat(y)), _norm(d)
        plain = (pivot >= limits.pivot) & (whole <= _LONGEST * size.clamp_min(1))
        if here.rows is not None and A is not None:
            plain = plain & (here.rows.pivot >= limits.pivot)
            feasible = _norm(h) <= tolerance * torch.linalg.matrix_norm(A) * size
            pulled = times(A.mT, nu)
        else:
            feasible, pulled = running | True, torch.zeros_like(g)
        converged = (whole <= tolerance * size) & feasible
        slope = ((g - pulled) * d).sum(dim=-1)
        change = -h.square().sum(dim=-1)
        eps = torch.finfo(y.dtype).eps
        uphill = slope > _ROUNDINGS * eps * (_norm(g) + _norm(pulled)) * whole
        needed = torch.where(uphill & (change < 0), -2 * slope / change, 0.0)
        penalty = torch.maximum(penalty, needed)
        slope = (slope + penalty * change).clamp_max(0)

        def merit(value: Tensor, h: Tensor) -> Tensor:
            return value - (nu * h).sum(dim=-1) + penalty / 2 * h.square().sum(dim=-1)

        lengths = y.new_tensor(_LENGTHS).unsqueeze(-1)
        step = d.reshape(y.shape)

        def at(t: Tensor) -> Tensor:
            point = y + t * step
            h_there = h if A is None else problem_here.all_constraints(point)
            assert h_there is not None
            return merit(problem_here.objective(point), h_there)

        value = problem_here.objective(y)
        before, after = merit(value, h), vmap(at)(lengths.squeeze(-1))
        linear = (nu * h).sum(dim=-1).abs()
        noise = _ROUNDINGS * eps * (value.abs() + linear + before.abs())
        falls = after <= before + _ARMIJO * lengths * slope + noise
        length = (lengths * falls).amax(dim=0)
        bend = (after[0] - before - slope).abs()
        straight = (length == 1) & (bend <= _STRAIGHT * slope.abs()) & (-slope > noise)
        plain = plain & (converged | ((length > 0) & ~straight))
        # The last, quadratically convergent step is below what the merit function resolves.
        length = torch.where(converged, 1.0, length) * running
        moved = y + length.reshape(-1, *[1] * (y.ndim - 1)) * step
        left = running & ~converged
        flags = torch.stack([torch.where(running, plain, True), ~left]).all(dim=1)
        return flags, moved, penalty, left

    return step_once


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1)
