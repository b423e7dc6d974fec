"""Kernel ridge regression: the predictor f_c(x) = Σ_j α_jc k(x, x_j) with (K + γI)α = Y.

Without a ridge the paper interpolates, α = K⁻¹Y. That needs a K that is not singular, and samples that
coincide make it singular. The `SolveReport` and a warning then say what was done instead: nothing is added
to K's diagonal unless it is asked for.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from ddnkit import DdnkitWarning, InputError, nearest_choice

from .blocks import allowed_memory, row_blocks
from .factorisations import cholesky, cholesky_matrices, minimum_norm_solution
from .kernel_system import (
    PAIR_BYTES,
    ConjugateGradients,
    KernelSystem,
    point_bytes,
    residuals,
)
from .kernels import Kernel
from .samples import check_columns, check_pair, check_samples
from .settings import Solver

#: A factorisation that leaves more of Y than this, ‖(K + γI)α − Y‖/‖Y‖, is not accepted as a solution.
TOLERANCE = 1e-8

#: Matrices n×n that "eigh" holds: the one that the eigenvectors overwrite, and LAPACK's workspace.
_EIGH_MATRICES = 4


@dataclass(frozen=True)
class SolveReport:
    """How coefficients were found, and how well they solve their equations.

    Attributes:
        solver: "cholesky", "eigh" or "iterative": the one whose coefficients they are.
        residual: ‖(K + γI)α − Y‖/‖Y‖, measured on the coefficients α in the samples' dtype. Their rounding
            to float32 alone leaves about 6e-8 ‖K‖‖α‖/‖Y‖.
        solved: the float64 coefficients' residual is within the solver's tolerance.
        rank: of K + γI to working precision, where it was determined.
        iterations: of conjugate gradients, the most of any column of Y.
        reason: why Cholesky's factorisation of K + γI did not give the coefficients; empty if it did, or was
            not asked for.
    """

    solver: str
    residual: float
    solved: bool
    rank: int | None = None
    iterations: int | None = None
    reason: str = ""


class SingularKernelWarning(DdnkitWarning):
    """A kernel matrix is singular to working precision: its coefficients are not unique."""


class UnsolvedKernelWarning(DdnkitWarning):
    """The coefficients of a kernel regression do not solve its equations to the tolerance."""


class KernelRegression:
    """Minimises ‖f(X) − Y‖² + γ‖f‖² over the functions f of a kernel: f = Σ_j α_j k(·, x_j), (K + γI)α = Y.

    The equations are solved in float64 whatever the samples' dtype. K's condition number grows with the
    inverse of the distances between samples, and float32 would leave no correct digit in a layer that
    has collapsed. Distances are always computed in float64.

    * "cholesky": K is held in memory and factorised in place, in 9n² bytes. Where it is singular to working
      precision, or the residual is above 1e-8, a `SingularKernelWarning` says so, and the coefficients are
      those of "eigh". Where coinciding samples are the cause, the kernel matrix of the distinct ones gives
      them; elsewhere "eigh" itself, or "iterative" where the memory does not allow "eigh".
    * "eigh": least-squares coefficients of the smallest norm, 32n² bytes. Samples that coincide share a
      coefficient evenly, and f there is the mean of their targets.
    * "iterative": preconditioned conjugate gradients; blocks of K are computed anew in each iteration. If K
      is singular, they find a solution where Y is in its range (all of them are the same f), else none.
    * "auto": "cholesky" if the memory allows it, otherwise "iterative".

    Args:
        kernel: k.
        ridge: γ ≥ 0.
        solver: one of the above.
        memory: bytes of tensors that `fit` and `predict` may hold besides their arguments and results; by
            default half of the device's free memory.
        tolerance: relative residual at which conjugate gradients stop.
        max_iterations: of conjugate gradients.
        rank: samples of their preconditioner; by default 1000, or as many as a quarter of the memory holds.

    Attributes:
        points: the samples x_j ``(n, d)`` of the last `fit`.
        coefficients: α ``(n, C)``, in their dtype.
        report: how α was found.

    Raises:
        ddnkit.InputError: an argument is out of its range.
    """

    points: Tensor
    coefficients: Tensor
    report: SolveReport

    def __init__(
        self,
        kernel: Kernel,
        ridge: float = 0.0,
        solver: Solver = "auto",
        memory: int | None = None,
        *,
        tolerance: float = TOLERANCE,
        max_iterations: int = 1000,
        rank: int | None = None,
    ) -> None:
        if not (math.isfinite(ridge) and ridge >= 0):
            raise InputError(f"a ridge is a finite number, 0 or above, not {ridge}")
        if solver not in get_args(Solver):
            hint = nearest_choice(solver, get_args(Solver))
            raise InputError(f"kernel regression has no solver '{solver}'.{hint}")
        self.kernel, self.ridge, self.solver, self.memory = kernel, ridge, solver, memory
        self._gradients = ConjugateGradients(tolerance, max_iterations, rank)

    def fit(self, X: Tensor, Y: Tensor) -> KernelRegression:
        """Find the coefficients; returns self.

        Args:
            X: samples ``(n, d)``, float32 or float64.
            Y: targets ``(n, C)``, of the same dtype and device.

        Raises:
            ddnkit.InputError: samples or targets are not finite or do not match, or the solver asked for
                takes more memory than allowed.
        """
        check_samples(X)
        check_columns(Y, X, "Y")
        memory = allowed_memory(self.memory, X.device)
        system = KernelSystem(self.kernel, X.to(torch.float64), self.ridge, memory)
        self.points = X
        self.coefficients, self.report = solve(system, Y, self.solver, self._gradients)
        self._warn()
        return self

    def predict(self, Z: Tensor) -> Tensor:
        """f_c(z_i) ``(m, C)`` of samples ``(m, d)``.

        Raises:
            ddnkit.InputError: samples are not finite or do not match, or nothing was fitted.
        """
        if not hasattr(self, "report"):
            raise InputError("this kernel regression has no coefficients yet: call fit first")
        check_samples(Z, "Z")
        check_pair(Z, self.points, ("Z", "the fitted samples"))
        n, d = self.points.shape
        left = allowed_memory(self.memory, Z.device) - point_bytes(n, d)
        predictions = Z.new_empty(len(Z), self.coefficients.shape[1])
        for block in row_blocks(len(Z), PAIR_BYTES * n, left, "a prediction"):
            predictions[block] = self.kernel.values(Z[block], self.points) @ self.coefficients
        return predictions

    def _warn(self) -> None:
        report, n = self.report, len(self.points)
        if report.reason:
            by = f"'{report.solver}' found coefficients of residual {report.residual:.1e}"
            rank = "" if report.rank is None else f" of the least norm, rank {report.rank} of {n}"
            warnings.warn(f"{report.reason}. {by}{rank}", SingularKernelWarning, stacklevel=3)
        if not report.solved:
            spent = f" after {report.iterations} iterations" if report.iterations else ""
            warnings.warn(
                f"kernel regression on {n} samples left a residual of {report.residual:.1e}{spent}: "
                "(a) samples that coincide have different targets, (b) the bandwidth is far above "
                "the distances between samples, (c) too few iterations: raise max_iterations, the "
                "rank of the preconditioner or the ridge",
                UnsolvedKernelWarning,
                stacklevel=3,
            )


def solve(
    system: KernelSystem, targets: Tensor, solver: Solver, gradients: ConjugateGradients
) -> tuple[Tensor, SolveReport]:
    """α ``(n, C)`` with (K + γI)α = Y, in the dtype of Y, and the report on it.

    Args:
        system: K + γI.
        targets: Y ``(n, C)``.
        solver: see `KernelRegression`.
        gradients: the conjugate gradients of "iterative".

    Raises:
        ddnkit.InputError: the solver asked for takes more memory than allowed.
    """
    solver, reason = _choose_solver(system, solver), ""
    if solver == "cholesky":
        found, reason = _solve_by_cholesky(system, targets)
        if found is not None:
            return found
        solver = "eigh" if _fits(system, "eigh") else "iterative"
    Y = targets.to(torch.float64)
    if solver == "eigh":
        solution, rank = minimum_norm_solution(system.matrix(), Y)
        return _assess(system.apply, targets, solution, solver="eigh", rank=rank, reason=reason)
    krylov = gradients.solve(system, Y)
    return _assess(
        system.apply,
        targets,
        krylov.x.T,
        gradients.tolerance,
        solver="iterative",
        iterations=int(krylov.iterations.max()),
        reason=reason,
    )


def _solve_by_cholesky(
    system: KernelSystem, targets: Tensor
) -> tuple[tuple[Tensor, SolveReport] | None, str]:
    """α and its report, or None; and why the factorisation of K + γI itself did not give α."""
    found, failure = _factorise(system, targets), "breaks down"
    if found is not None:
        if found[1].solved:
            return found, ""
        failure = f"leaves a residual of {found[1].residual:.1e}"
    reason = f"the kernel matrix is singular to working precision: Cholesky {failure}"
    distinct = _solve_distinct(system, targets) if system.ridge == 0 else None
    if distinct is None:
        return None, reason
    solution, rank = distinct
    reason += f", {len(targets) - rank} of {len(targets)} samples coincide with others"
    found = _assess(system.apply, targets, solution, solver="cholesky", rank=rank, reason=reason)
    return found, reason


def _factorise(system: KernelSystem, targets: Tensor) -> tuple[Tensor, SolveReport] | None:
    factor = cholesky(system.matrix())
    if factor is None:
        return None
    solution = factor.solve(targets.to(torch.float64))
    return _assess(factor.apply, targets, solution, solver="cholesky")


def _solve_distinct(system: KernelSystem, targets: Tensor) -> tuple[Tensor, int] | None:
    """K⁺Y and K's rank by Cholesky; None unless coinciding samples alone make K singular.

    K = P K_u Pᵀ with the kernel matrix K_u of the distinct samples and P_ig = 1 where sample i coincides
    with the g-th of them, as m_g samples do. ‖Kα − Y‖ is least where Kα is the mean ȳ_g in each group,
    K_u Pᵀα = ȳ. The α of least norm is in the range of P, constant in each group: α = P diag(1/m) K_u⁻¹ ȳ.
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


def _choose_solver(system: KernelSystem, asked: Solver) -> Solver:
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


def _assess(
    apply: Callable[[Tensor], Tensor],
    targets: Tensor,
    solution: Tensor,
    tolerance: float = TOLERANCE,
    **found: Any,
) -> tuple[Tensor, SolveReport]:
    """α in the dtype of Y, and the report: residuals by V ↦ (K + γI)V, and what else was `found`."""
    alpha = solution.to(targets.dtype).contiguous()
    exact, rounded = residuals(
        apply, targets.to(torch.float64), [solution, alpha.to(torch.float64)]
    )
    return alpha, SolveReport(residual=rounded, solved=exact <= tolerance, **found)
