"""What a solver returns: the solution with, per item of the batch, a status and its likely causes."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

#: Roundings of a relative residual within which y is as good as it can be known.
SETTLED = 64


class Status(enum.IntEnum):
    """How a solver ended on one problem; `causes` says what usually lies behind it.

    From NON_FINITE on the point is no solution, whatever its residuals. Up to there the residuals tell.
    """

    CONVERGED = 0
    UNKNOWN = 1
    MAX_ITERATIONS = 2
    STALLED = 3
    TIME_LIMIT = 4
    NON_FINITE = 5
    INFEASIBLE = 6
    UNBOUNDED = 7

    @property
    def causes(self) -> str:
        """The likely causes of this status, (a), (b), (c), in one line."""
        return _CAUSES[self]


_CAUSES = {
    Status.CONVERGED: "the solver's own tolerance was reached",
    Status.UNKNOWN: "no status was returned with the solution",
    Status.MAX_ITERATIONS: (
        "(a) too few iterations were allowed, (b) the problem is badly conditioned or its solution "
        "not unique, (c) the tolerance is below what the dtype can reach"
    ),
    Status.STALLED: (
        "(a) no step decreases the objective any more: the tolerance is below what the dtype can "
        "reach, (b) objective and gradient disagree, (c) the step size is too large, (d) a function has "
        "kinks, such as |y|, where solutions lie: write |y| as p + q with y = p − q, p ≥ 0 and q ≥ 0"
    ),
    Status.TIME_LIMIT: "(a) the time limit is too short for this size, (b) slow convergence",
    Status.NON_FINITE: (
        "(a) the objective is unbounded below, (b) the iterates left its domain, "
        "(c) an input holds NaN or infinity"
    ),
    Status.INFEASIBLE: (
        "(a) the constraints contradict each other, (b) the solver is stuck at a point that violates "
        "them least; another start may help"
    ),
    Status.UNBOUNDED: (
        "(a) the objective falls without bound along the constraints, (b) its sign is wrong, "
        "(c) a regularising term is missing"
    ),
}


@dataclass(frozen=True)
class Solution:
    """The solution of one problem, or of a batch of them, and how it was reached.

    Attributes:
        y: the solution; one problem's shape, or with one batch dimension in front.
        status: a `Status`, or an integer tensor of them, one an item.
        iterations: number of iterations, or an integer tensor of them; -1 where it is not known.
        solver: name of the solver, for messages.
        aux: tensors to keep for the backward pass (such as a factorisation); passed to
            `DeclarativeNode.adjoint` as the keyword ``aux``.
        uniqueness: least curvature of the problem over its largest, (B,), where the solver knows it;
            at rounding level the solution is one of several and has no gradient; negative, there may be a
            lower minimum elsewhere.
        multipliers: ν (B, p) of `Problem.all_constraints` and λ ≥ 0 (B, q) of `Problem.inequalities`, in
            L = f − νᵀh + λᵀg, where the solver knows them.
        branch: from which of several starting points it was reached, (B,), where there were several.
        branch_gap: how clear it is that it is the best of what they led to, (B,) (`ddnkit.several_starts`).
    """

    y: Tensor
    status: Status | Tensor = Status.UNKNOWN
    iterations: int | Tensor = -1
    solver: str = ""
    aux: Mapping[str, Tensor] = field(default_factory=dict)
    uniqueness: Tensor | None = None
    multipliers: tuple[Tensor, Tensor] | None = None
    branch: Tensor | None = None
    branch_gap: Tensor | None = None

    def statuses(self) -> list[Status]:
        """The status of each item, as a list (of length one for a single problem)."""
        if isinstance(self.status, Tensor):
            return [Status(int(code)) for code in self.status.reshape(-1).tolist()]
        return [self.status]

    def batched(self, batch_size: int, y: Tensor | None = None) -> Solution:
        """The same with status and iterations as integer tensors of length ``batch_size``.

        Args:
            y: in the place of `y`.
        """
        y = self.y if y is None else y
        shape, device = (batch_size,), y.device

        def expand(value: int | Tensor) -> Tensor:
            if isinstance(value, Tensor) and value.shape == shape and value.device == device:
                return value
            return torch.as_tensor(value, device=device).expand(batch_size)

        status, iterations = expand(self.status), expand(self.iterations)
        return dataclasses.replace(self, y=y, status=status, iterations=iterations)

    def of_items(self, items: Any) -> Solution:
        """Those of some items of the batch, by whatever a tensor is indexed with."""

        def part(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(map(part, value))
            return value[items] if isinstance(value, Tensor) else value

        parts = {name: part(value) for name, value in vars(self).items() if name != "aux"}
        aux = {name: value[items] for name, value in self.aux.items()}
        return dataclasses.replace(self, **parts, aux=aux)


class Multipliers(NamedTuple):
    """Of the constraints at a solution: L = f − νᵀh + λᵀg, and for bounds λₗᵀ(lower − y) + λᵤᵀ(y − upper).

    Attributes:
        equality: ν (*batch, p), of `equality_constraints` in a row.
        inequality: λ ≥ 0 (*batch, q), of `inequality_constraints` in a row; zero where one is not active.
        lower, upper: λ ≥ 0 (*batch, *y) of the bounds; None where there are none on that side.
    """

    equality: Tensor
    inequality: Tensor
    lower: Tensor | None
    upper: Tensor | None


@dataclass(frozen=True)
class Adjoint:
    """What a node's `adjoint` may return in place of the gradients alone.

    Attributes:
        gradients: v·dy/dxᵢ for each input, None for those without one.
        residual: relative residual of the linear system behind them, of shape () for one problem and
            (B,) for a batch, where one was solved by iterations; the certificate takes it in as
            ``adjoint_residual``. None where there is nothing that may be left unsolved.
    """

    gradients: Sequence[Tensor | None]
    residual: Tensor | None = None
