"""The least and the largest eigenvalue of a symmetric operator on a subspace, by Lanczos' method.

For symmetric A (m×m) and an orthogonal projector P, the Lanczos process with P A P and a starting
vector in P's range builds orthonormal V (k vectors of that range) and T = VᵀAV tridiagonal. The
eigenvalues θ of T, T s = θ s, lie between the extreme eigenvalues of A on the range, and approach
them. ‖P A V s − θ V s‖ = β_k |s_k|: within that of θ there is an eigenvalue of A on the range (which
need not be the extreme one, so that `lowest` is a bound from above without it). Every vector is
orthogonalised against all earlier ones. Parlett, *The Symmetric Eigenvalue Problem* (1980), ch. 13.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .arnoldi import without
from .krylov import LinearMap, norm, operator

#: Steps of a call that names none: a few digits of the extremes of a spectrum without large gaps.
STEPS = 32

#: β below this many roundings of ‖A‖ √m: the Krylov space is invariant and T's eigenvalues exact.
ROUNDINGS = 10

#: A start that the projector shortens below eps to this power has nothing in the range but rounding.
EMPTY_POWER = 0.75


class ExtremeEigenvalues(NamedTuple):
    """Ritz values and the larger of their residuals, each (...)."""

    lowest: Tensor
    largest: Tensor
    error: Tensor


def extreme_eigenvalues(
    apply: LinearMap, like: Tensor, *, project: LinearMap | None = None, steps: int = STEPS
) -> ExtremeEigenvalues:
    """The extremes of A's spectrum on the range of `project`, for each item of `like` (..., m).

    Costs `steps` products with A and 2·`steps` + 1 projections. `like` gives shape, dtype and device.
    Where the range is {0}, lowest = ∞ and largest = −∞; where A holds NaN all are NaN.
    """
    if like.numel() == 0:
        empty = like.detach().sum(-1)
        return ExtremeEigenvalues(empty + torch.inf, empty - torch.inf, empty)
    project = (lambda v: v) if project is None else operator(project)
    T, rest, empty = _lanczos(operator(apply), project, like, min(steps, like.shape[-1]))
    bad = ~T.isfinite().all(-1).all(-1)
    values, vectors = torch.linalg.eigh(torch.where(bad[..., None, None], 0.0, T))
    last = vectors[..., -1, :].abs()
    rounding = _roundoff(like) * values.abs().amax(-1)
    error = rest * torch.maximum(last[..., 0], last[..., -1]) + rounding
    error = torch.where(empty, 0.0, error)
    lowest = torch.where(empty, torch.inf, values[..., 0])
    largest = torch.where(empty, -torch.inf, values[..., -1])
    return ExtremeEigenvalues(*(torch.where(bad, torch.nan, t) for t in (lowest, largest, error)))


def _lanczos(
    apply: LinearMap, project: LinearMap, like: Tensor, steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """T (..., steps, steps), the last β (...), and where the range is {0} (...)."""
    start = _start(like)
    v = project(start)
    size = norm(v)
    empty = size <= torch.finfo(like.dtype).eps ** EMPTY_POWER * norm(start)
    active = ~empty
    v = torch.where(active, v / size, 0.0)
    V = like.new_zeros(*like.shape[:-1], steps, like.shape[-1])
    T = like.new_zeros(*like.shape[:-1], steps, steps)
    first = beta = largest = torch.zeros_like(size)
    for k in range(steps):
        V[..., k, :] = v
        w, parts = without(project(apply(v)), V[..., : k + 1, :])
        alpha = parts[..., -1:]
        first = alpha if k == 0 else first
        # An ended item's rows of T repeat its first Rayleigh quotient, which is no extreme.
        T[..., k, k] = torch.where(active, alpha, first).squeeze(-1)
        if k > 0:
            T[..., k, k - 1] = T[..., k - 1, k] = beta.squeeze(-1)
        w, _ = without(project(w), V[..., : k + 1, :])
        beta = norm(w)
        largest = torch.maximum(largest, alpha.abs() + beta)
        active = active & ~(beta <= _roundoff(like) * largest)
        beta = torch.where(active, beta, 0.0)
        v = torch.where(active, w / beta, 0.0)
    return T, beta.squeeze(-1), empty.squeeze(-1)


def _start(like: Tensor) -> Tensor:
    # The same for all items, so that an item's figures do not depend on its place in the batch.
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(like.shape[-1], generator=generator, dtype=torch.float64)
    return start.to(like).expand(like.shape).contiguous()


def _roundoff(like: Tensor) -> float:
    return float(ROUNDINGS * torch.finfo(like.dtype).eps * like.shape[-1] ** 0.5)
