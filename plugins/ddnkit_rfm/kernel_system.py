"""The equations (K + γI)α = Y of kernel regression: K whole, or in blocks of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .blocks import FLOAT64_BYTES, fill_symmetric, triangle_blocks
from .kernels import Kernel

#: Bytes that a pair of samples takes while its kernel is computed: distance, kernel and a copy.
PAIR_BYTES = 3 * FLOAT64_BYTES


def point_bytes(n: int, d: int) -> int:
    """Bytes of n samples in float64, and of their copy relative to a mean."""
    return 2 * FLOAT64_BYTES * n * d


@dataclass(frozen=True)
class KernelSystem:
    """K + γI of n samples, in float64.

    Attributes:
        kernel: k.
        points: samples ``(n, d)``, float64.
        ridge: γ.
        memory: bytes that may be taken, the samples' own included.
    """

    kernel: Kernel
    points: Tensor
    ridge: float
    memory: int

    def bytes_for(self, matrices: float) -> int:
        """What `matrices` of size n×n take, with the samples and one row of K at a time."""
        n, d = self.points.shape
        return int(FLOAT64_BYTES * matrices * n * n) + PAIR_BYTES * n + point_bytes(n, d)

    def matrix(self) -> Tensor:
        """K + γI ``(n, n)``; K is symmetric, and half of it is computed."""
        X, n = self.points, len(self.points)
        matrix = fill_symmetric(
            X.new_empty(n, n),
            self._blocks(held=FLOAT64_BYTES * n * n),
            lambda rows, rest: self.kernel.values(X[rows], X[rest]),
        )
        matrix.diagonal().add_(self.ridge)
        return matrix

    def apply(self, V: Tensor, held: int = 0) -> Tensor:
        """(K + γI)V ``(n, C)``, K never held whole, within what `held` bytes leave of the memory."""
        X, product = self.points, self.ridge * V
        for block in self._blocks(held):
            K = self.kernel.values(X[block], X[block.start :])
            product[block].addmm_(K, V[block.start :])
            # Left of the diagonal stands the transpose of what earlier blocks had.
            product[block.stop :].addmm_(K[:, len(K) :].T, V[block])
        return product

    def _blocks(self, held: int) -> Iterator[slice]:
        n, d = self.points.shape
        left = self.memory - held - point_bytes(n, d)
        return triangle_blocks(n, PAIR_BYTES * n, left, "a row of the kernel matrix")


def residuals(
    apply: Callable[[Tensor], Tensor], targets: Tensor, solutions: Sequence[Tensor]
) -> list[float]:
    """‖Aα − Y‖/‖Y‖ of each α ``(n, C)``, by one application V ↦ AV; ‖Aα‖ where Y = 0."""
    products = apply(torch.cat(list(solutions), dim=1)).split(targets.shape[1], dim=1)
    size = targets.norm()
    size = torch.where(size > 0, size, 1.0)
    return [float((product - targets).norm() / size) for product in products]
