"""Points of a manifold that is checked: shapes, sizes and tolerances of what is compared there."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from .manifold_session import Session
from .manifold_truth import Truth, condition, jacobian

#: Two steps along a curve, relative to the size of a point. What is off to second order is a hundredth with
#: the second, what is off to first order a tenth.
STEPS = (1e-4, 1e-5)
SECOND_ORDER = 0.03
#: The step of differences, relative; the error of theirs up to which they say something.
DIFFERENCE, _SMOOTH = 3e-3, 1e-3


class Draw:
    """Points of one batch shape. Vectors are (*batch, *y) for the manifold and (N, m) here.

    Attributes:
        y: the points, once they are found to be some; ``size`` the largest norm of them.
        truth: what follows from the constraint there.
        vertical: the vertical directions, (N, q, m), if there are some.
    """

    y: Tensor
    size: float
    truth: Truth
    vertical: Tensor | None

    def __init__(
        self, session: Session, batch: tuple[int, ...], point: tuple[int, ...], generator: Generator
    ):
        self.session, self.batch, self.point = session, batch, point
        self.generator = generator
        self.m, self.count = math.prod(point), math.prod(batch)
        self.shape = (*batch, *point)
        self.eps = torch.finfo(torch.float64).eps

    def _ask_points(self, method: str, y: Tensor) -> Tensor:
        return self.session.ask(method, y, shape=self.shape)

    def _curve(self, method: str, curve: Callable[[Tensor], Tensor], z: Tensor) -> None:
        """On the manifold, and y + z to first order."""
        session = self.session
        off, far = [], 0.0
        for step in STEPS:
            end = curve(self.shaped(step * z))
            far = max(far, self._off(end))
            off.append(longest(self.flat(end - self.y) - step * z))
        far = max(far, self._off(curve(self.shaped(self._inside(z)))))
        session.judge(
            method,
            "on the manifold",
            far,
            self.rounding(self.truth.condition**2),
            f"it leaves the manifold by {far:.1e} of the size of a point",
            "a point of the manifold",
            "end it with `project`",
        )
        session.judge(
            method,
            "first order",
            self._order(off),
            SECOND_ORDER,
            f"it is off y + z by a first-order term ({off[0] / self.size:.1e} for a z of {STEPS[0]:.0e})",
            "y + z to first order: with a tenth of z a hundredth of the error",
        )

    def _constraint(self, y: Tensor) -> Tensor:
        found: Tensor = self.session.manifold.constraint(y)
        return found

    def flat(self, v: Tensor) -> Tensor:
        """(*batch, *y) as (N, m)."""
        return v.reshape(self.count, self.m)

    def shaped(self, v: Tensor) -> Tensor:
        """(N, ...) as (*batch, *y)."""
        return v.reshape(self.shape)

    def single(self, y: Tensor) -> Tensor:
        """(*batch, *y) as (N, *y)."""
        return y.reshape(self.count, *self.point)

    def _rows_of(self, W: Tensor) -> Tensor:
        return W.reshape(self.count, -1, self.m)

    def _vertical_at(self, y: Tensor) -> Tensor | None:
        W = None if self.vertical is None else self.session.call("vertical", y)
        return None if W is None else self._rows_of(W)

    def _draws(self) -> Tensor:
        return torch.randn(self.shape, generator=self.generator, dtype=torch.float64)

    def _vector(self) -> Tensor:
        """A random vector of the size of a point."""
        return self._draws() * self.size / self.m**0.5

    def _flat_vector(self) -> Tensor:
        return self.flat(self._vector())

    def _horizontal(self) -> Tensor:
        """A tangent vector of the size of a point, where there is one."""
        z = self.truth.horizontal(self._flat_vector())
        length = z.norm(dim=1, keepdim=True)
        return z / length * self.size if self._free() else torch.zeros_like(z)

    def _free(self) -> bool:
        """Whether the set has a dimension."""
        return self.truth.count < self.m

    def _inside(self, z: Tensor) -> Tensor:
        """z shortened to where the manifold still is, if it is open: `project` leaves such points alone."""
        step = 0.2 * z
        for _ in range(12):
            there = self.shaped(self.truth.beside(step))
            if "project" in self.session.wrong:
                return z / 100
            moved = longest(self.flat(self._ask_points("project", there) - there))
            if moved <= self.rounding(self.truth.condition**2) * self.size:
                return step
            step = step / 2
        return step

    def _size(self, y: Tensor) -> float:
        return max(longest(self.flat(y)), self.eps)

    def _condition(self, y: Tensor) -> float:
        return condition(jacobian(self._constraint, self.single(y)))

    def _off(self, y: Tensor) -> float:
        """The distance from {j = 0} to first order, relative to a point's size."""
        single = self.single(y)
        j = self._constraint(single)
        if not j.shape[1]:
            return 0.0
        back = torch.linalg.pinv(jacobian(self._constraint, single)) @ j.unsqueeze(-1)
        far = longest(back.squeeze(-1)) / self._size(y)
        return far if math.isfinite(far) else float("inf")

    def _order(self, off: Sequence[float]) -> float:
        """How much of an error the smaller step leaves, rounding apart."""
        rounding = self.rounding(self.truth.condition**2) * self.size
        return max(off[1] - rounding, 0.0) / max(off[0], rounding)

    def rounding(self, condition: float) -> float:
        """What sums of m terms may be off by, relative, in a problem of that condition."""
        return min(64 * self.m * self.eps * condition, 1e-3)

    def _of_differences(self, apart: float, size: float, of: float, step: float) -> float:
        """The error of a derivative by differences of a function of size ``of``, relative to ``size``."""
        if not size:
            return self.rounding(1)
        return min(apart / size + 64 * self.m * self.eps * of / (step * size), _SMOOTH)


def longest(vectors: Tensor) -> float:
    """The largest norm of vectors (N, ...)."""
    if not vectors.numel():
        return 0.0
    return float(torch.linalg.vector_norm(vectors.reshape(len(vectors), -1), dim=1).max())
