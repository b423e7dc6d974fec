"""Spaces of constant curvature k in one chart: the Poincaré ball, a sphere's stereographic projection.

The points are R^n for k ≥ 0, and the open ball ‖y‖² < −1/k for k < 0, in the metric λ²⟨u, v⟩ with
    λ(y) = 2 / (1 + k‖y‖²),      ∇ log λ = −kλ y.
The gradient is ∇f/λ², and with the Christoffel symbols of a conformal metric the Hessian is
    (∇²f z − ⟨∇log λ, z⟩ ∇f − ⟨∇f, z⟩ ∇log λ + ⟨∇log λ, ∇f⟩ z) / λ².
The geodesic from y along z is y ⊕ tanₖ(λ‖z‖/2) z/‖z‖, with tanₖ(t) = tan(√k t)/√k, tanh for negative k, and
    x ⊕ y = ((1 − 2k⟨x, y⟩ − k‖y‖²) x + (1 + k‖x‖²) y) / (1 − 2k⟨x, y⟩ + k²‖x‖²‖y‖²).

Source: Ganea, Bécigneul and Hofmann, *Hyperbolic neural networks*; Bachmann, Bécigneul and Ganea, *Constant
curvature graph convolutional networks*.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from ddnkit import InputError, Manifold, gaussian


class Stereographic(Manifold):
    """A space of constant curvature, y of shape (..., n): an open set, without a constraint.

    Args:
        curvature: −1 is the Poincaré ball of radius 1, 0 a flat space.

    Raises:
        InputError: the curvature is not a finite number.
    """

    name = "stereographic"
    event_dims = 1

    def __init__(self, curvature: float = -1.0):
        if not math.isfinite(curvature):
            raise InputError(f"a curvature is a finite number, not {curvature}")
        self.curvature = float(curvature)

    def constraint(self, y: Tensor) -> Tensor:
        """Nothing, (..., 0)."""
        return y[..., :0]

    def infeasibility(self, y: Tensor) -> Tensor:
        """0 in the ball, at least 1 out of it."""
        far = -self.curvature * y.square().sum(dim=-1)
        return torch.where(far < 1, torch.zeros_like(far), far)

    def project(self, y: Tensor) -> Tensor:
        """y, or a point within the ball by √ε of its radius. Not the nearest, of which there is none."""
        if self.curvature >= 0:
            return y
        largest = (1 - torch.finfo(y.dtype).eps ** 0.5) / math.sqrt(-self.curvature)
        length = torch.linalg.vector_norm(y, dim=-1, keepdim=True)
        return torch.where(length > largest, y * (largest / length), y)

    def point_of(self, x: Tensor) -> Tensor:
        """The end of the geodesic from 0 along x."""
        return self.exponential(torch.zeros_like(x), x)

    def free_of(self, weight: Tensor) -> Tensor:
        """The initial velocity of the geodesic from 0 to the projection."""
        y, k = self.project(weight), self.curvature
        length = torch.linalg.vector_norm(y, dim=-1, keepdim=True)
        if k:
            root = math.sqrt(abs(k))
            scaled = length * root
            angle = (torch.atan(scaled) if k > 0 else torch.atanh(scaled)) / root
        else:
            angle = length
        return y * torch.where(length > 0, angle / torch.where(length > 0, length, 1.0), 1.0)

    def inner(self, y: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """λ²⟨u, v⟩."""
        return (self._scale(y).square() * u * v).sum(dim=-1)

    def gradient(self, y: Tensor, gradient: Tensor) -> Tensor:
        """∇f/λ²."""
        return gradient / self._scale(y).square()

    def hessian(self, y: Tensor, gradient: Tensor, product: Tensor, direction: Tensor) -> Tensor:
        """See the module's text."""
        scale = self._scale(y)
        growth = -self.curvature * scale * y
        turned = (
            _inner(growth, direction) * gradient
            + _inner(gradient, direction) * growth
            - _inner(growth, gradient) * direction
        )
        return (product - turned) / scale.square()

    def retract(self, y: Tensor, tangent: Tensor) -> Tensor:
        """The exponential, kept within the ball."""
        return self.project(self.exponential(y, tangent))

    def transport(self, y: Tensor, to: Tensor, vector: Tensor) -> Tensor:
        """The same vector, at its length in the metric."""
        return vector * (self._scale(y) / self._scale(to))

    def exponential(self, y: Tensor, tangent: Tensor) -> Tensor:
        """The geodesic from y along a tangent vector."""
        k = self.curvature
        half = self._scale(y) / 2
        if k > 0:
            step = half * _over(torch.tan, 1 / 3, math.sqrt(k) * half, tangent) * tangent
        elif k < 0:
            step = half * _over(torch.tanh, -1 / 3, math.sqrt(-k) * half, tangent) * tangent
        else:
            return y + tangent
        xy, xx, yy = _inner(y, step), _inner(y, y), _inner(step, step)
        found = (1 - 2 * k * xy - k * yy) * y + (1 + k * xx) * step
        return found / (1 - 2 * k * xy + k**2 * xx * yy)

    def random(
        self, shape: tuple[int, ...], *, generator: Generator | None = None, like: Tensor
    ) -> Tensor:
        """The end of a geodesic from 0 along a normal vector, of the given shape (..., n)."""
        drawn = gaussian(shape, generator, like)
        return self.project(self.point_of(drawn / (1 + abs(self.curvature)) ** 0.5 / 4))

    def __repr__(self) -> str:
        return f"Stereographic({self.curvature:g})"

    def _scale(self, y: Tensor) -> Tensor:
        """λ(y)."""
        return 2 / (1 + self.curvature * _inner(y, y))


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=-1, keepdim=True)


def _over(function: Callable[[Tensor], Tensor], cubic: float, scale: Tensor, z: Tensor) -> Tensor:
    """tan(t)/t = 1 + t²/3 + 2t⁴/15 + …, or tanh(t)/t, at t = scale·‖z‖, differentiable at 0."""
    square = scale.square() * _inner(z, z)
    small = square < 1e-4
    t = torch.where(small, 1.0, square).sqrt()
    # The next term, 17t⁶/315, is below 1e-13 there.
    series = 1 + cubic * square + 2 / 15 * square.square() + 17 / 105 * cubic * square**3
    return torch.where(small, series, function(t) / t)
