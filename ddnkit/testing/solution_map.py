"""The solution of a problem as one function of everything that it depends on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..backward.form import BackwardForm
from ..layer import DeclarativeLayer
from .known_problem import KnownProblem
from .parts import joined


class SolutionMap:
    """y(θ) as a vector (m,), its parts end to end; θ: the tensor inputs, then the node's parameters.

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
        self.xs = tuple(xs)
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
        y = joined(y, lead)
        return y.reshape(*y.shape[:lead], -1)

    def arguments(self, operands: Sequence[Tensor]) -> tuple[Any, ...]:
        """The inputs with the operands in the places of the tensors."""
        rest = iter(operands)
        return tuple(next(rest) if isinstance(x, Tensor) else x for x in self.xs)
