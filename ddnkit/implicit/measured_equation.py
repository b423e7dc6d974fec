"""y, measured: the identity on a solution that torch differentiates by itself.

The form "unrolled" leaves the derivative to the steps of the solver. What it returns still gets its
certificate, by plain numbers, under whatever transform the steps were run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ..problem import Problem
from .function import Equation, Unfold
from .tangent_equation import fold_operands

if TYPE_CHECKING:
    from .call import Call


class MeasuredEquation(Equation):
    """Operands: those of the problem, and y (B, *y). Output: y."""

    def __init__(self, call: Call, problem: Problem, lead: tuple[int, ...] = ()):
        self.call, self.problem, self.lead = call, problem, lead

    def solve(self, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """y, with its certificate."""
        *theta, y = operands
        return (self.call.certify_only(self.problem.with_operands(theta), y, self.lead),)

    def vjp(
        self,
        operands: Sequence[Tensor],
        outputs: Sequence[Tensor],
        cotangents: Sequence[Tensor],
        wrt: Sequence[int],
    ) -> list[Tensor | None]:
        """v for y, nothing for the rest."""
        return [*[None] * (len(operands) - 1), cotangents[0]]

    def jvp(
        self,
        operands: Sequence[Tensor],
        outputs: Sequence[Tensor],
        tangents: Sequence[Tensor | None],
    ) -> tuple[Tensor, ...]:
        """dy."""
        dy = tangents[-1]
        return (outputs[0].new_zeros(outputs[0].shape) if dy is None else dy.clone(),)

    def fold(
        self, size: int, in_dims: Sequence[int | None], operands: Sequence[Tensor]
    ) -> tuple[Equation, list[Tensor], Unfold]:
        """A larger batch."""
        B = self.problem.batch_size
        batched = [*self.problem.operands_batched, True]
        inside, flags = fold_operands(operands, in_dims, batched, size, B)
        problem = self.problem.resize(inside[:-1], size * B, flags[:-1])
        equation = MeasuredEquation(self.call, problem, (size, *self.lead))
        return equation, inside, lambda w: w.reshape(size, B, *w.shape[1:])
