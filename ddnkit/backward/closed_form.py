"""The closed form: the node supplies its own adjoint, and the library only calls it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InputError
from ..problem import Problem
from ..solution import Solution
from .form import Adjoint, BackwardForm


class ClosedForm(BackwardForm):
    """Calls ``node.adjoint(*xs, y, v)``; exact where the structure of the problem allows it."""

    name = "closed_form"

    def unsupported(self, problem: Problem) -> str | None:
        """The node must have an adjoint."""
        if problem.node.adjoint is None:
            return "it has no `adjoint(self, *xs, y, v)` of its own; use 'auto'"
        return None

    def vjp(self, problem: Problem, solution: Solution, v: Tensor, wrt: Sequence[int]) -> Adjoint:
        """See `BackwardForm.vjp`."""
        node = problem.node
        if node.batched_solve:
            extra = {"aux": solution.aux} if solution.aux else {}
            gradients = list(node.adjoint(*problem.inputs, y=solution.y, v=v, **extra))
        else:
            items = []
            for i in range(problem.batch_size):
                aux = {key: value[i] for key, value in solution.aux.items()}
                extra = {"aux": aux} if aux else {}
                items.append(node.adjoint(*problem.item(i), y=solution.y[i], v=v[i], **extra))
            gradients = [
                None if column[0] is None else torch.stack(column)
                for column in zip(*items, strict=True)
            ]
        self._validate(problem, gradients, wrt)
        return Adjoint(gradients)

    @staticmethod
    def _validate(problem: Problem, gradients: list[Tensor | None], wrt: Sequence[int]) -> None:
        name = f"{type(problem.node).__name__}.adjoint"
        if len(gradients) != len(problem.inputs):
            raise InputError(
                f"{name} must return one gradient an input, {len(problem.inputs)} in all; "
                f"it returned {len(gradients)}"
            )
        for index in wrt:
            gradient, shape = gradients[index], tuple(problem.inputs[index].shape)
            if gradient is None:
                raise InputError(
                    f"{name} returned None for input {index}, whose gradient is asked for: its "
                    "gradient would silently be missing"
                )
            if tuple(gradient.shape) != shape:
                raise InputError(
                    f"{name} returned shape {tuple(gradient.shape)} for input {index} of shape "
                    f"{shape} (batch first)"
                )
