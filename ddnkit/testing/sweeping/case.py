"""What a sweep compares: a problem with known derivatives, and a backward form at work on it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap

from ...backward.form import BackwardForm
from ...layer import DeclarativeLayer
from ..known_problem import KnownProblem, sample
from ..parts import join_parts

_RATIO = 4.0
#: 1e-2 to 2e-6, the coarsest first.
_STEPS = 1e-2 * _RATIO ** -torch.arange(7, dtype=torch.float64)
_ORDERS = 3
#: Of weights and directions: not one that inputs are sampled with, which would make them the same.
_SEED = 0x0DD_5EED
_DETERMINED = 3
#: Instances of a problem that "vmap" and "batch" take at once.
ITEMS = 2


class SolutionMap:
    """`observed` y(θ) as a vector (m,), its parts end to end; θ: tensor inputs, then the node's parameters.

    For inputs with a batch dimension, and the parameters shared, (B, m).

    Attributes:
        operands: θ at the inputs given.
        inputs: how many of them are inputs.
        parameters: names of the others, as attributes of the node.
    """

    def __init__(
        self,
        problem: KnownProblem,
        form: str | BackwardForm,
        xs: Sequence[Any],
        *,
        policy: str = "raise",
    ) -> None:
        self.xs, self._observed = tuple(xs), problem.observed
        batch_dims = 1 if problem.input_dims is None else None
        self.one = DeclarativeLayer(problem, form, policy=policy)
        self.many = DeclarativeLayer(problem, form, policy=policy, batch_dims=batch_dims)
        # A layer holds its node as a submodule, or, if the node is none, its parameters one by one.
        prefix = "node." if isinstance(problem, nn.Module) else "node_"
        values = {name: p for name, p in self.one.named_parameters() if p.requires_grad}
        self._names = tuple(values)
        self.parameters = tuple(name.removeprefix(prefix) for name in values)
        tensors = [x for x in self.xs if isinstance(x, Tensor)]
        self.inputs = len(tensors)
        self.operands = tuple(x.detach().clone() for x in (*tensors, *values.values()))

    def __call__(self, *operands: Tensor) -> Tensor:
        """y at other operands."""
        lead = operands[0].ndim - self.operands[0].ndim
        layer = self.many if lead else self.one
        given = dict(zip(self._names, operands[self.inputs :], strict=True))
        xs = self.arguments(operands)
        y = torch.func.functional_call(layer, given, xs) if given else layer(*xs)
        y = join_parts(self._observed(y), lead)
        return y.reshape(*y.shape[:lead], -1)

    def arguments(self, operands: Sequence[Tensor]) -> tuple[Any, ...]:
        """The inputs with the operands in the places of the tensors."""
        rest = iter(operands)
        return tuple(next(rest) if isinstance(x, Tensor) else x for x in self.xs)


class Case:
    """A problem at seeded inputs.

    Attributes:
        operands: what its solution depends on (see `SolutionMap`).
    """

    def __init__(self, problem: KnownProblem, seed: int) -> None:
        self.problem = problem
        self.xs = sample(problem, seed)
        # Whether it can be trusted is for each form to say: here it only must not stop the sweep.
        self.solution = SolutionMap(problem, "auto", self.xs, policy="nan")
        self.operands = self.solution.operands
        self._seed = 4 * (_SEED + seed)

    @cached_property
    def y(self) -> Tensor:
        """The solution as a vector (m,)."""
        with torch.no_grad():
            return self.solution(*self.operands)

    @cached_property
    def jacobians(self) -> list[Tensor]:
        """The analytic dy/dθ, (m, *θ), for each operand."""
        with torch.no_grad():
            y = self.solution.one(*self.xs)
        found = list(self.problem.jacobians(*self.xs, y=y))
        named = self.problem.parameter_jacobians(*self.xs, y=y)
        found += [named[name] for name in self.solution.parameters]
        shapes = [(len(self.y), *x.shape) for x in self.operands]
        return [J.reshape(shape) for J, shape in zip(found, shapes, strict=True)]

    @cached_property
    def incoming(self) -> Tensor:
        """Incoming gradients V (k, m): all of them, or, where y is not unique, some it determines.

        What does determine v·dy for every dθ is that v = J u for some u.
        """
        if self.problem.unique:
            return torch.eye(len(self.y), dtype=self.y.dtype)
        return torch.stack([push_forward(self.jacobians, u) for u in self._random(_DETERMINED, 0)])

    @cached_property
    def weights(self) -> Tensor:
        """One random combination of them."""
        generator = torch.Generator().manual_seed(self._seed + 1)
        k = len(self.incoming)
        return torch.randn(k, generator=generator, dtype=torch.float64) @ self.incoming

    @cached_property
    def directions(self) -> list[list[Tensor]]:
        """Directions of the operands along which the solution moves: each alone, then all at once."""
        count = len(self.operands)
        masks = [*torch.eye(count).tolist(), [1.0] * count] if count > 1 else [[1.0]]
        return [self._feasible([k * u for k, u in zip(mask, d, strict=True)])
                for mask, d in zip(masks, self._random(len(masks), 2), strict=True)]  # fmt: skip

    @cached_property
    def slopes(self) -> list[Tensor]:
        """The derivative of y along each direction, by differences through new solutions."""

        def along(directions: Sequence[Tensor]) -> Tensor:
            (slope,) = derivatives_at_zero(
                lambda t: self._at_steps(lambda points: [self.solution(*points)], directions, t)
            )
            return slope

        with torch.no_grad():
            return [along(u) for u in self.directions]

    @cached_property
    def hessian_product(self) -> list[Tensor]:
        """H u of φ(y(θ)) along the last direction, by differences of ∇φ, which "auto" gives."""

        def gradients(points: Sequence[Tensor]) -> list[Tensor]:
            leaves = [x.clone().requires_grad_() for x in points]
            return list(torch.autograd.grad(phi(self.solution(*leaves), self.weights), leaves))

        return derivatives_at_zero(lambda t: self._at_steps(gradients, self.directions[-1], t))

    def _at_steps(
        self,
        function: Callable[[Sequence[Tensor]], list[Tensor]],
        directions: Sequence[Tensor],
        t: Tensor,
    ) -> list[Tensor]:
        """``function`` at θ + tu for each t (n,): as a batch, or one by one where parameters move."""
        points = [
            x + t.reshape(-1, *[1] * x.ndim) * u
            for x, u in zip(self.operands, directions, strict=True)
        ]
        if self.solution.inputs == len(points):
            return function(points)
        one_by_one = [function([x[k] for x in points]) for k in range(len(t))]
        return [torch.stack(column) for column in zip(*one_by_one, strict=True)]

    def _random(self, count: int, stream: int) -> list[list[Tensor]]:
        # One stream a purpose, so that no number depends on which columns are asked for.
        generator = torch.Generator().manual_seed(self._seed + stream)
        return [
            [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in self.operands]
            for _ in range(count)
        ]

    def _feasible(self, directions: Sequence[Tensor]) -> list[Tensor]:
        inputs = self.solution.inputs
        feasible = self.problem.feasible_directions(self.xs, directions[:inputs])
        return [*feasible, *directions[inputs:]]


def push_forward(jacobians: Sequence[Tensor], directions: Sequence[Tensor]) -> Tensor:
    """Σ Jᵢuᵢ, (k,), for Jᵢ (k, *θᵢ)."""
    terms = [J.flatten(1) @ u.reshape(-1) if u.ndim else J * u
             for J, u in zip(jacobians, directions, strict=True)]  # fmt: skip
    return torch.stack(terms).sum(dim=0)


def phi(y: Tensor, w: Tensor) -> Tensor:
    """Σ wₖ(yₖ + ½yₖ²), summed over a batch: what second derivatives are taken of."""
    return (w * (y + y**2 / 2)).sum()


class NotApplicableError(Exception):
    """A column means nothing for a problem; the text says why."""


class Trial:
    """A form at work on instances of a problem, most of the time on the first."""

    def __init__(self, form: BackwardForm, cases: Sequence[Case]) -> None:
        self.form, self.cases = form, cases
        self.case = cases[0]
        self.f = SolutionMap(self.case.problem, form, self.case.xs)

    @cached_property
    def rows(self) -> list[Tensor]:
        """V J by reverse mode, (k, *θ) for each operand."""
        pull = vjp(self.f, *self.case.operands)[1]
        return list(vmap(pull)(self.case.incoming))

    @cached_property
    def items(self) -> list[tuple[Tensor, list[Tensor]]]:
        """f and wᵀJ of each instance on its own."""
        return [value_and_gradient(self.f, c.operands, c.weights) for c in self.cases]

    @property
    def batch(self) -> tuple[list[Tensor], Tensor]:
        """The operands of all instances, and their weights w."""
        columns = zip(*(c.operands for c in self.cases), strict=True)
        try:
            return [torch.stack(x) for x in columns], torch.stack([c.weights for c in self.cases])
        except RuntimeError as error:  # of shapes
            raise NotApplicableError("instances of different shapes") from error


def value_and_gradient(
    f: SolutionMap, operands: Sequence[Tensor], v: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """f, and vᵀJ by autograd without any transform."""
    leaves = [x.clone().requires_grad_() for x in operands]
    y = f(*leaves)
    return y.detach(), list(torch.autograd.grad(y, leaves, v))


def derivatives_at_zero(function: Callable[[Tensor], Sequence[Tensor]]) -> list[Tensor]:
    """dg/dt at t = 0 for each g of ``function``, which takes numbers t (n,) and returns (n, *g) each.

    To about ten digits of a smooth function. Central differences at steps h, h/4, h/16, … are extrapolated
    to h = 0 (Richardson's table), which removes the even powers of h one by one. The entry that agrees best
    with its two parents is taken: coarse steps lose to truncation, or leave the function's domain; fine ones
    lose to its rounding. Source: Ridders, *Accurate computation of F′(x) and F′(x)F″(x)*.

    NaN where no step gave finite values.

    Example:
        >>> derivatives_at_zero(lambda t: [t.sin()])
        [tensor(1., dtype=torch.float64)]
    """
    return [_extrapolate(values) for values in function(torch.cat([_STEPS, -_STEPS]))]


def _extrapolate(values: Tensor) -> Tensor:
    ahead, behind = values.chunk(2)
    column = list((ahead - behind) / (2 * _STEPS.reshape(-1, *[1] * (values.ndim - 1))))
    best, least = torch.full_like(column[0], torch.nan), float("inf")
    for order in range(1, _ORDERS + 1):
        gain = _RATIO ** (2 * order) - 1
        parents = list(itertools.pairwise(column))
        column = [fine + (fine - coarse) / gain for coarse, fine in parents]
        for entry, pair in zip(column, parents, strict=True):
            doubt = max(float((entry - parent).norm()) for parent in pair)
            if doubt < least:  # false for NaN
                best, least = entry, doubt
    return best
