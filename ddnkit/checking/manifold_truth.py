"""What a manifold's methods must give, from `constraint` and `vertical` alone, by automatic differentiation.

With J = Dj(y) and W the vertical directions, QR decompositions of Jᵀ and of [Jᵀ Wᵀ] give the orthogonal
projections on the row space of J and off both. The multipliers are those of least squares, σ = R⁻¹Qᵀ∇f.

Points beside a given one come from Newton's method for j = 0, y ← y − J⁺j, and not from the manifold's own
`project` or `retract`, which may be wrong: it is a retraction wherever J has full rank.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: Steps of Newton's method: from nearby, quadratic convergence is over after that.
_STEPS = 8


class Truth:
    """At points y (N, *y) of {j = 0}; vectors are (N, m).

    Attributes:
        J, W: (N, p, m) and (N, q, m).
        condition: of the rows of J, and of those of J and W together; the worst.
    """

    def __init__(
        self, constraint: Callable[[Tensor], Tensor], y: Tensor, vertical: Tensor | None = None
    ):
        self._constraint, self.y = constraint, y
        self.J = jacobian(constraint, y)
        self.W = self.J[:, :0] if vertical is None else vertical
        self._Q, self._R = torch.linalg.qr(self.J.mT)
        rows = torch.cat([self.J, self.W], dim=1)
        self.count = rows.shape[1]
        self._all = torch.linalg.qr(rows.mT)[0]
        self.condition = max(condition(self.J), condition(rows))

    def on_rows(self, v: Tensor) -> Tensor:
        """The projection on the row space of J."""
        return _times(self._Q, _times(self._Q.mT, v))

    def off_rows(self, v: Tensor) -> Tensor:
        """The projection on the tangent space."""
        return v - self.on_rows(v)

    def horizontal(self, v: Tensor) -> Tensor:
        """The projection off the row space and the vertical directions."""
        for _ in range(2):
            v = v - _times(self._all, _times(self._all.mT, v))
        return v

    def basis(self) -> Tensor:
        """An orthonormal basis of the horizontal space, (N, m, k)."""
        return torch.linalg.qr(self._all, mode="complete")[0][..., self.count :]

    def multipliers(self, gradient: Tensor) -> Tensor:
        """(N, p)."""
        right = _times(self._Q.mT, gradient).unsqueeze(-1)
        return torch.linalg.solve_triangular(self._R, right, upper=True).squeeze(-1)

    def curvature(self, sigma: Tensor, z: Tensor) -> Tensor:
        """Σᵢ σᵢ ∇²jᵢ z."""
        with torch.enable_grad():
            y = self.y.detach().requires_grad_()
            total = (self._constraint(y) * sigma).sum()
            (slope,) = torch.autograd.grad(
                total, y, create_graph=True, allow_unused=True, materialize_grads=True
            )
            if not slope.requires_grad:  # a linear constraint
                return torch.zeros_like(z)
            (product,) = torch.autograd.grad(
                (slope.reshape(z.shape) * z).sum(), y, allow_unused=True, materialize_grads=True
            )
        return product.reshape(z.shape)

    def beside(self, step: Tensor) -> Tensor:
        """The point of {j = 0} that Newton's method finds from y + step, (N, *y)."""
        return land(self._constraint, self.y + step.reshape(self.y.shape))


def jacobian(constraint: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
    """Dj at points (N, *y), (N, p, m), for a j of each point by itself."""
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        values = constraint(y)
        rows = [
            torch.autograd.grad(
                values[:, i].sum(), y, retain_graph=True, allow_unused=True, materialize_grads=True
            )[0].reshape(len(y), -1)
            for i in range(values.shape[1])
        ]
    return torch.stack(rows, dim=1) if rows else y.detach().reshape(len(y), 1, -1)[:, :0]


def land(constraint: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
    """The point of {j = 0} that Newton's method finds from points (N, *y)."""
    for _ in range(_STEPS):
        J, j = jacobian(constraint, y), constraint(y)
        if not j.shape[1]:
            return y
        y = y - _times(torch.linalg.pinv(J), j).reshape(y.shape)
    return y


def condition(rows: Tensor) -> float:
    """Largest singular value over the least of rows (N, r, m), the worst; infinite for dependent ones."""
    if not rows.shape[1]:
        return 1.0
    if rows.shape[1] > rows.shape[2]:
        return float("inf")
    values = torch.linalg.svdvals(rows)
    return float((values[:, 0] / values[:, -1]).nan_to_num(nan=float("inf")).max())


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def derivative(
    function: Callable[[float], Tensor], step: float, order: int = 1
) -> tuple[Tensor, float]:
    """f'(0) or f''(0) by central differences of two steps, extrapolated; and how far the two are apart.

    The error of the one with half the step is a third of that distance, and that of the extrapolated one of
    the next order, for a smooth function.
    """
    long, short = (_difference(function, h, order) for h in (step, step / 2))
    return (4 * short - long) / 3, float((short - long).abs().max())


def _difference(function: Callable[[float], Tensor], h: float, order: int) -> Tensor:
    if order == 1:
        return (function(h) - function(-h)) / (2 * h)
    return (function(h) - 2 * function(0.0) + function(-h)) / h**2
