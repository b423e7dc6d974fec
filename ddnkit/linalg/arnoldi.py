"""Restarted GMRES: A x = b for A that need not be symmetric, without its matrix.

The Arnoldi process from r = b − A x builds an orthonormal basis V of the Krylov space with A V_k =
V_{k+1} H, H (k+1)×k upper Hessenberg; x moves by V_k y with y = argmin ‖ ‖r‖ e₁ − H y ‖. After
`restart` vectors the basis is dropped and built anew. Saad and Schultz, *GMRES* (1986).

The least residual is known before y is: it is ‖r‖ |u₁|/‖u‖ for the u with uᵀH = 0, of which each
column of H gives one more entry, u_{k+1} = −Σᵢ uᵢ hᵢₖ / h_{k+1,k} with u₁ = 1. A system of the form
I − Tᵀ with ‖T‖ < 1 converges from any restart; an indefinite one may stand still.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .krylov import KrylovSolution, LinearMap, Progress, Stopping, norm, operator, refine

#: h_{k+1,k} ≤ this many roundings of ‖A v_k‖: the Krylov space is invariant.
ROUNDINGS = 16


def gmres(
    apply: LinearMap,
    right: Tensor,
    *,
    tolerance: float | None = None,
    max_iterations: int | None = None,
    restart: int = 40,
) -> KrylovSolution:
    """x (..., m) with A x = `right` for regular A, in the memory of `restart` vectors."""
    restart = min(restart, max(right.shape[-1], 1))

    def cycle(r: Tensor, progress: Progress) -> tuple[Tensor, Tensor]:
        return _gmres_cycle(operator(apply), restart, r, progress)

    return refine(cycle, apply, right, Stopping.choose(right, tolerance, max_iterations))


def _gmres_cycle(
    apply: LinearMap, restart: int, r: Tensor, progress: Progress
) -> tuple[Tensor, Tensor]:
    rounding = ROUNDINGS * torch.finfo(r.dtype).eps
    V = r.new_empty(*r.shape[:-1], restart + 1, r.shape[-1])
    H = r.new_zeros(*r.shape[:-1], restart + 1, restart)
    u = r.new_zeros(*r.shape[:-1], restart + 1)
    V[..., 0, :], u[..., 0] = r, 1
    for k in range(restart):
        Av = apply(V[..., k, :])
        # Classical Gram-Schmidt, twice over, which is orthogonal to rounding.
        w, first = without(Av, V[..., : k + 1, :])
        w, second = without(w, V[..., : k + 1, :])
        h = first + second
        h_next = norm(w)
        extends = progress.active & (h_next > rounding * norm(Av))
        V[..., k + 1, :] = w * torch.where(extends, 1 / h_next, 0.0)
        # A frozen item's columns become those of the identity: it has y = 0 in them.
        H[..., : k + 1, k] = torch.where(progress.active, h, 0.0)
        H[..., k + 1, k] = torch.where(progress.active, h_next, 1.0).squeeze(-1)
        u_next = -(u[..., : k + 1] * h).sum(-1, keepdim=True) / h_next
        u[..., k + 1] = torch.where(extends, u_next, 0.0).squeeze(-1)
        size = torch.where(extends, 1 / norm(u), 0.0)
        if progress.finish_step(size):
            break
    return _combine(V, H[..., : k + 2, : k + 1]), torch.zeros_like(progress.active)


def without(w: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """w (..., m) less its parts along the rows of `basis` (..., k, m), and those parts (..., k)."""
    parts = (basis @ w.unsqueeze(-1)).squeeze(-1)
    return w - (parts.unsqueeze(-2) @ basis).squeeze(-2), parts


def _combine(V: Tensor, H: Tensor) -> Tensor:
    # y = argmin ‖e₁ − H y‖ by H = Q R. H is unreduced up to its last column, so that where A is
    # singular R's last pivot alone can vanish; that direction is left out.
    Q, R = torch.linalg.qr(H)
    pivots = R.diagonal(dim1=-2, dim2=-1)
    sizes = pivots.abs()
    vanishing = sizes <= ROUNDINGS * torch.finfo(H.dtype).eps * sizes.amax(-1, keepdim=True)
    pivots.masked_fill_(vanishing, 1.0)
    coordinates = torch.where(vanishing, 0.0, Q[..., 0, :])
    y = torch.linalg.solve_triangular(R, coordinates.unsqueeze(-1), upper=True)
    return (y.mT @ V[..., : y.shape[-2], :]).squeeze(-2)
