"""Kernel ridge regression: the predictor f_c(x) = Σ_j α_jc k(x, x_j) with (K + γI)α = Y.

Without a ridge the paper interpolates, α = K⁻¹Y. That is a solution only where K is not singular, and
samples that coincide make it so. What then happens is said in the `SolveReport` and by a warning: nothing is
added to K's diagonal that was not asked for.
"""

from __future__ import annotations

import math
import warnings
from typing import get_args

import torch
from torch import Tensor

from ddnkit import DdnkitWarning, InputError, nearest_choice

from .blocks import allowed_memory, row_blocks
from .checks import check_columns, check_pair, check_samples
from .iterative import Iteration
from .kernel_system import PAIR_BYTES, KernelSystem, point_bytes
from .kernels import Kernel
from .solving import TOLERANCE, Solver, SolveReport, solve


class SingularKernelWarning(DdnkitWarning):
    """A kernel matrix is singular to working precision: its coefficients are not unique."""


class UnsolvedKernelWarning(DdnkitWarning):
    """The coefficients of a kernel regression do not solve its equations to the tolerance."""


class KernelRegression:
    """Minimises ‖f(X) − Y‖² + γ‖f‖² over the functions f of a kernel: f = Σ_j α_j k(·, x_j), (K + γI)α = Y.

    The equations are solved in float64 whatever the samples' dtype. K's condition number grows with the
    inverse of the distances between samples, and in float32 nothing would be left of it in a layer that has
    collapsed. Its distances are taken in float64 in any case.

    * "cholesky": K is held whole, and factorised in place: 9n² bytes. Where it is singular to working
      precision, or the residual is above 1e-8, a `SingularKernelWarning` says so, and the coefficients are
      those of "eigh". If it is samples that coincide, the kernel matrix of the distinct ones gives them;
      if not, "eigh" itself, or "iterative" where the memory does not allow that.
    * "eigh": least-squares coefficients of the smallest norm, 32n² bytes. Samples that coincide share a
      coefficient evenly, and f there is the mean of their targets.
    * "iterative": preconditioned conjugate gradients; blocks of K are computed anew in each iteration. Of a
      singular K they find a solution if Y is in its range, any of which is the same f, and else none.
    * "auto": "cholesky" if the memory allows it, otherwise "iterative".

    Args:
        kernel: k.
        ridge: γ ≥ 0.
        solver: one of the above.
        memory: bytes of tensors that `fit` and `predict` may hold, beside what they are given and return;
            by default half of what the device has free.
        tolerance: relative residual at which conjugate gradients stop.
        max_iterations: of conjugate gradients.
        rank: samples of their preconditioner; by default 1000, or what a quarter of the memory holds.

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
        self.iteration = Iteration(tolerance, max_iterations, rank)

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
        self.coefficients, self.report = solve(system, Y, self.solver, self.iteration)
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
