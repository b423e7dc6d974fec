"""The equations (K + γI)α = Y of kernel regression, with K in memory or computed in blocks of rows.

Where K does not fit, conjugate gradients solve them, with a Nyström preconditioner: from the kernel of all
samples with r of them, C = K_{S,·} ``(r, n)``, K ≈ Cᵀ K_SS⁻¹ C = UΛUᵀ of rank r. The small eigenvalues of K
that this leaves out are approximated by λ_r I:

    P⁻¹ = I + U ((λ_r + γ)(Λ + γI)⁻¹ − I) Uᵀ

(Frangella, Tropp and Udell, *Randomized Nyström Preconditioning*, 2023, with samples for the sketch).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddnkit import InputError
from ddnkit.linalg import KrylovSolution, conjugate_gradient

from .blocks import FLOAT64_BYTES, fill_symmetric, triangle_blocks
from .kernels import Kernel

#: Bytes that a pair of samples takes while its kernel is computed: distance, kernel and a copy.
PAIR_BYTES = 3 * FLOAT64_BYTES

#: Samples of the preconditioner by default, where a quarter of the memory holds as many.
RANK = 1000

#: Matrices of the size of C that are held while the preconditioner is made, C included.
_PRECONDITIONER_MATRICES = 3

#: Vectors of length n that conjugate gradients hold for each column of Y.
_VECTORS = 16


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
        """Bytes of so many n×n matrices, the samples and one row of K."""
        n, d = self.points.shape
        return int(FLOAT64_BYTES * matrices * n * n) + PAIR_BYTES * n + point_bytes(n, d)

    def matrix(self) -> Tensor:
        """K + γI ``(n, n)``; K is symmetric, so only half of it is computed."""
        X, n = self.points, len(self.points)
        matrix = fill_symmetric(
            X.new_empty(n, n),
            self._blocks(held=FLOAT64_BYTES * n * n),
            lambda rows, rest: self.kernel.values(X[rows], X[rest]),
        )
        matrix.diagonal().add_(self.ridge)
        return matrix

    def apply(self, V: Tensor, held: int = 0) -> Tensor:
        """(K + γI)V ``(n, C)`` without holding all of K; `held` bytes of the memory are in use already."""
        X, product = self.points, self.ridge * V
        for block in self._blocks(held):
            K = self.kernel.values(X[block], X[block.start :])
            product[block].addmm_(K, V[block.start :])
            # Left of the diagonal, K is the transpose of what earlier blocks had.
            product[block.stop :].addmm_(K[:, len(K) :].T, V[block])
        return product

    def _blocks(self, held: int) -> Iterator[slice]:
        n, d = self.points.shape
        left = self.memory - held - point_bytes(n, d)
        return triangle_blocks(n, PAIR_BYTES * n, left, "a row of the kernel matrix")


def residuals(
    apply: Callable[[Tensor], Tensor], targets: Tensor, solutions: Sequence[Tensor]
) -> list[float]:
    """‖Aα − Y‖/‖Y‖ of each α ``(n, C)``, from one call of V ↦ AV for all of them; ‖Aα‖ where Y = 0."""
    products = apply(torch.cat(list(solutions), dim=1)).split(targets.shape[1], dim=1)
    size = targets.norm()
    size = torch.where(size > 0, size, 1.0)
    return [float((product - targets).norm() / size) for product in products]


@dataclass(frozen=True)
class ConjugateGradients:
    """Solves the equations without holding K; stopping rule and size of the preconditioner.

    Attributes:
        tolerance: relative residual of each column of Y at which they stop.
        max_iterations: the most that are made.
        rank: samples of the preconditioner; None for `RANK` or as many as fit, 0 for no preconditioner.

    Raises:
        ddnkit.InputError: one is out of its range.
    """

    tolerance: float
    max_iterations: int
    rank: int | None

    def __post_init__(self) -> None:
        if not self.tolerance > 0:
            raise InputError(f"a tolerance is above 0, not {self.tolerance}")
        if self.max_iterations < 1:
            raise InputError(f"max_iterations is at least 1, not {self.max_iterations}")
        if self.rank is not None and self.rank < 0:
            raise InputError(f"a preconditioner's rank is 0 or above, not {self.rank}")

    def solve(self, system: KernelSystem, targets: Tensor) -> KrylovSolution:
        """α as rows ``(C, n)``, and residual and iterations for each column of Y ``(n, C)``."""
        n, outputs = targets.shape
        row_bytes = FLOAT64_BYTES * n * _PRECONDITIONER_MATRICES
        rank = min(RANK, system.memory // 4 // row_bytes) if self.rank is None else self.rank
        rank = min(rank, n)
        held = rank * row_bytes + FLOAT64_BYTES * n * _VECTORS * outputs
        return conjugate_gradient(
            lambda V: system.apply(V.T, held).T,
            targets.T,
            preconditioner=nystrom_preconditioner(system, rank),
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
        )


def nystrom_preconditioner(system: KernelSystem, rank: int) -> Callable[[Tensor], Tensor]:
    """V ↦ P⁻¹V of rows ``(C, n)``; its samples are drawn from a fixed seed.

    Args:
        system: K + γI.
        rank: r; 0 for P = I.
    """
    X = system.points
    if rank == 0:
        return lambda V: V
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(X), generator=generator)[:rank].to(X.device)
    U, eigenvalues = _nystrom(system.kernel.values(X[chosen], X), chosen)
    weights = (eigenvalues[0] + system.ridge) / (eigenvalues + system.ridge) - 1
    return lambda V: torch.addmm(V, (V @ U) * weights, U.T)


def _nystrom(C: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """U ``(n, r)`` and Λ ``(r,)``, rising, of Cᵀ K_SS⁻¹ C; r is smaller where K_SS is singular."""
    eigenvalues, V = _positive_eigenvalues(C[:, chosen])
    # F = K_SS^{-1/2} C in the basis of eigenvectors: UΛUᵀ = FᵀF, from the small FFᵀ = QΛQᵀ.
    F = (V / eigenvalues.sqrt()).T @ C
    eigenvalues, Q = _positive_eigenvalues(F @ F.T)
    return F.T @ (Q / eigenvalues.sqrt()), eigenvalues


def _positive_eigenvalues(A: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenvalues above rounding, rising, and their eigenvectors as columns."""
    eigenvalues, V = torch.linalg.eigh(A)
    kept = eigenvalues > len(A) * torch.finfo(A.dtype).eps * eigenvalues[-1]
    return eigenvalues[kept], V[:, kept]
