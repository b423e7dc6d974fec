"""One instance of a problem, with all that a form's derivatives are held against."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from .differences import derivatives_at_zero
from .known_problem import KnownProblem
from .sampling import sampled
from .solution_map import SolutionMap

#: Of weights and directions: not one that inputs are sampled with, which would make them the same.
_SEED = 0x0DD_5EED
_DETERMINED = 3


class Case:
    """A problem at seeded inputs.

    Attributes:
        operands: what its solution depends on (see `SolutionMap`).
    """

    def __init__(self, problem: KnownProblem, seed: int) -> None:
        self.problem = problem
        self.xs = sampled(problem, seed)
        # Whether it can be trusted is for each form to say: here it only must not stop the sweep.
        self.solution = SolutionMap(problem, "dense", self.xs, policy="nan")
        self.operands = self.solution.operands
        self._generator = torch.Generator().manual_seed(_SEED + seed)

    @cached_property
    def y(self) -> Tensor:
        """The solution as a vector (m,)."""
        with torch.no_grad():
            return self.solution(*self.operands)

    def random_like(self, x: Tensor) -> Tensor:
        """Normal numbers of the shape of ``x``."""
        return torch.randn(x.shape, generator=self._generator, dtype=x.dtype)

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
        return torch.stack([pushed(self.jacobians, u) for u in self._random(_DETERMINED)])

    @cached_property
    def weights(self) -> Tensor:
        """One random combination of them."""
        return self.random_like(self.incoming[:, 0]) @ self.incoming

    @cached_property
    def directions(self) -> list[list[Tensor]]:
        """Directions of the operands along which the solution moves: each alone, then all at once."""
        count = len(self.operands)
        masks = [*torch.eye(count).tolist(), [1.0] * count] if count > 1 else [[1.0]]
        return [self._feasible([k * u for k, u in zip(mask, d, strict=True)])
                for mask, d in zip(masks, self._random(len(masks)), strict=True)]  # fmt: skip

    @cached_property
    def slopes(self) -> list[Tensor]:
        """The derivative of y along each direction, by differences through new solutions."""

        def along(directions: Sequence[Tensor]) -> Tensor:
            (slope,) = derivatives_at_zero(lambda t: [at_steps(self.solution, directions, t)])
            return slope

        with torch.no_grad():
            return [along(u) for u in self.directions]

    def _random(self, count: int) -> list[list[Tensor]]:
        return [[self.random_like(x) for x in self.operands] for _ in range(count)]

    def _feasible(self, directions: Sequence[Tensor]) -> list[Tensor]:
        inputs = self.solution.inputs
        feasible = self.problem.feasible_directions(self.xs, directions[:inputs])
        return [*feasible, *directions[inputs:]]


def pushed(jacobians: Sequence[Tensor], directions: Sequence[Tensor]) -> Tensor:
    """Σ Jᵢuᵢ, (k,), for Jᵢ (k, *θᵢ)."""
    terms = [J.flatten(1) @ u.reshape(-1) if u.ndim else J * u
             for J, u in zip(jacobians, directions, strict=True)]  # fmt: skip
    return torch.stack(terms).sum(dim=0)


def moved(operands: Sequence[Tensor], directions: Sequence[Tensor], t: Tensor) -> list[Tensor]:
    """θ + tu for each t (n,), (n, *θ)."""
    return [x + t.reshape(-1, *[1] * x.ndim) * u for x, u in zip(operands, directions, strict=True)]


def at_steps(function: SolutionMap, directions: Sequence[Tensor], t: Tensor) -> Tensor:
    """y(θ + tu) for each t (n,), (n, m): as a batch, or one by one where parameters move."""
    points = moved(function.operands, directions, t)
    if function.inputs == len(points):
        return function(*points)
    return torch.stack([function(*(x[k] for x in points)) for k in range(len(t))])
