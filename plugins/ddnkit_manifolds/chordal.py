"""pymanopt's manifolds with what its derivative-free methods ask for: means, logarithms, given points.

They need dist, log and pair_mean, which pymanopt has for the sphere but not for the Stiefel manifold.
Here all are chordal on the latter, in the Euclidean space around it,
    dist(a, b) = ‖a − b‖,    log_a(b) = Π_a(b − a),    pair_mean(a, b) = polar(a + b),
which fit together: −Σ log_y(bᵢ) is the Riemannian gradient of ½ Σ dist(y, bᵢ)², so that pymanopt's
Karcher mean becomes the chordal one; they agree with the geodesic ones to second order in ‖a − b‖.

The methods draw their first points, and Nelder-Mead the start of each mean, from `random_point`. So
these manifolds are given the points it is to return.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from pymanopt.manifolds import Sphere, Stiefel

Array = np.ndarray


class _Given:
    """`random_point` returns the points given first, then what ``afterwards`` says.

    Attributes:
        asked: how often ``afterwards`` was asked.
    """

    _points: list[Array]
    _afterwards: Callable[[], Array]
    asked = 0

    def give(self, points: Iterable[Array], afterwards: Callable[[], Array]) -> None:
        """Set the points."""
        self._points, self._afterwards = list(points), afterwards

    def random_point(self) -> Array:
        """The next point."""
        if self._points:
            return self._points.pop(0)
        self.asked += 1
        return self._afterwards()


class GivenSphere(_Given, Sphere):
    """pymanopt's sphere."""


class ChordalStiefel(_Given, Stiefel):
    """pymanopt's Stiefel manifold with chordal means and logarithms."""

    def __init__(self, n: int, p: int) -> None:
        super().__init__(n, p, retraction="polar")

    def dist(self, point_a: Array, point_b: Array) -> Any:
        """‖a − b‖."""
        return np.linalg.norm(point_a - point_b)

    def log(self, point_a: Array, point_b: Array) -> Array:
        """Π_a(b − a)."""
        projected: Array = self.projection(point_a, point_b - point_a)
        return projected

    def pair_mean(self, point_a: Array, point_b: Array) -> Array:
        """The polar factor of a + b."""
        left, _, right = np.linalg.svd(point_a + point_b, full_matrices=False)
        mean: Array = left @ right
        return mean
