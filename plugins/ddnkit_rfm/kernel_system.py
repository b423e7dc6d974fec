"""The equations (K + γI)α = Y of kernel regression: K whole, or in blocks of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .blocks import FLOAT64_BYTES, row_blocks
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

    def bytes_for(self, matrices: int) -> int:
        """What `matrices` of size n×n take, with the samples and one row of K at a time."""
        n, d = self.points.shape
        return FLOAT64_BYTES * matrices * n * n + PAIR_BYTES * n + point_bytes(n, d)

    def rows(self, held: int = 0) -> Iterator[tuple[slice, Tensor]]:
        """Blocks of K's rows, without γ, within what `held` bytes leave of the memory."""
        X = self.points
        left = self.memory - held - point_bytes(*X.shape)
        for block in row_blocks(len(X), PAIR_BYTES * len(X), left, "a row of the kernel matrix"):
            yield block, self.kernel.values(X[block], X)

    def matrix(self) -> Tensor:
        """K + γI ``(n, n)``."""
        n = len(self.points)
        matrix = self.points.new_empty(n, n)
        for block, K in self.rows(held=FLOAT64_BYTES * n * n):
            matrix[block] = K
        matrix.diagonal().add_(self.ridge)
        return matrix

    def apply(self, V: Tensor, held: int = 0) -> Tensor:
        """(K + γI)V ``(n, C)``, K never held whole."""
        product = self.ridge * V
        for block, K in self.rows(held):
            product[block].addmm_(K, V)
        return product

    def residuals(self, targets: Tensor, solutions: Sequence[Tensor]) -> list[float]:
        """‖(K + γI)α − Y‖/‖Y‖ of each α ``(n, C)``, by one pass over K; ‖(K + γI)α‖ where Y = 0."""
        products = self.apply(torch.cat(list(solutions), dim=1)).split(targets.shape[1], dim=1)
        size = targets.norm()
        size = torch.where(size > 0, size, 1.0)
        return [float((product - targets).norm() / size) for product in products]
