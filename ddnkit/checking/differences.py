"""Central differences through a re-solve: what the gradients are held against.

For a random direction u of the inputs and a random v,
    v·(y(x + εu) − y(x − εu)) / 2ε    against    g·u,   g the form's gradient for v.
The step balances truncation (ε²) against the noise of the solver, which is as large as the backward
error it leaves. Two steps, ε and 2ε, tell how far the difference itself is to be trusted. A node with
an iterative solver is solved again from the solution at hand, so that it stays on its branch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..batched_inputs import batched_inputs
from ..captured import Captured
from ..certificate import Certificate
from ..problem import Problem
from .gradients import differentiable, move_inputs
from .subject import SolvedBatch, Subject

DIRECTIONS = 4
#: Of the incoming gradient and the directions; not one that anyone draws inputs with, which would
#: make them the same numbers.
SEED = 0x5EED_0DD
_STEPS = (1.0, -1.0, 2.0, -2.0)
#: Of the active set's margin that a step takes: twice it, in a direction of entries of several times one.
_OF_MARGIN = 1 / 16


@dataclass(frozen=True)
class Differences:
    """Derivatives of y along D directions, (D, B, m), with the step ε and with 2ε.

    Attributes:
        ends: y at x + εu and x − εu, (D, 2, B, m).
    """

    step: float
    fine: Tensor
    coarse: Tensor
    ends: Tensor

    def slopes(self, v: Tensor) -> Tensor:
        """v·dy, (D,)."""
        return (self.fine * v).sum(dim=(1, 2))

    def disagreement(self, v: Tensor) -> Tensor:
        """How far the two steps are apart, ‖·‖ over the directions."""
        return ((self.fine - self.coarse) * v).sum(dim=(1, 2)).norm()


def step_for(certificate: Certificate) -> float:
    """ε: the third root of the solver's noise; less where that would change which constraints are active."""
    stationarity = certificate.stationarity
    eps = torch.finfo(stationarity.dtype).eps
    noise = max(float(stationarity.max()), eps)
    step = min(max(noise ** (1 / 3), 1e-6), 1e-2)
    margin = certificate.active_margin
    if margin is not None and bool((margin > 0).any()):
        least = float(margin[margin > 0].min())
        step = min(step, max(least * _OF_MARGIN, eps**0.5))
    return step


def generator() -> torch.Generator:
    """The generator of a check's random vectors."""
    return torch.Generator().manual_seed(SEED)


def incoming(solved: SolvedBatch, source: torch.Generator) -> Tensor:
    """v, (B, m)."""
    y = solved.y
    return torch.randn(y.shape, generator=source, dtype=torch.float64).to(y)


def directions(
    subject: Subject, xs: Sequence[object], source: torch.Generator, count: int = DIRECTIONS
) -> list[list[Tensor]]:
    """Random directions of the differentiable inputs, in proportion to their sizes.

    A node may say with ``feasible_directions(xs, directions)`` along which of them a solution exists.
    """
    variables = differentiable(xs).values()
    drawn = [[random_like(x, source) for x in variables] for _ in range(count)]
    return [_feasible(subject, xs, direction) for direction in drawn]


def along_inputs(
    subject: Subject,
    xs: Sequence[object],
    solved: SolvedBatch,
    along: Sequence[Sequence[Tensor]],
    step: float,
) -> Differences:
    """Derivatives along directions of the differentiable inputs."""

    def problem_at(direction: Sequence[Tensor], t: float) -> Problem:
        return at(subject, move_inputs(xs, direction, t), solved)

    return _differences(
        subject, solved, [partial(problem_at, direction) for direction in along], step
    )


def along_captured(
    subject: Subject,
    solved: SolvedBatch,
    captured: Captured,
    direction: Tensor,
    step: float,
) -> Differences:
    """The derivative along a direction of one captured tensor, the others as they are."""
    originals = solved.problem.originals

    def problem_at(t: float) -> Problem:
        values = [
            c.tensor.detach() + (t * direction if c.tensor is captured.tensor else 0.0)
            for c in originals
        ]
        return solved.problem.with_captured(originals, values)

    return _differences(subject, solved, [problem_at], step)


def at(subject: Subject, xs: Sequence[object], solved: SolvedBatch) -> Problem:
    """The solved problem at other inputs of the same shapes."""
    inputs, _ = batched_inputs(subject.node, xs, subject.batch_dims)
    # The node's own functions see its captured tensors themselves: what they are is not changed.
    return Problem(subject.node, inputs, solved.problem.batch_size).with_structure(
        solved.problem.structure
    )


def _differences(
    subject: Subject, solved: SolvedBatch, along: Sequence[Callable[[float], Problem]], step: float
) -> Differences:
    problems = [problem_at(s * step) for problem_at in along for s in _STEPS]
    found = subject.solve_again(problems, solved.solution.y)
    points = torch.stack(found).reshape(len(along), len(_STEPS), *found[0].shape)
    fine = (points[:, 0] - points[:, 1]) / (2 * step)
    coarse = (points[:, 2] - points[:, 3]) / (4 * step)
    return Differences(step, fine, coarse, points[:, :2])


def _feasible(subject: Subject, xs: Sequence[object], direction: list[Tensor]) -> list[Tensor]:
    project = getattr(subject.node, "feasible_directions", None)
    tensors = [i for i, x in enumerate(xs) if isinstance(x, Tensor)]
    _, shape = batched_inputs(subject.node, xs, subject.batch_dims)
    # It is stated for one problem, and for a direction of every tensor.
    if project is None or len(shape) or tensors != list(differentiable(xs)):
        return direction
    return list(project(xs, direction))


def random_like(x: Tensor, source: torch.Generator) -> Tensor:
    """A random direction, in proportion to the size of x: a relative step means the same everywhere."""
    u = torch.randn(x.shape, generator=source, dtype=torch.float64).to(x)
    size = x.detach().square().mean().sqrt()
    return u * torch.where(size > 0, size, 1.0)
