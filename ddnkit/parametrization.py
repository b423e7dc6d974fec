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
from torch import Generator, Tensor
from torch.nn.utils import parametrize as torch_parametrize

from .errors import DdnkitError, InputError
from .importing import describe_error
from .layer import DeclarativeLayer
from .manifold import Manifold
from .node import DeclarativeNode


def parametrize(
    module: torch.nn.Module, name: str, by: DeclarativeNode | Manifold
) -> torch.nn.Module:
    """Have a weight of ``module`` on a manifold, or be a node's solution, from now on; in training too.

    ``module.NAME`` is then a point, and ``module.parametrizations.NAME.original`` the free tensor that is
    trained. It starts at the point next to the weight, at one of them where there are several. A matrix with
    more columns than rows has orthonormal rows, where it cannot have orthonormal columns. Dimensions in front
    of the manifold's own are a batch.

    Args:
        module: whose weight it is; returned.
        name: of the weight, "weight" mostly.
        by: a manifold, or a node with one input, which the weight is given to.

    Example: ``ddnkit.parametrize(torch.nn.Linear(64, 64), "weight", Stiefel())``, an orthogonal layer.

    Raises:
        InputError: there is no such weight, it is not one of real numbers, has too few dimensions or another
            shape than the manifold or the node can have, or ``by`` is neither.
    """
    weight = getattr(module, name, None)
    if not isinstance(weight, Tensor):
        known = [key for key, _ in module.named_parameters(recurse=False)]
        raise InputError(
            f"{type(module).__name__} has no weight {name!r}; it has {', '.join(known) or 'none'}"
        )
    if not weight.is_floating_point():
        raise InputError(
            f"{name!r} of {type(module).__name__} is of {weight.dtype}; what is trained is real"
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
    _try(mapped, weight, f"{name!r} of {type(module).__name__}", by)
    torch_parametrize.register_parametrization(module, name, mapped, unsafe=True)
    return module


def point_of(manifold: Manifold, x: Tensor) -> Tensor:
    """The point that a free tensor stands for: `Manifold.point_of`, or the nearest."""
    found = manifold.point_of(x)
    return nearest_point(manifold, x) if found is None else found


def _try(
    mapped: torch.nn.Module, weight: Tensor, whose: str, by: DeclarativeNode | Manifold
) -> None:
    """Refuse now what would fail in the module's forward."""
    found: Any
    try:
        with torch.no_grad():
            found = mapped(
                mapped.right_inverse(weight) if isinstance(mapped, OnManifold) else weight
            )
    except DdnkitError:
        raise
    except Exception as error:
        raise InputError(
            f"{whose}, of shape {tuple(weight.shape)}, cannot be parametrized by {by!r}: "
            f"{describe_error(error)}"
        ) from error
    if not isinstance(found, Tensor) or found.shape != weight.shape:
        kind = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise InputError(
            f"{whose} has shape {tuple(weight.shape)}; {by!r} makes {kind} of it, and a weight "
            "keeps its shape"
        )


class OnManifold(torch.nn.Module):
    """The point of a manifold that a free tensor stands for, as a parametrization."""

    def __init__(self, manifold: Manifold, weight: Tensor):
        super().__init__()
        self.manifold = manifold
        #: whether the matrix is seen from the other side
        self.transposed = manifold.tall and weight.shape[-2] < weight.shape[-1]

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
        """The solution for x, in its dtype."""
        found = self.layer(x)
        return found.to(x.dtype) if isinstance(found, Tensor) else found


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


class _Set(Manifold):
    """The points of a quotient, each for itself: to be near one is no matter of what it stands for."""

    name = "set"

    def __init__(self, quotient: Manifold):
        self._quotient, self.event_dims = quotient, quotient.event_dims

    def constraint(self, y: Tensor) -> Tensor:
        """The quotient's."""
        return self._quotient.constraint(y)

    def project(self, y: Tensor) -> Tensor:
        """The quotient's."""
        return self._quotient.project(y)

    def random(
        self, shape: tuple[int, ...], *, generator: Generator | None = None, like: Tensor
    ) -> Tensor:
        """The quotient's."""
        return self._quotient.random(shape, generator=generator, like=like)


@functools.lru_cache(maxsize=32)
def _layer(kind: type[Manifold], settings: tuple[tuple[str, Any], ...]) -> DeclarativeLayer:
    manifold = kind.__new__(kind)
    vars(manifold).update(settings)
    return _layer_of(manifold)


def _layer_of(manifold: Manifold) -> DeclarativeLayer:
    quotient = type(manifold).vertical is not Manifold.vertical
    return DeclarativeLayer(Nearest(_Set(manifold) if quotient else manifold))


def nearest_point(manifold: Manifold, x: Tensor) -> Tensor:
    """The nearest point, differentiated by the implicit function theorem; in the dtype of x."""
    settings = tuple(sorted(vars(manifold).items()))
    try:
        layer = _layer(type(manifold), settings)
    except TypeError:  # a setting that cannot be hashed
        layer = _layer_of(manifold)
    found: Tensor = layer(x)
    return found.to(x.dtype)
