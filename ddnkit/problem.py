"""Problem: one batch of instances of a node, with the derivatives that everything else is built on.

The user's objective takes one problem. Here it is evaluated for B at once (by vmap, or one by one
where it does not allow that), and differentiated. Because the problems are independent,
the gradient of the sum of the objectives holds each item's own gradient.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .errors import InputError
from .solution import Solution

if TYPE_CHECKING:
    from .node import DeclarativeNode


class Problem:
    """B instances of a node: tensor inputs carry one batch dimension in front.

    Attributes:
        node: the node.
        inputs: its inputs; tensors of shape (B, ...), anything else as it was given.
        batch_size: B.
    """

    def __init__(self, node: DeclarativeNode, inputs: Sequence[Any], batch_size: int):
        self.node = node
        self.inputs = tuple(inputs)
        self.batch_size = batch_size

    @classmethod
    def single(cls, node: DeclarativeNode, inputs: Sequence[Any]) -> Problem:
        """One instance, from inputs without a batch dimension."""
        return cls(node, [x.unsqueeze(0) if isinstance(x, Tensor) else x for x in inputs], 1)

    @property
    def manifold(self) -> Any:
        """The node's manifold, or None."""
        return self.node.manifold

    def item(self, index: int) -> tuple[Any, ...]:
        """The inputs of one instance."""
        return tuple(x[index] if isinstance(x, Tensor) else x for x in self.inputs)

    def with_inputs(self, inputs: Sequence[Any]) -> Problem:
        """The same batch with other inputs."""
        return Problem(self.node, inputs, self.batch_size)

    @staticmethod
    def item_solution(solution: Solution) -> Solution:
        """The Solution of a batch of one, without its batch dimension."""
        status, iterations, unique = solution.status, solution.iterations, solution.uniqueness
        return dataclasses.replace(
            solution,
            y=solution.y[0],
            status=status[0] if isinstance(status, Tensor) else status,
            iterations=iterations[0] if isinstance(iterations, Tensor) else iterations,
            aux={key: value[0] for key, value in solution.aux.items()},
            uniqueness=None if unique is None else unique[0],
        )

    def start(self) -> Tensor:
        """(B, *y): the node's initial point of each item."""
        return torch.stack([self.node.initial_point(*self.item(i)) for i in range(self.batch_size)])

    # -- values ---------------------------------------------------------------------------------

    def objective(self, y: Tensor) -> Tensor:
        """f of each item, shape (B,)."""
        values = self._each(self.node.objective, y)
        if values.shape != (self.batch_size,):
            raise InputError(
                f"{type(self.node).__name__}.objective must return a scalar for one problem; "
                f"it returned shape {tuple(values.shape[1:])}"
            )
        return values

    def constraints(self, y: Tensor) -> Tensor | None:
        """h of each item, shape (B, p), without the manifold's; None where the node has none."""
        if not self.node.constrained:
            return None
        if self.batch_size and self.node.equality_constraints(*self.item(0), y=y[0]) is None:
            return None
        return self._each(self.node.equality_constraints, y).reshape(self.batch_size, -1)

    def all_constraints(self, y: Tensor) -> Tensor | None:
        """h with the manifold's independent constraints appended, shape (B, p), or None."""
        own = self.constraints(y)
        if self.manifold is None:
            return own
        manifold = self.manifold.constraint(y)
        return manifold if own is None else torch.cat([own, manifold], dim=-1)

    def _each(self, function: Callable[..., Any], y: Tensor) -> Tensor:
        if self.batch_size == 1:
            return _tensor(function, function(*self.item(0), y=y[0])).unsqueeze(0)
        tensors = [x for x in self.inputs if isinstance(x, Tensor)]

        def one(y_one: Tensor, *ones: Tensor) -> Any:
            rest = iter(ones)
            xs = [next(rest) if isinstance(x, Tensor) else x for x in self.inputs]
            return _tensor(function, function(*xs, y=y_one))

        try:
            batched: Tensor = torch.vmap(one)(y, *tensors)
            return batched
        except RuntimeError:
            # Code that branches on values cannot be vmapped; one by one gives the same.
            return torch.stack(
                [one(y[i], *(x[i] for x in tensors)) for i in range(self.batch_size)]
            )

    # -- derivatives ----------------------------------------------------------------------------

    def gradient(self, y: Tensor) -> Tensor:
        """∇_y f of each item, shape (B, *y)."""
        return self.value_and_gradient(y)[1]

    def value_and_gradient(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """f, shape (B,), and ∇_y f, shape (B, *y)."""
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            values = self.objective(y)
            gradient = derivative(values.sum(), y)
        return values.detach(), gradient

    def hessian_vector(self, y: Tensor, direction: Tensor) -> Tensor:
        """∇²_yy f applied to a direction, per item, shape (B, *y)."""
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            gradient = derivative(self.objective(y).sum(), y, create_graph=True)
            return derivative((gradient * direction).sum(), y)


def _tensor(function: Callable[..., Any], value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        name = getattr(function, "__qualname__", function)
        raise InputError(f"{name} must return a tensor; it returned {type(value).__name__}")
    return value


def derivative(scalar: Tensor, y: Tensor, create_graph: bool = False) -> Tensor:
    """∂ scalar / ∂y, zero where the scalar does not depend on y."""
    if not scalar.requires_grad:
        return torch.zeros_like(y)
    (gradient,) = torch.autograd.grad(
        scalar, y, create_graph=create_graph, retain_graph=create_graph, allow_unused=True
    )
    return torch.zeros_like(y) if gradient is None else gradient


def flat(x: Tensor) -> Tensor:
    """(B, ...) as (B, m); m = 1 for a batch of scalars, and B may be 0."""
    return x.reshape(len(x), x.shape[1:].numel())
