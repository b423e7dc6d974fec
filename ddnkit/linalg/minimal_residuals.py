"""Minimal residuals: A x = b for symmetric A, indefinite or singular, without A's matrix.

The Lanczos process with starting vector b builds T = VᵀAV tridiagonal; plane rotations reduce T to
upper triangular form as it grows, and x minimises ‖b − A x‖ over the Krylov space (for a
preconditioner M: ‖·‖_M over M times the space). Paige and Saunders, *Solution of Sparse Indefinite
Systems of Linear Equations* (1975); notation of Choi, Paige and Saunders, *MINRES-QLP* (2011).

Where A is singular and b in its range, so is each x: the solution is the one of minimum norm (of
minimum ‖·‖ in M⁻¹ with a preconditioner). Where b is outside of the range x is a minimiser of the
residual, which is then not small, but not the shortest one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .krylov import KrylovSolution, LinearMap, Progress, Stopping, inner, norm, operator, refine

#: The first cycle ends at ‖A r‖ ≤ FLATNESS √eps ‖A‖ ‖r‖. Where b is not in A's range, r then is the
#: part outside of it, ‖r‖ is least to rounding, and further steps only add of A's null space to x.
#: Where it is, r is left along eigenvectors of small eigenvalues, and later cycles bring it down.
FLATNESS = 4

#: A later cycle ends at ‖r‖ ≤ GROWTH eps ‖A‖ ‖x‖: the rounding of A x is all that is left of r.
GROWTH = 8


def minres(
    apply: LinearMap,
    right: Tensor,
    *,
    preconditioner: LinearMap | None = None,
    tolerance: float | None = None,
    max_iterations: int | None = None,
    inside: LinearMap | None = None,
    working: torch.dtype | None = None,
) -> KrylovSolution:
    """x (..., m) with A x = `right` for symmetric A, or with the least ‖`right` − A x‖.

    `preconditioner` applies a symmetric positive definite approximation of |A|⁻¹; `inside` and
    `working` are those of `conjugate_gradient`.
    """
    precondition = None if preconditioner is None else operator(preconditioner)
    quick = operator(apply if inside is None else inside)

    def cycle(r: Tensor, progress: Progress) -> tuple[Tensor, Tensor]:
        return _minres_cycle(quick, precondition, r, progress)

    stopping = Stopping.choose(right, tolerance, max_iterations)
    return refine(cycle, apply, right, stopping, working)


def _minres_cycle(
    apply: LinearMap, precondition: LinearMap | None, r: Tensor, progress: Progress
) -> tuple[Tensor, Tensor]:
    x, w, w_last = torch.zeros_like(r), torch.zeros_like(r), torch.zeros_like(r)
    u_last, u = torch.zeros_like(r), r
    z = u if precondition is None else precondition(u)
    start = beta = inner(u, z).sqrt()
    zero = torch.zeros_like(beta)
    inverse_last = largest = delta_bar = epsilon = sine = zero
    cosine, remaining = zero - 1, zero + 1
    rounding = torch.finfo(r.dtype).eps
    flatness = torch.full_like(beta, FLATNESS * rounding**0.5)
    growth = GROWTH * rounding / beta
    finished = False
    while not finished:
        # Lanczos: β₊ v₊ = A v − α v − β v_last in the inner product of M, with u = M⁻¹ β v.
        inverse = torch.where(progress.active, beta.reciprocal(), zero)
        v = z * inverse
        Av = apply(v)
        alpha = inner(v, Av)
        u_next = torch.addcmul(Av, u_last, beta * inverse_last, value=-1)
        u_next.addcmul_(u, alpha * inverse, value=-1)
        u_last, u, inverse_last = u, u_next, inverse
        z = u if precondition is None else precondition(u)
        beta = inner(u, z).clamp_(min=0).sqrt_()
        # The column (β, α, β₊) of T under the last two rotations becomes (ε, δ, γ̄, β₊) …
        delta = cosine * delta_bar + sine * alpha
        gamma_bar = sine * delta_bar - cosine * alpha
        w_factor, epsilon, delta_bar = epsilon, sine * beta, -cosine * beta
        # … and ‖A r‖ = ‖r‖ ‖(γ̄, δ̄₊)‖ for the residual r so far.
        largest = torch.maximum(largest, alpha.abs() + beta)
        if progress.first_cycle:
            goes_on = torch.hypot(gamma_bar, delta_bar) > flatness * largest
        else:
            goes_on = remaining > growth * largest * norm(x)
        progress.active = progress.active & goes_on
        # A new rotation turns (γ̄, β₊) into (γ, 0); w = (v − δ w_last − ε w_before)/γ.
        gamma = torch.hypot(gamma_bar, beta)
        inverse_gamma = torch.where(progress.active, gamma.reciprocal(), zero)
        cosine, sine = gamma_bar * inverse_gamma, beta * inverse_gamma
        w_last.mul_(w_factor * inverse_gamma).addcmul_(w, delta * inverse_gamma).neg_()
        w_last.addcmul_(v, inverse_gamma)
        w, w_last = w_last, w
        x.addcmul_(w, cosine * remaining)
        remaining = sine * remaining
        finished = progress.finish_step(remaining)
    return x.mul_(start), torch.zeros_like(progress.active)
