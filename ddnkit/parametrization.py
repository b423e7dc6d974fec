"""Weights of a module that stay on a manifold, or are the solution of a node, by torch's parametrizations.

What is trained is a free tensor x; the module sees the point that it stands for, `Manifold.point_of`: the
nearest one,
    y(x) = argmin ‖y − x‖² over y on the manifold,
unless the manifold knows a smoother way. The nearest point is differentiated as the solution of a node: by
the implicit function theorem, which needs no derivative of a projection.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize as torch_parametrize

from .errors import InputError
from .layer import DeclarativeLayer
from .manifold import Manifold
from .node import DeclarativeNode


def parametrize(
    module: torch.nn.Module, name: str, by: DeclarativeNode | Manifold
) -> torch.nn.Module:
    """Have a weight of ``module`` on a manifold, or be a node's solution, from now on; in training too.

    ``module.NAME`` is then a point, and ``module.parametrizations.NAME.original`` the free tensor that is
    trained. It starts at the point next to the weight. A matrix with more columns than rows has orthonormal
    rows, where it cannot have orthonormal columns. Dimensions in front of the manifold's own are a batch.

    Args:
        module: whose weight it is; returned.
        name: of the weight, "weight" mostly.
        by: a manifold, or a node with one input, which the weight is given to.

    Example: ``ddnkit.parametrize(torch.nn.Linear(64, 64), "weight", Stiefel())``, an orthogonal layer.

    Raises:
        InputError: there is no such weight, it has too few dimensions, or ``by`` is neither.
    """
    weight = getattr(module, name, None)
    if not isinstance(weight, Tensor):
        known = [key for key, _ in module.named_parameters(recurse=False)]
        raise InputError(
            f"{type(module).__name__} has no weight {name!r}; it has {', '.join(known) or 'none'}"
        )
    if isinstance(by, Manifold):
        if weight.ndim < by.event_dims:
            raise InputError(
                f"a point of {by!r} has {by.event_dims} dimensions; {name!r} of {type(module).__name__} has "
                f"shape {tuple(weight.shape)}"
            )
        mapped: torch.nn.Module = OnManifold(by, weight)
    elif isinstance(by, DeclarativeNode):
        mapped = SolutionOf(by)
    else:
        raise InputError(
            f"a weight is parametrized by a ddnkit.Manifold or a DeclarativeNode, not {by!r}"
        )
    torch_parametrize.register_parametrization(module, name, mapped, unsafe=True)
    return module


def point_of(manifold: Manifold, x: Tensor) -> Tensor:
    """The point that a free tensor stands for: `Manifold.point_of`, or the nearest."""
    found = manifold.point_of(x)
    return nearest_point(manifold, x) if found is None else found


class OnManifold(torch.nn.Module):
    """The point of a manifold that a free tensor stands for, as a parametrization."""

    def __init__(self, manifold: Manifold, weight: Tensor):
        super().__init__()
        self.manifold = manifold
        #: whether the matrix is seen from the other side
        self.transposed = (
            manifold.event_dims == 2 and manifold.tall and weight.shape[-2] < weight.shape[-1]
        )

    def forward(self, x: Tensor) -> Tensor:
        """The point."""
        point = point_of(self.manifold, x.mT if self.transposed else x)
        return point.mT if self.transposed else point

    def right_inverse(self, weight: Tensor) -> Tensor:
        """`Manifold.free_of`."""
        weight = weight.detach()
        if self.transposed:
            return self.manifold.free_of(weight.mT).mT.contiguous()
        return self.manifold.free_of(weight)

    def extra_repr(self) -> str:
        """The manifold."""
        return repr(self.manifold)


class SolutionOf(torch.nn.Module):
    """The solution of a node with one input, as a parametrization."""

    def __init__(self, node: DeclarativeNode):
        super().__init__()
        self.layer = DeclarativeLayer(node)

    def forward(self, x: Tensor) -> Any:
        """The solution for x."""
        return self.layer(x)


class Nearest(DeclarativeNode):
    """The point of a manifold nearest to x."""

    batched_solve = True
    manifold: Manifold

    def __init__(self, manifold: Manifold):
        self.manifold = manifold
        self.input_dims = (manifold.event_dims,)

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        """½‖y − x‖²."""
        return (y - x).square().sum() / 2

    def solve(self, x: Tensor) -> Tensor:
        """The projection."""
        return self.manifold.project(x)


@functools.lru_cache(maxsize=32)
def _layer(kind: type[Manifold], settings: tuple[tuple[str, Any], ...]) -> DeclarativeLayer:
    manifold = kind.__new__(kind)
    vars(manifold).update(settings)
    return DeclarativeLayer(Nearest(manifold))


def nearest_point(manifold: Manifold, x: Tensor) -> Tensor:
    """The nearest point, differentiated by the implicit function theorem."""
    settings = tuple(sorted(vars(manifold).items()))
    found: Tensor = _layer(type(manifold), settings)(x)
    return found
