"""Which solver finds the coefficients of a kernel regression, and how well it did."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ddnkit import InputError

from .factorisations import cholesky, cholesky_matrices, minimum_norm_solution
from .iterative import Iteration
from .kernel_system import KernelSystem, residuals

Solver = Literal["auto", "cholesky", "eigh", "iterative"]

#: A factorisation that leaves more of Y than this, ‖(K + γI)α − Y‖/‖Y‖, is not taken for a solution.
TOLERANCE = 1e-8

#: Matrices n×n that "eigh" holds: the one in whose place the eigenvectors come, and LAPACK's workspace.
_EIGH_MATRICES = 4


@dataclass(frozen=True)
class SolveReport:
    """How coefficients were found, and how well they solve their equations.

    Attributes:
        solver: "cholesky", "eigh" or "iterative": the one whose coefficients they are.
        residual: ‖(K + γI)α − Y‖/‖Y‖, measured on the coefficients α in the samples' dtype. Their rounding
            to float32 alone leaves about 6e-8 ‖K‖‖α‖/‖Y‖.
        solved: the float64 coefficients' residual is within the solver's tolerance.
        rank: of K + γI to working precision, where that was found.
        iterations: of conjugate gradients, the most of any column of Y.
        reason: why Cholesky's first factorisation is not what found the coefficients; empty if it was, or was
            not asked for.
    """

    solver: str
    residual: float
    solved: bool
    rank: int | None = None
    iterations: int | None = None
    reason: str = ""


def solve(
    system: KernelSystem, targets: Tensor, asked: Solver, iteration: Iteration
) -> tuple[Tensor, SolveReport]:
    """α ``(n, C)`` with (K + γI)α = Y, in the dtype of Y, and the report on it.

    Args:
        system: K + γI.
        targets: Y ``(n, C)``.
        asked: the solver; see `KernelRegression`.
        iteration: of conjugate gradients.

    Raises:
        ddnkit.InputError: the solver asked for takes more memory than allowed.
    """
    solver, reason = _chosen(system, asked), ""
    if solver == "cholesky":
        found, reason = _by_cholesky(system, targets)
        if found is not None:
            return found
        solver = "eigh" if _fits(system, "eigh") else "iterative"
    Y = targets.to(torch.float64)
    if solver == "eigh":
        solution, rank = minimum_norm_solution(system.matrix(), Y)
        return _assessed(system.apply, targets, solution, solver="eigh", rank=rank, reason=reason)
    krylov = iteration.solve(system, Y)
    return _assessed(
        system.apply,
        targets,
        krylov.x.T,
        iteration.tolerance,
        solver="iterative",
        iterations=int(krylov.iterations.max()),
        reason=reason,
    )


def _by_cholesky(
    system: KernelSystem, targets: Tensor
) -> tuple[tuple[Tensor, SolveReport] | None, str]:
    """α and its report, or None; and why the factorisation of K + γI itself gave none."""
    found, failure = _factorised(system, targets), "breaks down"
    if found is not None:
        if found[1].solved:
            return found, ""
        failure = f"leaves a residual of {found[1].residual:.1e}"
    reason = f"the kernel matrix is singular to working precision: Cholesky {failure}"
    distinct = _distinct_solution(system, targets) if system.ridge == 0 else None
    if distinct is None:
        return None, reason
    solution, rank = distinct
    reason += f", {len(targets) - rank} of {len(targets)} samples coincide with others"
    found = _assessed(system.apply, targets, solution, solver="cholesky", rank=rank, reason=reason)
    return found, reason


def _factorised(system: KernelSystem, targets: Tensor) -> tuple[Tensor, SolveReport] | None:
    factor = cholesky(system.matrix())
    if factor is None:
        return None
    solution = factor.solve(targets.to(torch.float64))
    return _assessed(factor.apply, targets, solution, solver="cholesky")


def _distinct_solution(system: KernelSystem, targets: Tensor) -> tuple[Tensor, int] | None:
    """K⁺Y and K's rank by Cholesky, where only samples that coincide make K singular; else None.

    K = P K_u Pᵀ with the kernel matrix K_u of the distinct samples and P_ig = 1 where sample i is the g-th of
    them, m_g times there. ‖Kα − Y‖ is least where Kα is in each group the mean ȳ_g, K_u Pᵀα = ȳ. The α of
    least norm is in the range of P, the same within a group: α = P diag(1/m) K_u⁻¹ ȳ.
    """
    points, group, counts = torch.unique(
        system.points, dim=0, return_inverse=True, return_counts=True
    )
    if len(points) == len(group):
        return None
    counts = counts[:, None]
    sums = counts.new_zeros(len(points), targets.shape[1], dtype=torch.float64)
    means = sums.index_add_(0, group, targets.to(torch.float64)) / counts
    factor = cholesky(dataclasses.replace(system, points=points).matrix())
    return None if factor is None else ((factor.solve(means) / counts)[group], len(points))


def _chosen(system: KernelSystem, asked: Solver) -> Solver:
    if asked == "auto":
        return "cholesky" if _fits(system, "cholesky") else "iterative"
    if asked != "iterative" and not _fits(system, asked):
        raise InputError(
            f"'{asked}' on {len(system.points)} samples takes "
            f"{_bytes(system, asked):,} bytes, above the {system.memory:,} allowed; "
            "use solver='iterative', or allow more with memory=BYTES"
        )
    return asked


def _fits(system: KernelSystem, solver: Solver) -> bool:
    return _bytes(system, solver) <= system.memory


def _bytes(system: KernelSystem, solver: Solver) -> int:
    n = len(system.points)
    return system.bytes_for(cholesky_matrices(n) if solver == "cholesky" else _EIGH_MATRICES)


def _assessed(
    apply: Callable[[Tensor], Tensor],
    targets: Tensor,
    solution: Tensor,
    tolerance: float = TOLERANCE,
    **found: Any,
) -> tuple[Tensor, SolveReport]:
    """α in the dtype of Y, and the report: what else was `found`, and the residual by V ↦ (K + γI)V."""
    alpha = solution.to(targets.dtype).contiguous()
    exact, rounded = residuals(
        apply, targets.to(torch.float64), [solution, alpha.to(torch.float64)]
    )
    return alpha, SolveReport(residual=rounded, solved=exact <= tolerance, **found)
