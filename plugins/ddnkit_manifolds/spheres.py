"""Unit vectors: the sphere, several spheres side by side, and hyperbolic space.

S^{n−1} = {y in Rⁿ : yᵀy = 1}. `Sphere.constraint` is yᵀy − 1, with gradient 2y. As on the Stiefel manifold
(of which this is the case C = 1) the multiplier field uses j = ½(yᵀy − 1): ∇j = y, ∇²j = I, and
    σ(y) = ⟨∇f, y⟩,      ∇f − σ y  is tangent.

The oblique manifold has a sphere for each column, and hyperbolic space (the Lorentz model) is the upper sheet
of the "sphere" ⟨y, y⟩ = −1 of the inner product ⟨u, v⟩ = −u₀v₀ + Σᵢ uᵢvᵢ = uᵀJv. With j = ½(⟨y, y⟩ + 1),
    ∇j = J y,      ∇²j = J,      σ(y) = ∇fᵀJy / yᵀy.
On its tangent space ⟨·, ·⟩ is positive definite: its metric. The derivative of f is J∇f in it.

Source: Nickel and Kiela, *Learning continuous hierarchies in the Lorentz model of hyperbolic geometry*.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ddnkit import Manifold, gaussian, nearest_point, under_transform


class Sphere(Manifold):
    """Unit vectors: yᵀy = 1, y of shape (..., n). Multipliers have shape (..., 1).

    Example: ``Sphere().project(x)`` with x (8, 3) gives eight unit vectors (8, 3).
    """

    name = "sphere"
    event_dims = 1

    def point_of(self, x: Tensor) -> Tensor:
        """Its projection; the layer of the nearest point, which tells it, where x = 0 has none."""
        if under_transform() or not bool(x.any(dim=-1).all()):
            return nearest_point(self, x)
        return self.project(x)

    def constraint(self, y: Tensor) -> Tensor:
        """yᵀy − 1, shape (..., 1)."""
        return _inner(y, y) - 1

    def constraint_jacobian(self, y: Tensor) -> Tensor:
        """2yᵀ, shape (..., 1, n)."""
        return 2 * y.unsqueeze(-2)

    def infeasibility(self, y: Tensor) -> Tensor:
        """|yᵀy − 1|, shape (...)."""
        return (_inner(y, y) - 1).abs().squeeze(-1)

    def project(self, y: Tensor) -> Tensor:
        """y / ‖y‖; the first unit vector where y = 0, to which every point is nearest."""
        # Divided by its largest entry first, a vector of any finite size keeps its direction.
        largest = y.abs().amax(dim=-1, keepdim=True)
        first = torch.zeros_like(y)
        first[..., 0] = 1
        # NaN is not zero: it has to stay NaN, or a solver would take the first unit vector for its iterate.
        scaled = torch.where(largest == 0, first, y / torch.where(largest == 0, 1, largest))
        return scaled / torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)

    def retract(self, y: Tensor, tangent: Tensor) -> Tensor:
        """(y + tangent) / ‖y + tangent‖."""
        return self.project(y + tangent)

    def multipliers(self, y: Tensor, gradient: Tensor) -> Tensor:
        """σ(y) = ⟨∇f, y⟩, shape (..., 1)."""
        return _inner(gradient, y)

    def normal(self, y: Tensor, multipliers: Tensor) -> Tensor:
        """σ y, shape (..., n)."""
        return multipliers * y

    def constraint_curvature(self, y: Tensor, multipliers: Tensor, direction: Tensor) -> Tensor:
        """σ z for the direction z, shape (..., n)."""
        return multipliers * direction

    def random(
        self, shape: tuple[int, ...], *, generator: Generator | None = None, like: Tensor
    ) -> Tensor:
        """A uniformly distributed unit vector of the given shape (..., n)."""
        return self.project(gaussian(shape, generator, like))

    def exponential(self, y: Tensor, tangent: Tensor) -> Tensor:
        """cos(‖z‖) y + sin(‖z‖) z/‖z‖: the geodesic from y in the direction of a tangent vector z."""
        length = torch.linalg.vector_norm(tangent, dim=-1, keepdim=True)
        return self.project(length.cos() * y + torch.sinc(length / torch.pi) * tangent)


class Oblique(Manifold):
    """Matrices with columns of unit length, y of shape (..., d, C). Multipliers have shape (..., 1, C).

    Metric: the Euclidean one of R^{d×C}. Example: ``Oblique().project(A)`` divides each column by its length.
    """

    name = "oblique"
    event_dims = 2
    _sphere = Sphere()

    def point_of(self, x: Tensor) -> Tensor:
        """Its projection, each column as of the sphere."""
        return self._sphere.point_of(x.mT).mT

    def constraint(self, y: Tensor) -> Tensor:
        """‖yⱼ‖² − 1 for each column, (..., C)."""
        return y.square().sum(dim=-2) - 1

    def constraint_jacobian(self, y: Tensor) -> Tensor:
        """Row j holds twice column j of y, and zeros elsewhere, (..., C, dC)."""
        units = torch.eye(y.shape[-1], dtype=y.dtype, device=y.device)
        return (2 * y.unsqueeze(-3) * units.unsqueeze(-2)).flatten(-2)

    def infeasibility(self, y: Tensor) -> Tensor:
        """The largest of |‖yⱼ‖² − 1|, (...)."""
        return (y.square().sum(dim=-2) - 1).abs().amax(dim=-1)

    def project(self, y: Tensor) -> Tensor:
        """Each column divided by its length; the first unit vector for a column of zeros."""
        return self._sphere.project(y.mT).mT

    def multipliers(self, y: Tensor, gradient: Tensor) -> Tensor:
        """⟨gⱼ, yⱼ⟩ for each column."""
        return (y * gradient).sum(dim=-2, keepdim=True)

    def normal(self, y: Tensor, multipliers: Tensor) -> Tensor:
        """σⱼ yⱼ."""
        return multipliers * y

    def constraint_curvature(self, y: Tensor, multipliers: Tensor, direction: Tensor) -> Tensor:
        """σⱼ zⱼ."""
        return multipliers * direction

    def random(
        self, shape: tuple[int, ...], *, generator: Generator | None = None, like: Tensor
    ) -> Tensor:
        """Uniformly distributed columns, of the given shape (..., d, C)."""
        return self.project(gaussian(shape, generator, like))

    def exponential(self, y: Tensor, tangent: Tensor) -> Tensor:
        """Of each column that of the sphere."""
        return self._sphere.exponential(y.mT, tangent.mT).mT


class Hyperbolic(Manifold):
    """Hyperbolic space of dimension n: −y₀² + y₁² + … + yₙ² = −1, y₀ > 0, y of shape (..., n + 1).

    Metric: ⟨u, v⟩ = −u₀v₀ + Σᵢ uᵢvᵢ, the Lorentz model. Multipliers have shape (..., 1).
    """

    name = "hyperbolic"
    event_dims = 1

    def point_of(self, x: Tensor) -> Tensor:
        """Its projection."""
        return self.project(x)

    def constraint(self, y: Tensor) -> Tensor:
        """½(⟨y, y⟩ + 1), shape (..., 1)."""
        return (_lorentz(y, y) + 1) / 2

    def constraint_jacobian(self, y: Tensor) -> Tensor:
        """(J y)ᵀ, shape (..., 1, n + 1)."""
        return _mirrored(y).unsqueeze(-2)

    def infeasibility(self, y: Tensor) -> Tensor:
        """The distance, to first order, relative to ‖y‖; at least 1 on the other sheet."""
        far = (_lorentz(y, y) + 1).abs() / (2 * _inner(y, y))
        return torch.where(y[..., :1] > 0, far, far.clamp_min(1)).squeeze(-1)

    def project(self, y: Tensor) -> Tensor:
        """The point above (y₁, …, yₙ): y₀ from the others. Not the nearest."""
        rest = y[..., 1:]
        first = torch.hypot(torch.linalg.vector_norm(rest, dim=-1, keepdim=True), y.new_ones(()))
        return torch.cat([first, rest], dim=-1)

    def multipliers(self, y: Tensor, gradient: Tensor) -> Tensor:
        """σ(y) = ∇fᵀJy / yᵀy."""
        return _lorentz(gradient, y) / _inner(y, y)

    def normal(self, y: Tensor, multipliers: Tensor) -> Tensor:
        """σ J y."""
        return multipliers * _mirrored(y)

    def constraint_curvature(self, y: Tensor, multipliers: Tensor, direction: Tensor) -> Tensor:
        """σ J z."""
        return multipliers * _mirrored(direction)

    def inner(self, y: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """⟨u, v⟩ = −u₀v₀ + Σᵢ uᵢvᵢ."""
        return _lorentz(u, v).squeeze(-1)

    def gradient(self, y: Tensor, gradient: Tensor) -> Tensor:
        """J∇f + (∇fᵀy) y."""
        return _mirrored(gradient) + _inner(gradient, y) * y

    def hessian(self, y: Tensor, gradient: Tensor, product: Tensor, direction: Tensor) -> Tensor:
        """J(∇²f z) + ((∇²f z)ᵀy) y + (∇fᵀy) z."""
        return self.gradient(y, product) + _inner(gradient, y) * direction

    def retract(self, y: Tensor, tangent: Tensor) -> Tensor:
        """The point above y + tangent."""
        return self.project(y + tangent)

    def transport(self, y: Tensor, to: Tensor, vector: Tensor) -> Tensor:
        """v + ⟨v, to⟩ to: by the projection that is orthogonal in the metric."""
        return vector + _lorentz(vector, to) * to

    def exponential(self, y: Tensor, tangent: Tensor) -> Tensor:
        """cosh(‖z‖) y + sinh(‖z‖) z/‖z‖ in the metric: the geodesic from y along a tangent vector z."""
        length = _lorentz(tangent, tangent).clamp_min(0).sqrt()
        tiny = length < 1e-4
        safe = torch.where(tiny, 1.0, length)
        ratio = torch.where(tiny, 1 + length.square() / 6, safe.sinh() / safe)
        return self.project(length.cosh() * y + ratio * tangent)

    def random(
        self, shape: tuple[int, ...], *, generator: Generator | None = None, like: Tensor
    ) -> Tensor:
        """A point above a standard normal one, of the given shape (..., n + 1)."""
        return self.project(gaussian(shape, generator, like))


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=-1, keepdim=True)


def _mirrored(y: Tensor) -> Tensor:
    """J y: the first entry with the other sign."""
    return torch.cat([-y[..., :1], y[..., 1:]], dim=-1)


def _lorentz(a: Tensor, b: Tensor) -> Tensor:
    return _inner(a[..., 1:], b[..., 1:]) - a[..., :1] * b[..., :1]
