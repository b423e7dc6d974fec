"""FixedPointNode: a node given as a map."""

from __future__ import annotations

import abc
from typing import Any

from torch import Tensor

from .node import DeclarativeNode


class FixedPointNode(DeclarativeNode):
    """A node whose output is the fixed point  y = T(x₁, …, xₙ, y)  of a map.

    Write `fixed_point(*xs, y)`, and `initial_point(*xs)` or `solve(*xs)`. As an optimisation problem it
    is min ½‖y − T(x, y)‖², whose minimum is zero, so that every backward form applies; the form
    "fixed_point", which "auto" takes, needs only products with the transposed derivative of T.

    Example, y = tanh(W y + x):

        class Equilibrium(ddnkit.FixedPointNode):
            input_dims = (2, 1)
            def fixed_point(self, W, x, y):
                return torch.tanh(W @ y + x)
            def initial_point(self, W, x):
                return torch.zeros_like(x)

    Source: Bai, Kolter and Koltun, *Deep equilibrium models*.
    """

    solver = "picard"

    @abc.abstractmethod
    def fixed_point(self, *xs: Any, **named: Any) -> Any:
        """``fixed_point(x₁, …, xₙ, y=y)``: T of one problem, shaped like y."""

    def objective(self, *xs: Any, **named: Any) -> Tensor:
        """½‖y − T(x, y)‖²."""
        y, T = named["y"], self.fixed_point(*xs, **named)
        pairs = zip(_parts(y), _parts(T), strict=True)
        first, *rest = [(a - b).square().sum() / 2 for a, b in pairs]
        for term in rest:
            first = first + term
        return first


def _parts(y: Any) -> list[Tensor]:
    if isinstance(y, Tensor):
        return [y]
    return list(y.values()) if isinstance(y, dict) else list(y)
