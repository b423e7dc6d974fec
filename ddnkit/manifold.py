"""The Manifold contract: what a node, a solver and a backward form need to know of a constraint set.

A manifold is given as {y : j(y) = 0} with independent constraints j in the Euclidean space of y. All
methods take any number of leading batch dimensions before the manifold's own `event_dims`.

The embedded gradient vector field (Birtea and Comănescu; *Guiding Neural Collapse*, eq. 36) is
    ∂f(y) = ∇f(y) − Σᵢ σᵢ(y) ∇jᵢ(y),
with the multiplier functions σ that make it tangent. At a critical point they are the Lagrange
multipliers, so a manifold that knows σ in closed form spares the linear system for them.
"""

from __future__ import annotations

import abc
import math
from typing import Any, NoReturn

from torch import Generator, Tensor

from .errors import DdnkitError, InputError
from .importing import describe_error


def check_shapes(manifold: Manifold, y: Tensor) -> None:
    """Refuse a manifold one of whose members gives something of another shape than `Manifold` says.

    Args:
        y: points of it, (B, *y).

    Raises:
        InputError: the text names the member.
    """

    def same(name: str, *given: Any, **named: Any) -> Tensor:
        return shaped(name, tuple(y.shape), *given, **named)

    def shaped(name: str, shape: tuple[int, ...], *given: Any, **named: Any) -> Tensor:
        found = called(name, *given, **named)
        if not isinstance(found, Tensor) or tuple(found.shape) != shape:
            refuse(name, found, f"a tensor of shape {shape}")
        return found

    def called(name: str, *given: Any, **named: Any) -> Any:
        try:
            return getattr(manifold, name)(*given, **named)
        except DdnkitError:
            raise
        except Exception as error:
            raise InputError(
                f"manifold {type(manifold).__name__}: its method {name} fails at a point of shape "
                f"{tuple(y.shape)}: {describe_error(error)}"
            ) from error

    def refuse(name: str, found: object, expected: str) -> NoReturn:
        kind = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise InputError(
            f"manifold {type(manifold).__name__}: its method {name} gave {kind} at a point of shape "
            f"{tuple(y.shape)}; expected {expected}"
        )

    batch = tuple(y.shape[: y.ndim - manifold.event_dims])
    y = same("project", y)
    j = called("constraint", y)
    if not isinstance(j, Tensor) or tuple(j.shape[:-1]) != batch or j.ndim != len(batch) + 1:
        refuse("constraint", j, f"a tensor of shape ({', '.join([*map(str, batch), 'p'])})")
    shaped("constraint_jacobian", (*batch, j.shape[-1], math.prod(y.shape[len(batch) :])), y)
    shaped("infeasibility", batch, y)
    sigma = called("multipliers", y, y)
    if not isinstance(sigma, Tensor):
        refuse("multipliers", sigma, "a tensor")
    same("normal", y, sigma)
    same("less_normal", y, y, sigma)
    same("constraint_curvature", y, sigma, y)
    tangent = same("tangent", y, y)
    same("retract", y, tangent)
    same("transport", y, y, tangent)
    same("random", tuple(y.shape), like=y)


class Manifold(abc.ABC):
    """A submanifold {j(y) = 0} of a Euclidean space."""

    name: str
    #: how many trailing dimensions one point has: 1 for a vector, 2 for a matrix
    event_dims: int
    #: whether `normal` takes each row by itself: normal(diag(r) y, σ) = diag(r) normal(y, σ)
    normal_by_rows: bool = False
    #: names of solvers that minimise some objectives on it in closed form: `ddnkit check` tells of them
    closed_form_solvers: tuple[str, ...] = ()

    @abc.abstractmethod
    def constraint(self, y: Tensor) -> Tensor:
        """j(y), shape (..., p): independent constraints, zero on the manifold."""

    @abc.abstractmethod
    def constraint_jacobian(self, y: Tensor) -> Tensor:
        """Dj(y), shape (..., p, m), with y in row-major order along m."""

    @abc.abstractmethod
    def infeasibility(self, y: Tensor) -> Tensor:
        """Distance from the manifold relative to the size of a point on it, shape (...)."""

    @abc.abstractmethod
    def project(self, y: Tensor) -> Tensor:
        """The nearest point of the manifold."""

    @abc.abstractmethod
    def retract(self, y: Tensor, tangent: Tensor) -> Tensor:
        """A point of the manifold equal to y + tangent to first order."""

    @abc.abstractmethod
    def multipliers(self, y: Tensor, gradient: Tensor) -> Tensor:
        """σ(y) for the Euclidean gradient of a function, in this manifold's own shape."""

    @abc.abstractmethod
    def normal(self, y: Tensor, multipliers: Tensor) -> Tensor:
        """Σᵢ σᵢ ∇jᵢ(y), shaped like y."""

    @abc.abstractmethod
    def constraint_curvature(self, y: Tensor, multipliers: Tensor, direction: Tensor) -> Tensor:
        """Σᵢ σᵢ ∇²jᵢ(y) applied to ``direction``, shaped like y."""

    @abc.abstractmethod
    def random(
        self, shape: tuple[int, ...], *, generator: Generator | None = None, like: Tensor
    ) -> Tensor:
        """A random point of the given shape (batch included), in dtype and device of ``like``."""

    def tangent(self, y: Tensor, vector: Tensor) -> Tensor:
        """The orthogonal projection of ``vector`` on the tangent space at y."""
        return self.less_normal(vector, y, self.multipliers(y, vector))

    def less_normal(self, vector: Tensor, y: Tensor, multipliers: Tensor) -> Tensor:
        """``vector`` − `normal`, a new tensor; to override where the two are cheaper in one."""
        return vector - self.normal(y, multipliers)

    def transport(self, y: Tensor, to: Tensor, vector: Tensor) -> Tensor:
        """A tangent vector at y, carried along to another point; by projection, unless overridden."""
        return self.tangent(to, vector)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"
