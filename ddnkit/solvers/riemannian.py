"""Solvers that keep to a manifold, whatever it is: what trust regions and line searches share.

All are batched, in torch, on the device and in the dtype of the inputs; each item has a step, a status and an
end of its own. Steps are measured in the manifold's metric and taken by its retraction (`ddnkit.Manifold`).

When to stop is what the certificate asks (`ddnkit.certificate`): ∇f less its normal part, beside how much
that changes with a relative change of data and y.

Source: Absil, Mahony and Sepulchre, *Optimization Algorithms on Matrix Manifolds*; Boumal, *An Introduction
to Optimization on Smooth Manifolds*.
"""

from __future__ import annotations

import abc
import contextlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedProblemError
from ..linalg.replay import Replayed
from ..manifold import Manifold
from ..perturbation import STEP, perturb
from ..problem import Problem, derivative, flat
from ..solution import Solution, Status
from ..solution_size import moved_operands
from ..solver import Solver, as_solver
from .iterative import Deadline, IterativeSolver, number
from .no_solution import Depth
from .residual import norm

RUNNING = -1
_SMALL = 64
_PROBES = 2
_ROUNDINGS = 16


@dataclass(frozen=True)
class Riemannian(Solver):
    """Solves  min f(x, y) over y on a manifold: in closed form where possible, else by a Newton method.

    The default of a node on a manifold and under no further constraints. The manifold names the closed forms
    (`Manifold.closed_form_solvers`), which look whether the objective is one of theirs. Up to 64 unknowns,
    where the whole Hessian costs no more than a few products with it, `newton` is next, of which short calls
    have programs; what it does not solve, all else, and what is steered by a metric of the manifold's own, is
    solved by trust regions along it.
    """

    name = "riemannian"

    def unsupported(self, problem: Problem) -> str | None:
        """Needs a manifold and no further constraints."""
        return reason_to_decline(problem)

    def solve(self, problem: Problem, start: Tensor | None = None) -> Solution:
        """By the first that takes the problem, and each item that it leaves unsolved by the last."""
        # Settles the structure of y, without which a product is no manifold.
        start = problem.start() if start is None else start
        found = self._in_closed_form(problem, start)
        if found is not None:
            return found
        last = as_solver("riemannian_trust_regions")
        if not takes_newton(problem.manifold, start):
            return last.solve(problem, start)
        found = as_solver("newton").solve(problem, start)
        status, iterations = torch.as_tensor(found.status), torch.as_tensor(found.iterations)
        left = (status != Status.CONVERGED).expand(len(start))
        if not bool(left.any()):
            return found
        other = last.solve(problem, start)
        return replace(
            other if bool(left.all()) else found,
            y=torch.where(per_item(left, found.y), other.y.to(found.y), found.y),
            status=torch.where(left, torch.as_tensor(other.status), status),
            iterations=torch.where(left, torch.as_tensor(other.iterations), iterations),
        )

    def iterates_by_newton(self, problem: Problem, start: Tensor) -> bool:
        """Whether Newton's method is what solves the problem from there, where it solves it."""
        return (
            takes_newton(problem.manifold, start) and self._in_closed_form(problem, start) is None
        )

    def _in_closed_form(self, problem: Problem, start: Tensor) -> Solution | None:
        for name in problem.manifold.closed_form_solvers:
            with contextlib.suppress(UnsupportedProblemError):
                return as_solver(name).solve(problem, start)
        return None


def takes_newton(manifold: Manifold, start: Tensor) -> bool:
    """Whether a problem is small, and on a manifold in the metric of the space around it."""
    plain = type(manifold).gradient is Manifold.gradient
    return start.shape[1:].numel() <= _SMALL and plain


@dataclass(frozen=True, kw_only=True)
class ManifoldSolver(IterativeSolver):
    """Solves  min f(x, y) over y on a manifold  by steps along it.

    Args:
        max_iterations: steps allowed.
        tolerance: largest backward error of a stationary point, as the certificate measures it; None for what
            each solver names.
        max_time: seconds for one call, the whole batch; None for no limit. Looked at between steps.

    Status per item: CONVERGED; MAX_ITERATIONS; TIME_LIMIT; STALLED, where no step decreases f any more;
    UNBOUNDED (see `no_solution`); NON_FINITE, where f or its gradient is so at the start.
    """

    tolerance: float | None = number(None)

    def unsupported(self, problem: Problem) -> str | None:
        """Needs a manifold and no further constraints."""
        return reason_to_decline(problem)

    def solve(self, problem: Problem, start: Tensor | None = None) -> Solution:
        """Solve every item from the point of the manifold next to ``start``."""
        deadline = Deadline(self.max_time)
        y = (problem.start() if start is None else start).detach()
        if y.dtype not in STEP:
            y = y.float()
        status = torch.full((len(y),), RUNNING, device=y.device)
        iterations = torch.zeros_like(status)
        if len(y) == 0:
            return Solution(y, status, iterations, self.name)
        with torch.no_grad():
            run = self.start(problem, y)
            for iteration in range(self.max_iterations + 1):
                running = status == RUNNING
                status = torch.where(running, run.judge(running), status)
                running = status == RUNNING
                if iteration == self.max_iterations:
                    status = torch.where(running, int(Status.MAX_ITERATIONS), status)
                elif deadline.passed:
                    status = torch.where(running, int(Status.TIME_LIMIT), status)
                running = status == RUNNING
                if not bool(running.any()):
                    break
                run.step(running)
                iterations = iterations + running
        return Solution(run.point.y, status, iterations, self.name)

    @abc.abstractmethod
    def start(self, problem: Problem, y: Tensor) -> Run:
        """The run of one call, from y (B, *y)."""


def reason_to_decline(problem: Problem) -> str | None:
    """Why a solver that keeps to the node's manifold cannot take the problem, or None if it can."""
    name = type(problem.node).__name__
    if problem.node.manifold is None:
        return f"{name} has no manifold; this solver needs one"
    if not problem.batch_size or not problem.node.constrained:
        return None
    if problem.constraints(problem.start()) is None:
        return None
    return f"{name} has equality_constraints beside its manifold; this solver keeps to the manifold alone"


class Point:
    """f and its slope at a point y (B, *y) of the manifold.

    Attributes:
        value: (B,). euclidean: ∇f, (B, *y). gradient: the Riemannian one. square: its squared length, (B,).
        slope: (B,), ‖∇f less its normal part‖, the Euclidean norm that the certificate measures.
    """

    def __init__(self, problem: Problem, y: Tensor, *, second: bool = False) -> None:
        manifold: Manifold = problem.manifold
        with torch.enable_grad():
            self._variable = y.detach().requires_grad_()
            values = problem.objective(self._variable)
            found = derivative(values.sum(), self._variable, create_graph=second)
        self._graph = found if second and found.requires_grad else None
        self._manifold = manifold
        self.y, self.value, self.euclidean = y, values.detach(), found.detach()
        self.gradient = manifold.gradient(y, self.euclidean)
        self.square = manifold.inner(y, self.gradient, self.gradient)
        plain = type(manifold).gradient is Manifold.gradient
        self.slope = norm(flat(self.gradient if plain else manifold.tangent(y, self.euclidean)))

    @property
    def finite(self) -> Tensor:
        """Whether f and its gradient are, (B,)."""
        return self.value.isfinite() & self.slope.isfinite()

    def hessian(self) -> Any:
        """The Riemannian Hessian as a map of tangent vectors (B, *y)."""

        def product(z: Tensor) -> Tensor:
            if self._graph is None:
                return torch.zeros_like(z)
            (found,) = torch.autograd.grad(
                self._graph, self._variable, z, retain_graph=True, allow_unused=True
            )
            return torch.zeros_like(z) if found is None else found

        of_objective = Replayed(product)
        y, gradient, manifold = self.y, self.euclidean, self._manifold
        if type(manifold).hessian is Manifold.hessian:
            sigma = manifold.multipliers(y, gradient)
            return lambda z: manifold.tangent(
                y, of_objective(z) - manifold.constraint_curvature(y, sigma, z)
            )
        return lambda z: manifold.hessian(y, gradient, of_objective(z), z)


class Run(abc.ABC):
    """The iterates of a batch: what belongs to one call.

    Attributes:
        point: where they are.
        size: (B,), the length of y in the metric at the start, 1 if it is zero.
    """

    #: whether `Point.hessian` is asked for
    second = False

    def __init__(self, problem: Problem, y: Tensor, tolerance: float) -> None:
        self.problem, self.manifold, self.tolerance = problem, problem.manifold, tolerance
        y = self._start_on_manifold(y)
        self.point = self.at(y)
        self.eps = torch.finfo(y.dtype).eps
        size = self.manifold.inner(y, y, y).abs().sqrt()
        self.size = torch.where((size > 0) & size.isfinite(), size, 1.0)
        self.scale = self.measure()
        self.failed = torch.zeros_like(self.scale, dtype=torch.bool)
        here = self.point
        self.depth = Depth(problem, y, here.value, flat(here.euclidean), self.scale)

    def at(self, y: Tensor) -> Point:
        """f and its slope there."""
        return Point(self.problem, y, second=self.second)

    def measure(self) -> Tensor:
        """What ‖∇f less its normal part‖ is small against, (B,): how much a relative change of data and y, of
        size one, changes it."""
        y, problem = self.point.y, self.problem
        step, scale = STEP[y.dtype], torch.zeros_like(self.point.slope)
        sigma = self.manifold.multipliers(y, self.point.euclidean)
        here = self.manifold.less_normal(self.point.euclidean, y, sigma)
        for probe in range(_PROBES):
            moved = problem.with_operands(moved_operands(problem, probe))
            there = perturb(y, step, 0, probe)
            slope = self.manifold.less_normal(moved.gradient(there), there, sigma)
            change = norm(flat(slope - here)) / step
            scale = torch.maximum(scale, torch.where(change.isfinite(), change, 0.0))
        return scale

    def judge(self, active: Tensor) -> Tensor:
        """The status of each item, (B,), -1 to go on."""
        here = self.point
        passed = active & (here.slope <= self.tolerance * self.scale)
        if bool(passed.any()):
            self.scale = torch.where(passed, self.measure(), self.scale)
            passed = active & (here.slope <= self.tolerance * self.scale)
        converged = passed & self.settled(passed)
        good = here.slope <= self.good_enough * self.scale
        outcome = torch.full_like(active, RUNNING, dtype=torch.long)
        outcome = torch.where(
            self.failed, torch.where(good, int(Status.CONVERGED), int(Status.STALLED)), outcome
        )
        beyond = active & self.depth.beyond(here.y, here.value)
        if bool(beyond.any()):
            fallen = self.depth.unbounded(here.y, here.value)
            outcome = torch.where(
                beyond, torch.where(fallen, int(Status.UNBOUNDED), int(Status.STALLED)), outcome
            )
        outcome = torch.where(converged, int(Status.CONVERGED), outcome)
        return torch.where(here.finite, outcome, int(Status.NON_FINITE))

    @property
    def good_enough(self) -> float:
        """The backward error with which an item that gets no further has converged."""
        return 2 * self.tolerance

    def settled(self, passed: Tensor) -> Tensor:
        """Which of the items that ``passed`` the tolerance end there."""
        return passed

    @abc.abstractmethod
    def step(self, active: Tensor) -> None:
        """One step of the ``active`` items, (B,)."""

    def noise(self, value: Tensor) -> Tensor:
        """What rounding makes of f, (B,)."""
        return _ROUNDINGS * self.eps * torch.maximum(value.abs(), self.point.value.abs())

    def move(self, moved: Tensor, there: Point) -> None:
        """Go to ``there`` with the items ``moved``, (B,)."""
        if bool(moved.all()):
            self.point = there
        else:
            self.point = self.at(torch.where(per_item(moved, there.y), there.y, self.point.y))

    def _start_on_manifold(self, y: Tensor) -> Tensor:
        # What is on it stays what it is, to the last digit.
        off = self.manifold.infeasibility(y) > _ROUNDINGS * torch.finfo(y.dtype).eps
        if not bool(off.any()):
            return y
        finite = flat(y).isfinite().all(dim=1)
        other = self.manifold.project(torch.where(per_item(finite, y), y, 0.0))
        return torch.where(per_item(off & finite, y), other, y)


def per_item(values: Tensor, like: Tensor) -> Tensor:
    """(B,) reshaped to multiply a tensor of shape (B, ...)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))
