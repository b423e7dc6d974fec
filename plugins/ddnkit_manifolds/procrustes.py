"""The orthogonal Procrustes problem in closed form.

    minimise  −⟨A, U⟩  over  U in St(d, C).

With A = P diag(s) Vᵀ, ⟨A, U⟩ = Σᵢ sᵢ ⟨pᵢ, U vᵢ⟩ ≤ Σᵢ sᵢ, reached at U vᵢ = pᵢ: U = P Vᵀ, the polar
factor of A, unique where all sᵢ > 0.

Where A has rank r < C, every U = P_r V_rᵀ + Q V_0ᵀ with Q orthonormal and orthogonal to P_r is
a minimiser. Given a preferred point P̂, the nearest of them maximises ⟨P̂, Q V_0ᵀ⟩, which is again a
Procrustes problem, for R = (I − P_r P_rᵀ) P̂ V_0 V_0ᵀ. It is also the limit of polar(A + δP̂) for
δ → 0: to first order in δ the perturbation acts on the null space through R alone.
Three steps give it for a batch of mixed ranks, with masks in place of slices:
    B₀ = P_r V_rᵀ;   B₁ = B₀ + Q₊W₊ᵀ, from R = Q diag(t) Wᵀ and the directions with t > 0;
    U = polar(B₁).
The singular values of B₁ are ones and zeros. The zeros are the directions in which R says nothing
either; there the last step fills in the SVD's own vectors, so that U is orthonormal in every case.

Source: Schönemann, *A generalized solution of the orthogonal Procrustes problem*.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddnkit import InputError, Problem, Solution, Solver, Status

from .stiefel import Stiefel
from .support import manifold_reason


class Procrustes(Solver):
    """Solves  min −⟨A(x), U⟩ + const over St(d, C)  exactly: U* = polar(A).

    The node says what A is, by a method on the whole batch (one batch dimension in front):

    * ``procrustes_target(*xs)``: A, (B, d, C), such that the node's objective equals −⟨A, U⟩ plus a
      constant wherever UᵀU = I. Required.
    * ``procrustes_completion(*xs)``: a preferred point, (B, d, C). Where A is rank-deficient (a
      singular value at most eps · max(d, C) · the largest, eps that of the input's dtype) the
      solution nearest to it is taken. Without it the completion is LAPACK's, hence arbitrary.

    Computed in float64 whatever the input, and on its device. The Solution has 0 iterations and
    ``aux = {"right_vectors": V (B, C, C), "singular_values": s (B, C)}`` of A in float64. An item
    with a non-finite A has status NON_FINITE and a solution of NaN.

    Raises:
        InputError: where A is not a (B, d, C) tensor with d ≥ C.
    """

    name = "procrustes"

    def unsupported(self, problem: Problem) -> str | None:
        """Needs a node on a Stiefel manifold that has a `procrustes_target`."""
        if not callable(getattr(problem.node, "procrustes_target", None)):
            return (
                f"{type(problem.node).__name__} has no `procrustes_target(*xs)`, which gives the A "
                "of an objective −⟨A, U⟩"
            )
        return manifold_reason(problem, [Stiefel])

    def solve(self, problem: Problem, start: Tensor | None = None) -> Solution:
        """U* = polar(A) of each item; ``start`` is not needed."""
        node: Any = problem.node
        target = node.procrustes_target(*problem.inputs).detach()
        if target.dim() != 3 or target.shape[-2] < target.shape[-1]:
            raise InputError(
                f"{type(node).__name__}.procrustes_target must return (B, d, C) with d ≥ C; "
                f"it returned shape {tuple(target.shape)}"
            )
        finite = target.isfinite().flatten(1).all(dim=1)
        A = torch.where(finite[:, None, None], target, 0.0).to(torch.float64)
        threshold = torch.finfo(target.dtype).eps * A.shape[-2]
        U, s, V = _by_gram(A) if target.dtype != torch.float64 else _by_svd(A)
        # Either factorisation has synchronised with the host: asking it costs nothing more.
        if not bool((s > threshold * s[:, :1]).all()):
            U, s, V = _deficient(node, problem, A, threshold)
        U = torch.where(finite[:, None, None], U, torch.nan).to(target.dtype)
        status = torch.where(finite, int(Status.CONVERGED), int(Status.NON_FINITE))
        aux = {"right_vectors": V, "singular_values": s}
        return Solution(U, status, torch.zeros_like(status), self.name, aux)


def _by_svd(A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    left, s, right = torch.linalg.svd(A, full_matrices=False)
    return left @ right, s, right.mT


def _by_gram(A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From AᵀA = V diag(s²) Vᵀ, in half the time and memory, for A that came in float32 or less.

    The square costs accuracy, eps₆₄ κ², and a rank that counts as full has κ < 1/(d eps₃₂): what is
    lost is below 1e-8 there, and no deficient rank is taken for a full one.
    """
    squares, V = torch.linalg.eigh(A.mT @ A)
    s = squares.clamp(min=0).sqrt().flip(-1)
    V = V.flip(-1)
    return A @ ((V / s.unsqueeze(-2)) @ V.mT), s, V


def _deficient(
    node: Any, problem: Problem, A: Tensor, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    left, s, right = torch.linalg.svd(A, full_matrices=False)
    if not hasattr(node, "procrustes_completion"):
        return left @ right, s, right.mT
    kept = s > threshold * s[:, :1]
    preferred = node.procrustes_completion(*problem.inputs).detach().to(torch.float64)
    U = completed(left * kept.unsqueeze(1) @ right, preferred.expand_as(A), threshold)
    return U, s, right.mT


def completed(partial: Tensor, preferred: Tensor, threshold: float) -> Tensor:
    """The orthonormal U nearest to ``preferred`` that extends a partial isometry.

    Args:
        partial: B₀ = P_r V_rᵀ, (B, d, C): singular values one and zero.
        preferred: P̂, (B, d, C).
        threshold: singular values of the remainder below this, relative to ‖P̂‖, count as zero.
    """
    # B₀ᵀB₀ = V_r V_rᵀ and B₀B₀ᵀ = P_r P_rᵀ: no basis of the null space is needed.
    remainder = preferred - preferred @ (partial.mT @ partial)
    remainder = remainder - partial @ (partial.mT @ remainder)
    left, t, right = torch.linalg.svd(remainder, full_matrices=False)
    size = torch.linalg.vector_norm(preferred, dim=(-2, -1)).unsqueeze(-1)
    kept = t > threshold * size
    left, _, right = torch.linalg.svd(
        partial + (left * kept.unsqueeze(1)) @ right, full_matrices=False
    )
    return left @ right
