"""One instance of a problem, with all that a form's derivatives are held against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
        return torch.stack([pushed(self.jacobians, u) for u in self._random(_DETERMINED, 0)])

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


def pushed(jacobians: Sequence[Tensor], directions: Sequence[Tensor]) -> Tensor:
    """Σ Jᵢuᵢ, (k,), for Jᵢ (k, *θᵢ)."""
    terms = [J.flatten(1) @ u.reshape(-1) if u.ndim else J * u
             for J, u in zip(jacobians, directions, strict=True)]  # fmt: skip
    return torch.stack(terms).sum(dim=0)


def phi(y: Tensor, w: Tensor) -> Tensor:
    """Σ wₖ(yₖ + ½yₖ²), summed over a batch: what second derivatives are taken of."""
    return (w * (y + y**2 / 2)).sum()
