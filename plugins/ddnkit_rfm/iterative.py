"""Conjugate gradients for (K + γI)α = Y, K never held whole, with a Nyström preconditioner.

From the kernel of all samples with r of them, C = K_{S,·} ``(r, n)``, K ≈ Cᵀ K_SS⁻¹ C = UΛUᵀ of rank r. What
it leaves, the small eigenvalues of K, is taken for λ_r I:

    P⁻¹ = I + U ((λ_r + γ)(Λ + γI)⁻¹ − I) Uᵀ

(Frangella, Tropp and Udell, *Randomized Nyström Preconditioning*, 2023, with samples for the sketch).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddnkit import InputError
from ddnkit.linalg import KrylovSolution, conjugate_gradient

from .blocks import FLOAT64_BYTES
from .kernel_system import KernelSystem

#: Samples of the preconditioner, where a quarter of the memory holds as many.
RANK = 1000

#: Matrices of the size of C that making the preconditioner takes, C included.
PRECONDITIONER_MATRICES = 3

#: Vectors of length n that conjugate gradients hold for each column of Y.
VECTORS = 16


@dataclass(frozen=True)
class Iteration:
    """When conjugate gradients end, and their preconditioner.

    Attributes:
        tolerance: relative residual of each column of Y.
        max_iterations: at most so many.
        rank: samples of the preconditioner; None for `RANK` or what fits, 0 for none.

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
        row_bytes = FLOAT64_BYTES * n * PRECONDITIONER_MATRICES
        rank = min(RANK, system.memory // 4 // row_bytes) if self.rank is None else self.rank
        rank = min(rank, n)
        held = rank * row_bytes + FLOAT64_BYTES * n * VECTORS * outputs
        return conjugate_gradient(
            lambda V: system.apply(V.T, held).T,
            targets.T,
            preconditioner=nystrom_preconditioner(system, rank),
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
        )


def nystrom_preconditioner(system: KernelSystem, rank: int) -> Callable[[Tensor], Tensor]:
    """V ↦ P⁻¹V of rows ``(C, n)``; its samples are drawn in one fixed way.

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
    """U ``(n, r)`` and Λ ``(r,)``, rising, of Cᵀ K_SS⁻¹ C; r is less where K_SS is singular."""
    eigenvalues, V = _positive_eigenvalues(C[:, chosen])
    # F = K_SS^{-1/2} C in the basis of eigenvectors: UΛUᵀ = FᵀF, from the small FFᵀ = QΛQᵀ.
    F = (V / eigenvalues.sqrt()).T @ C
    eigenvalues, Q = _positive_eigenvalues(F @ F.T)
    return F.T @ (Q / eigenvalues.sqrt()), eigenvalues


def _positive_eigenvalues(A: Tensor) -> tuple[Tensor, Tensor]:
    """Those above rounding, rising, and their eigenvectors as columns."""
    eigenvalues, V = torch.linalg.eigh(A)
    kept = eigenvalues > len(A) * torch.finfo(A.dtype).eps * eigenvalues[-1]
    return eigenvalues[kept], V[:, kept]
