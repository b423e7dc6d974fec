"""Sets without a curved constraint: Euclidean space, and probability vectors with positive entries.

The positive simplex {y > 0, Σᵢ yᵢ = 1} has the Fisher metric ⟨u, v⟩ = Σᵢ uᵢvᵢ/yᵢ, in which it is a part
of a sphere (of 2√y) and its boundary is not far away, but steps are relative to each entry. With g = ∇f and
λ = ⟨y, g⟩ the gradient is y∘(g − λ); the derivative of a vector field ξ along z has the Christoffel term
−½ z∘ξ/y. Doubly stochastic matrices have it too, with α1ᵀ + 1βᵀ in the place of λ.

Source: Amari, *Information Geometry and Its Applications*, chapter 2.
"""

from __future__ import annotations

import functools

import torch
from torch import Generator, Tensor

from ddnkit import DeclarativeLayer, DeclarativeNode, InputError, Manifold, gaussian

_SWEEPS = 8


class Euclidean(Manifold):
    """R^n, or all tensors of `dims` dimensions: no constraint; for the parts of a product that have none.

    Args:
        dims: how many trailing dimensions a point has.
    """

    name = "euclidean"

    def __init__(self, dims: int = 1):
        self.event_dims = dims

    def constraint(self, y: Tensor) -> Tensor:
        """Nothing, (..., 0)."""
        return self._flat(y)[..., :0]

    def constraint_jacobian(self, y: Tensor) -> Tensor:
        """Nothing, (..., 0, m)."""
        return self._flat(y).unsqueeze(-2)[..., :0, :]

    def infeasibility(self, y: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(self._flat(y)[..., :1].sum(dim=-1))

    def point_of(self, x: Tensor) -> Tensor:
        """x."""
        return x

    def project(self, y: Tensor) -> Tensor:
        """y."""
        return y

    def multipliers(self, y: Tensor, gradient: Tensor) -> Tensor:
        """Nothing, (..., 0)."""
        return self._flat(gradient)[..., :0]

    def normal(self, y: Tensor, multipliers: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(y)

    def less_normal(self, vector: Tensor, y: Tensor, multipliers: Tensor) -> Tensor:
        """A copy of the vector."""
        return vector.clone()

    def constraint_curvature(self, y: Tensor, multipliers: Tensor, direction: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(direction)

    def random(
        self, shape: tuple[int, ...], *, generator: Generator | None = None, like: Tensor
    ) -> Tensor:
        """Standard normal numbers."""
        return gaussian(shape, generator, like)

    def __repr__(self) -> str:
        return f"Euclidean({'' if self.event_dims == 1 else self.event_dims})"


class PositiveSimplex(Manifold):
    """Probability vectors with positive entries: y > 0, Σᵢ yᵢ = 1, y of shape (..., n).

    Metric: Fisher's. Multipliers have shape (..., 1). A solution on the boundary is none of the open set: a
    node whose entries may be zero has ``bounds = (0.0, None)`` instead.
    """

    name = "positive_simplex"
    event_dims = 1

    def constraint(self, y: Tensor) -> Tensor:
        """Σᵢ yᵢ − 1, (..., 1)."""
        return y.sum(dim=-1, keepdim=True) - 1

    def constraint_jacobian(self, y: Tensor) -> Tensor:
        """A row of ones, (..., 1, n)."""
        return torch.ones_like(y).unsqueeze(-2)

    def infeasibility(self, y: Tensor) -> Tensor:
        """|Σᵢ yᵢ − 1|; at least 1 where an entry is not positive."""
        far = (y.sum(dim=-1) - 1).abs()
        return torch.where((y > 0).all(dim=-1), far, far.clamp_min(1))

    def project(self, y: Tensor) -> Tensor:
        """Entries of at least ε of the largest, divided by their sum. Not the nearest."""
        largest = y.abs().amax(dim=-1, keepdim=True)
        kept = torch.maximum(y, torch.finfo(y.dtype).eps * torch.where(largest > 0, largest, 1.0))
        return kept / kept.sum(dim=-1, keepdim=True)

    def point_of(self, x: Tensor) -> Tensor:
        """softmax(x)."""
        return torch.softmax(x, dim=-1)

    def free_of(self, weight: Tensor) -> Tensor:
        """The logarithm of the projection."""
        return self.project(weight).log()

    def multipliers(self, y: Tensor, gradient: Tensor) -> Tensor:
        """The mean of ∇f."""
        return gradient.mean(dim=-1, keepdim=True)

    def normal(self, y: Tensor, multipliers: Tensor) -> Tensor:
        """σ in every entry."""
        return multipliers.expand_as(y).clone()

    def constraint_curvature(self, y: Tensor, multipliers: Tensor, direction: Tensor) -> Tensor:
        """0: the constraint is linear."""
        return torch.zeros_like(direction)

    def inner(self, y: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Σᵢ uᵢvᵢ/yᵢ."""
        return (u * v / y).sum(dim=-1)

    def gradient(self, y: Tensor, gradient: Tensor) -> Tensor:
        """y∘(∇f − ⟨y, ∇f⟩)."""
        return y * (gradient - (y * gradient).sum(dim=-1, keepdim=True))

    def hessian(self, y: Tensor, gradient: Tensor, product: Tensor, direction: Tensor) -> Tensor:
        """The tangent part of y∘∇²f[z] + ½ z∘(∇f − ⟨y, ∇f⟩)."""
        relative = gradient - (y * gradient).sum(dim=-1, keepdim=True)
        return self.transport(y, y, y * product + direction * relative / 2)

    def retract(self, y: Tensor, tangent: Tensor) -> Tensor:
        """y∘exp(z/y), divided by its sum."""
        power = tangent / y
        grown = y * (power - power.amax(dim=-1, keepdim=True)).exp()
        return self.project(grown)

    def transport(self, y: Tensor, to: Tensor, vector: Tensor) -> Tensor:
        """v − (Σᵢ vᵢ) to: the projection that is orthogonal in the metric."""
        return vector - vector.sum(dim=-1, keepdim=True) * to

    def random(
        self, shape: tuple[int, ...], *, generator: Generator | None = None, like: Tensor
    ) -> Tensor:
        """The softmax of standard normal numbers, of the given shape (..., n)."""
        return torch.softmax(gaussian(shape, generator, like), dim=-1)


class Positive(Manifold):
    """Tensors with positive entries: y > 0, an open set, in the metric Σᵢ uᵢvᵢ/yᵢ².

    That of log y in the Euclidean one, in which the boundary is infinitely far away. A node whose entries may
    be zero has ``bounds = (0.0, None)`` instead.

    Args:
        dims: how many trailing dimensions a point has.
    """

    name = "positive"

    def __init__(self, dims: int = 1):
        self.event_dims = dims

    def constraint(self, y: Tensor) -> Tensor:
        """Nothing, (..., 0)."""
        return self._flat(y)[..., :0]

    def infeasibility(self, y: Tensor) -> Tensor:
        """0, and at least 1 where an entry is not positive."""
        return torch.where((self._flat(y) > 0).all(dim=-1), 0.0, 1.0).to(y.dtype)

    def project(self, y: Tensor) -> Tensor:
        """Entries of at least ε of the largest. Not the nearest, of which there is none."""
        dims = tuple(range(-self.event_dims, 0))
        largest = y.abs().amax(dim=dims, keepdim=True) if dims else y.abs()
        return torch.maximum(y, torch.finfo(y.dtype).eps * torch.where(largest > 0, largest, 1.0))

    def point_of(self, x: Tensor) -> Tensor:
        """exp(x)."""
        return x.exp()

    def free_of(self, weight: Tensor) -> Tensor:
        """The logarithm of the projection."""
        return self.project(weight).log()

    def inner(self, y: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Σᵢ uᵢvᵢ/yᵢ²."""
        return (self._flat(u / y) * self._flat(v / y)).sum(dim=-1)

    def gradient(self, y: Tensor, gradient: Tensor) -> Tensor:
        """y²∘∇f."""
        return y.square() * gradient

    def hessian(self, y: Tensor, gradient: Tensor, product: Tensor, direction: Tensor) -> Tensor:
        """y²∘∇²f[z] + y∘z∘∇f."""
        return y * (y * product + direction * gradient)

    def retract(self, y: Tensor, tangent: Tensor) -> Tensor:
        """y∘exp(z/y)."""
        return y * (tangent / y).exp()

    def transport(self, y: Tensor, to: Tensor, vector: Tensor) -> Tensor:
        """v∘to/y."""
        return vector * (to / y)

    def random(
        self, shape: tuple[int, ...], *, generator: Generator | None = None, like: Tensor
    ) -> Tensor:
        """exp of standard normal numbers."""
        return gaussian(shape, generator, like).exp()

    def __repr__(self) -> str:
        return f"Positive({'' if self.event_dims == 1 else self.event_dims})"


class Birkhoff(Manifold):
    """Doubly stochastic matrices with positive entries: rows and columns of sum 1, y of shape (..., n, n).

    Metric: Fisher's, Σ uᵢⱼvᵢⱼ/yᵢⱼ. A node whose entries may be zero has ``bounds = (0.0, None)`` and the sums
    as `equality_constraints` instead.
    """

    name = "birkhoff"
    event_dims = 2
    #: of so many sweeps of Sinkhorn's iteration and a step of Newton's, at most; one that is near needs one
    _rounds = 100

    def constraint(self, y: Tensor) -> Tensor:
        """The sums of the rows, and of the columns but the last, less 1; (..., 2n − 1)."""
        return torch.cat([y.sum(dim=-1) - 1, y.sum(dim=-2)[..., :-1] - 1], dim=-1)

    def infeasibility(self, y: Tensor) -> Tensor:
        """The largest |sum − 1|; at least 1 where an entry is not positive."""
        far = torch.cat([y.sum(dim=-1) - 1, y.sum(dim=-2) - 1], dim=-1).abs().amax(dim=-1)
        return torch.where((y > 0).all(dim=-1).all(dim=-1), far, far.clamp_min(1))

    def constraint_curvature(self, y: Tensor, multipliers: Tensor, direction: Tensor) -> Tensor:
        """0: the constraint is linear."""
        return torch.zeros_like(direction)

    def project(self, y: Tensor) -> Tensor:
        """Of positive entries, rows and columns scaled so that their sums are 1. Not the nearest."""
        eps = torch.finfo(y.dtype).eps
        if y.shape[-2] != y.shape[-1]:
            raise InputError(f"doubly stochastic matrices are square; got shape {tuple(y.shape)}")
        largest = y.abs().amax(dim=(-2, -1), keepdim=True)
        return self.scaled(torch.maximum(y, eps * torch.where(largest > 0, largest, 1.0)))

    def scaled(self, kept: Tensor) -> Tensor:
        """diag(a) Y diag(b), doubly stochastic, of a Y with positive entries."""
        n, eps = kept.shape[-1], torch.finfo(kept.dtype).eps
        for _ in range(self._rounds):
            for _ in range(_SWEEPS):
                kept = kept / kept.sum(dim=-2, keepdim=True)
                kept = kept / kept.sum(dim=-1, keepdim=True)
            far = (kept.sum(dim=-2) - 1).abs().amax(dim=-1)
            if bool((far <= n * eps).all()):
                break
            # y∘exp(Jᵀc) with (J diag(y) Jᵀ) c = −j(y): a step of Newton's, taken where it is one ahead.
            J = self.constraint_jacobian(kept)
            weighted = J * self._flat(kept).unsqueeze(-2)
            c = torch.linalg.solve_ex(J @ weighted.mT, -self.constraint(kept).unsqueeze(-1))[0]
            ahead = kept * (J.mT @ c).reshape(kept.shape).exp()
            better = self.infeasibility(ahead) < far
            kept = torch.where(better[..., None, None], ahead, kept)
        return kept

    def point_of(self, x: Tensor) -> Tensor:
        """The projection of exp(x)."""
        found: Tensor = _scaled()(x)
        return found

    def free_of(self, weight: Tensor) -> Tensor:
        """The logarithm of the projection of entries of at least a thousandth of the largest, as few sweeps
        are enough for."""
        least = weight.abs().amax(dim=(-2, -1), keepdim=True) / 1000
        return self.project(torch.maximum(weight, least)).log()

    def gradient(self, y: Tensor, gradient: Tensor) -> Tensor:
        """y∘(∇f − α1ᵀ − 1βᵀ)."""
        return self._metric_tangent(y, y * gradient)

    def inner(self, y: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Σ uᵢⱼvᵢⱼ/yᵢⱼ."""
        return (u * v / y).sum(dim=(-2, -1))

    def hessian(self, y: Tensor, gradient: Tensor, product: Tensor, direction: Tensor) -> Tensor:
        """The tangent part of y∘∇²f[z] + ½ z∘(∇f − α1ᵀ − 1βᵀ)."""
        relative = self.gradient(y, gradient) / y
        return self._metric_tangent(y, y * product + direction * relative / 2)

    def retract(self, y: Tensor, tangent: Tensor) -> Tensor:
        """The projection of y∘exp(z/y)."""
        power = tangent / y
        return self.project(y * (power - power.amax(dim=(-2, -1), keepdim=True)).exp())

    def transport(self, y: Tensor, to: Tensor, vector: Tensor) -> Tensor:
        """By the projection that is orthogonal in the metric."""
        return self._metric_tangent(to, vector)

    def random(
        self, shape: tuple[int, ...], *, generator: Generator | None = None, like: Tensor
    ) -> Tensor:
        """The projection of exponentials of normal numbers, of the given shape (..., n, n)."""
        return self.project(gaussian(shape, generator, like).exp())

    def _metric_tangent(self, y: Tensor, vector: Tensor) -> Tensor:
        """v − y∘(α1ᵀ + 1βᵀ), with α, β that make it tangent: (J diag(y) Jᵀ) c = J v."""
        J = self.constraint_jacobian(y)
        weighted = J * self._flat(y).unsqueeze(-2)
        right = J @ self._flat(vector).unsqueeze(-1)
        c = torch.linalg.solve_ex(J @ weighted.mT, right)[0]
        return vector - (weighted.mT @ c).reshape(vector.shape)


class _Scaled(DeclarativeNode):
    """The doubly stochastic diag(a) exp(x) diag(b), which is nearest to exp(x) in relative entropy."""

    input_dims = (2,)
    batched_solve = True
    manifold = Birkhoff()

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        """Σ yᵢⱼ(log yᵢⱼ − 1 − xᵢⱼ)."""
        return (y * (y.log() - 1 - x)).sum()

    def solve(self, x: Tensor) -> Tensor:
        """By the sums in turn."""
        return self.manifold.scaled((x - x.amax(dim=(-2, -1), keepdim=True)).exp())


@functools.cache
def _scaled() -> DeclarativeLayer:
    return DeclarativeLayer(_Scaled())
