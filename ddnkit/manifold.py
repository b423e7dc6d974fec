"""The Manifold contract: what a node, a solver and a backward form need to know of a constraint set.

A manifold is given as {y : j(y) = 0} with independent constraints j in the Euclidean space of y. All
methods take any number of leading batch dimensions before the manifold's own `event_dims`.

The embedded gradient vector field (Birtea and Comănescu; *Guiding Neural Collapse*, eq. 36) is
    ∂f(y) = ∇f(y) − Σᵢ σᵢ(y) ∇jᵢ(y),
with the multiplier functions σ that make it tangent. At a critical point they are the Lagrange
multipliers, so a manifold that knows σ in closed form spares the linear system for them. By default, with
J = Dj(y),
    σ(y) = (J Jᵀ)⁻¹ J ∇f(y),
with one step of iterative refinement: J Jᵀ has the square of the condition of J.

Quotients. Where points that differ by a gauge stand for the same thing (U and UQ, for the space that the
columns of U span), the directions in which the gauge moves y are *vertical*, and an objective that does
not tell such points apart has no curvature along them: y is determined up to the gauge alone. The slice
    {y' : ⟨wₖ, y' − y⟩ = 0},      wₖ the vertical directions at y,
cuts each class near y in one point, and on it the solution is a function of the data. As equations of a
point, a manifold therefore has those of the slice beside its own: linear ones, with multipliers of zero.
What does not tell the points of a class apart has the same derivatives, of every order, whichever slice
is taken; of what does, the derivative is the one for a y that moves horizontally.

Source: Absil, Mahony and Sepulchre, *Optimization Algorithms on Matrix Manifolds*, chapters 3 to 5.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
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
    w = called("vertical", y)
    if w is not None and (
        not isinstance(w, Tensor)
        or w.ndim != y.ndim + 1
        or (*w.shape[: len(batch)], *w.shape[len(batch) + 1 :]) != tuple(y.shape)
    ):
        event = y.shape[len(batch) :]
        refuse(
            "vertical",
            w,
            f"None or a tensor of shape ({', '.join(map(str, [*batch, 'q', *event]))})",
        )
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
    """A submanifold {j(y) = 0} of a Euclidean space, or a quotient of one by a gauge.

    `constraint`, `project` and `random` must be written, and `vertical` of a quotient. The rest follows from
    them by automatic differentiation, in the metric of the embedding space; to write it saves time.
    `ddnkit check manifold:NAME` compares each method with what it must be.

    Example, vectors of length 1:

        class UnitVectors(ddnkit.Manifold):
            name, event_dims = "unit_vectors", 1
            def constraint(self, y):
                return y.square().sum(-1, keepdim=True) - 1
            def project(self, y):
                return y / y.norm(dim=-1, keepdim=True)
            def random(self, shape, *, generator=None, like):
                return self.project(ddnkit.gaussian(shape, generator, like))
    """

    name: str
    #: how many trailing dimensions one point has: 1 for a vector, 2 for a matrix
    event_dims: int
    #: whether `normal` takes each row by itself: normal(diag(r) y, σ) = diag(r) normal(y, σ)
    normal_by_rows: bool = False
    #: whether a point is a matrix with at least as many rows as columns
    tall: bool = False
    #: names of solvers that minimise some objectives on it in closed form: the solver "riemannian" tries them
    #: first, and `ddnkit check` tells of them
    closed_form_solvers: tuple[str, ...] = ()

    # -- to be written -----------------------------------------------------------------------------

    @abc.abstractmethod
    def constraint(self, y: Tensor) -> Tensor:
        """j(y), shape (..., p): independent constraints, zero on the manifold; p = 0 for an open set."""

    @abc.abstractmethod
    def project(self, y: Tensor) -> Tensor:
        """The nearest point of the manifold."""

    @abc.abstractmethod
    def random(
        self, shape: tuple[int, ...], *, generator: Generator | None = None, like: Tensor
    ) -> Tensor:
        """A random point of the given shape (batch included), in dtype and device of ``like``."""

    def vertical(self, y: Tensor) -> Tensor | None:
        """Of a quotient: independent directions (..., q, *y) in which y moves and means the same, tangent to
        the constraint. None: every point means another."""
        return None

    # -- the constraint's derivatives --------------------------------------------------------------

    def constraint_jacobian(self, y: Tensor) -> Tensor:
        """Dj(y), shape (..., p, m), with y in row-major order along m."""
        values, pull = self._pull_back(y)
        count = values.shape[-1]
        if not count:
            return self._flat(y).unsqueeze(-2)[..., :0, :]
        basis = torch.eye(count, dtype=y.dtype, device=y.device)
        basis = basis.reshape(count, *[1] * (values.ndim - 1), count).expand(count, *values.shape)
        rows = torch.vmap(pull)(basis)
        return self._flat(rows).movedim(0, -2)

    def infeasibility(self, y: Tensor) -> Tensor:
        """Distance from the manifold relative to the size of a point on it, shape (...); to first order."""
        J, j = self.constraint_jacobian(y), self.constraint(y)
        step = _combine(J, _solve_gram(J, j))
        size = torch.linalg.vector_norm(self._flat(y), dim=-1)
        return torch.linalg.vector_norm(step, dim=-1) / torch.where(size > 0, size, 1.0)

    def multipliers(self, y: Tensor, gradient: Tensor) -> Tensor:
        """σ(y) for the Euclidean gradient of a function, in the manifold's own shape; (..., p) by default."""
        return _least_squares(self.constraint_jacobian(y), self._flat(gradient))

    def normal(self, y: Tensor, multipliers: Tensor) -> Tensor:
        """Σᵢ σᵢ ∇jᵢ(y), shaped like y."""
        found: Tensor = self._pull_back(y)[1](multipliers)
        return found

    def constraint_curvature(self, y: Tensor, multipliers: Tensor, direction: Tensor) -> Tensor:
        """Σᵢ σᵢ ∇²jᵢ(y) applied to ``direction``, shaped like y."""
        # The matrix is symmetric: its product with a vector is the gradient of ⟨normal, vector⟩.
        return torch.func.grad(lambda y: (self.normal(y, multipliers) * direction).sum())(y)

    # -- tangent vectors ---------------------------------------------------------------------------

    def tangent(self, y: Tensor, vector: Tensor) -> Tensor:
        """The orthogonal projection of ``vector`` on the tangent space at y; of a quotient, on the horizontal
        part of it."""
        tangent = self.less_normal(vector, y, self.multipliers(y, vector))
        vertical = self.vertical(y)
        if vertical is None or not vertical.shape[-self.event_dims - 1]:
            return tangent
        W, flat = self._flat(vertical), self._flat(tangent)
        return (flat - _combine(W, _least_squares(W, flat))).reshape(tangent.shape)

    def less_normal(self, vector: Tensor, y: Tensor, multipliers: Tensor) -> Tensor:
        """``vector`` − `normal`, a new tensor; to override where the two are cheaper in one."""
        return vector - self.normal(y, multipliers)

    def retract(self, y: Tensor, tangent: Tensor) -> Tensor:
        """A point of the manifold equal to y + tangent to first order."""
        return self.project(y + tangent)

    def transport(self, y: Tensor, to: Tensor, vector: Tensor) -> Tensor:
        """A tangent vector at y, carried along to another point; by projection, unless overridden."""
        return self.tangent(to, vector)

    # -- the metric, which a solver measures steps in ----------------------------------------------

    def inner(self, y: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """⟨u, v⟩ of tangent vectors at y, shape (...): that of the embedding space, unless overridden."""
        return (self._flat(u) * self._flat(v)).sum(dim=-1)

    def gradient(self, y: Tensor, gradient: Tensor) -> Tensor:
        """The tangent vector whose inner products are the derivatives of a function with that Euclidean
        gradient; to be overridden with `inner`."""
        return self.tangent(y, gradient)

    def hessian(self, y: Tensor, gradient: Tensor, product: Tensor, direction: Tensor) -> Tensor:
        """The Riemannian Hessian of a function applied to a tangent vector, from the Euclidean gradient and
        the ``product`` ∇²f·direction; to be overridden with `inner`."""
        sigma = self.multipliers(y, gradient)
        return self.tangent(y, product - self.constraint_curvature(y, sigma, direction))

    # -- free tensors, as `ddnkit.parametrize` takes them -------------------------------------------

    def point_of(self, x: Tensor) -> Tensor:
        """The point that a free tensor stands for, differentiable in it: the nearest, unless overridden."""
        from .parametrization import nearest_point

        return nearest_point(self, x)

    def free_of(self, weight: Tensor) -> Tensor:
        """A free tensor that stands for the point next to a weight."""
        return self.project(weight)

    # -- what the core asks ------------------------------------------------------------------------

    def of_parts(self, shapes: Sequence[Sequence[int]]) -> Manifold:
        """The manifold of the vector in which parts of these shapes are laid end to end; a product has one.

        Raises:
            InputError: it has points of one part.
        """
        raise InputError(
            f"a y of several parts cannot be on {self!r}: a product of manifolds takes one for each part "
            "(ddnkit_manifolds.Product); or write its constraints as `equality_constraints`"
        )

    def equations(self, y: Tensor) -> Tensor:
        """j, and those of the slice of a quotient, (..., p + q)."""
        j, vertical = self.constraint(y), self.vertical(y.detach())
        if vertical is None:
            return j
        moved = self._flat(y - y.detach()).unsqueeze(-1)
        return torch.cat([j, (self._flat(vertical) @ moved).squeeze(-1)], dim=-1)

    def equation_rows(self, y: Tensor) -> Tensor:
        """The derivative of `equations`, (..., p + q, m)."""
        J, vertical = self.constraint_jacobian(y), self.vertical(y)
        return J if vertical is None else torch.cat([J, self._flat(vertical)], dim=-2)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def _flat(self, y: Tensor) -> Tensor:
        return y.flatten(-self.event_dims) if self.event_dims else y.unsqueeze(-1)

    def _pull_back(self, y: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """j(y), and Jᵀ on vectors of its shape."""
        values, pull, *_ = torch.func.vjp(self.constraint, y)
        return values, lambda sigma: pull(sigma)[0]


def gaussian(shape: Sequence[int], generator: Generator | None, like: Tensor) -> Tensor:
    """Standard normal numbers in dtype and on device of ``like``, drawn where the generator is."""
    device = like.device if generator is None else generator.device
    wide = like.dtype if like.dtype in (torch.float32, torch.float64) else torch.float32
    drawn = torch.randn(tuple(shape), generator=generator, dtype=wide, device=device)
    return drawn.to(device=like.device, dtype=like.dtype)


def _combine(rows: Tensor, coefficients: Tensor) -> Tensor:
    """rowsᵀ c, (..., m)."""
    return (rows.mT @ coefficients.unsqueeze(-1)).squeeze(-1)


def _solve_gram(rows: Tensor, right: Tensor) -> Tensor:
    """(R Rᵀ)⁻¹ r of independent rows (..., p, m), (..., p); infinite or NaN where they are none."""
    if not rows.shape[-2]:
        return right
    found: Tensor = torch.linalg.solve_ex(rows @ rows.mT, right.unsqueeze(-1))[0]
    return found.squeeze(-1)


def _least_squares(rows: Tensor, vector: Tensor) -> Tensor:
    """The c (..., p) that minimises ‖v − Rᵀc‖."""
    found = _solve_gram(rows, (rows @ vector.unsqueeze(-1)).squeeze(-1))
    left = vector - _combine(rows, found)
    return found + _solve_gram(rows, (rows @ left.unsqueeze(-1)).squeeze(-1))
