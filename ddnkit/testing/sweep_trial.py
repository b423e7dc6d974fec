"""A backward form at work on instances of a problem, and what several columns of a sweep need of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.func import vjp, vmap

from ..backward.form import BackwardForm
from .solution_map import SolutionMap
from .sweep_case import Case

#: Instances of a problem that "vmap" and "batch" take at once.
ITEMS = 2


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
    def stacked(self) -> tuple[list[Tensor], Tensor]:
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
