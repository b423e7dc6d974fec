"""Matrix-free solution of A x = b for symmetric A, batched: conjugate gradients and minimal residuals.

`apply` maps v (..., m) to A v, for each leading item its own A. Every solver of this package runs in
cycles of iterative refinement: a cycle solves A d = r/‖r‖ for the residual r = b − A x of the last,
started at x = 0, and x ← x + ‖r‖ d is kept where it lowers ‖r‖. The recurrences of a cycle drift from
the true residual by rounding; the next cycle starts from the true one. An item ends when ‖r‖/‖b‖ is
within the tolerance, when a cycle no longer lowers it, or at its limit of iterations; it then takes
steps of length zero until the others end, so that no item's figures depend on its neighbours.

Conjugate gradients after Hestenes and Stiefel, *Methods of Conjugate Gradients for Solving Linear
Systems* (1952), for A = Aᵀ ⪰ 0 and b in its range.

Minimal residuals, for A indefinite or singular: the Lanczos process with starting vector b builds
T = VᵀAV tridiagonal; plane rotations reduce T to upper triangular form as it grows, and x minimises
‖b − A x‖ over the Krylov space (for a preconditioner M: ‖·‖_M over M times the space). Paige and
Saunders, *Solution of Sparse Indefinite Systems of Linear Equations* (1975); notation of Choi, Paige and
Saunders, *MINRES-QLP* (2011). Where A is singular and b in its range, so is each x: the solution is the
one of minimum norm (of minimum ‖·‖ in M⁻¹ with a preconditioner). Where b is outside of the range x is a
minimiser of the residual, which is then not small, but not the shortest one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LinearMap = Callable[[Tensor], Tensor]

#: Iterations between two looks at whether any item goes on, where a look waits for the device.
DEVICE_CHECK_INTERVAL = 8

#: Default tolerances on ‖b − A x‖/‖b‖. Rounding lets a general b reach them at condition numbers up to
#: 1e4 (double) and 10 (single); beyond, an item ends at what it does reach, some eps ‖A‖ ‖x‖/‖b‖.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-6}

#: A later cycle that leaves more of the residual than this is not kept, and is an item's last.
WORTHWHILE = 0.9

#: A recurrence is let fall this much below the tolerance, for the true residual to be within it.
MARGIN = 0.5


#: The first cycle ends at ‖A r‖ ≤ FLATNESS √eps ‖A‖ ‖r‖. Where b is not in A's range, r then is the
#: part outside of it, ‖r‖ is least to rounding, and further steps only add of A's null space to x.
#: Where it is, r is left along eigenvectors of small eigenvalues, and later cycles bring it down.
FLATNESS = 4

#: A later cycle ends at ‖r‖ ≤ GROWTH eps ‖A‖ ‖x‖: the rounding of A x is all that is left of r.
GROWTH = 8


@dataclass(frozen=True)
class KrylovSolution:
    """x (..., m), and by item (...): the true ‖b − A x‖/‖b‖, iterations, and what CG met.

    `residual` is recomputed from x, 0 where b = 0, NaN (with x) where b or A v holds NaN or infinity.
    `negative_curvature`: conjugate gradients met a direction with pᵀAp ≤ 0 to working precision and
    stopped; always False from the others, which do not look.
    """

    x: Tensor
    residual: Tensor
    iterations: Tensor
    negative_curvature: Tensor


@dataclass(frozen=True)
class Stopping:
    """When an item ends: tolerance on the relative residual, iterations, and stagnation.

    An item is stagnant whose residual did not halve over `window` iterations.
    """

    tolerance: float
    max_iterations: int
    window: int

    @classmethod
    def choose(cls, right: Tensor, tolerance: float | None, max_iterations: int | None) -> Stopping:
        """The user's figures, or by default `TOLERANCES` and 10 m within [100, 10 000]."""
        m = right.shape[-1]
        if tolerance is None:
            tolerance = TOLERANCES.get(right.dtype, 8 * torch.finfo(right.dtype).eps)
        if max_iterations is None:
            max_iterations = min(max(10 * m, 100), 10_000)
        return cls(tolerance, max_iterations, window=min(max(5 * m, 50), 5_000))


class Progress:
    """Which items still iterate, (..., 1): a frozen one takes steps of length zero.

    `active` may be narrowed by the cycle between two steps; `iterations` is counted in place.
    `before`: steps of the cycles so far, which no item can have made more of. `first_cycle`: there was
    none, and the residual to reduce is b itself, not what another cycle left.
    """

    def __init__(
        self,
        active: Tensor,
        iterations: Tensor,
        target: Tensor,
        stopping: Stopping,
        before: int,
    ):
        self.active = active.clone()
        self.iterations = iterations
        self.first_cycle = before == 0
        self.steps = 0
        self._before = before
        self._target = target
        self._stopping = stopping
        self._best = torch.ones_like(target)
        self._mark = self._best.clone()
        self._interval = 1 if active.device.type == "cpu" else DEVICE_CHECK_INTERVAL

    def finish_step(self, size: Tensor) -> bool:
        """Count a step that left residuals of `size` times the cycle's first; True to end."""
        self.steps += 1
        self.iterations += self.active
        self.active &= size > self._target
        if self._before + self.steps >= self._stopping.max_iterations:
            self.active &= self.iterations < self._stopping.max_iterations
        torch.minimum(self._best, size, out=self._best)
        if self.steps % self._stopping.window == 0:
            self.active &= self._best < 0.5 * self._mark
            self._mark.copy_(self._best)
        return self.steps % self._interval == 0 and not bool(self.active.any())


#: Solves A d = r for unit r, which it may overwrite: (r, progress) ↦ d and the items (..., 1) that
#: no further cycle can improve.
Cycle = Callable[[Tensor, Progress], tuple[Tensor, Tensor]]


def conjugate_gradient(
    apply: LinearMap,
    right: Tensor,
    *,
    preconditioner: LinearMap | None = None,
    tolerance: float | None = None,
    max_iterations: int | None = None,
    inside: LinearMap | None = None,
    working: torch.dtype | None = None,
) -> KrylovSolution:
    """x (..., m) with A x = `right` for symmetric positive semidefinite A, `right` in its range.

    `preconditioner` applies a symmetric positive definite approximation of A⁻¹. `inside` is a quicker
    `apply`, which the iteration uses; the residual that is reported, and refined, is `apply`'s. With
    `working` a narrower dtype than `right`'s, `inside` and `preconditioner` are applied to vectors of
    that one.
    """
    stopping = Stopping.choose(right, tolerance, max_iterations)
    return _in_cycles(
        _conjugate_gradient_cycle, apply, right, stopping, preconditioner, inside, working
    )


def _conjugate_gradient_cycle(
    apply: LinearMap, precondition: LinearMap | None, r: Tensor, progress: Progress
) -> tuple[Tensor, Tensor]:
    x = torch.zeros_like(r)
    z = r if precondition is None else precondition(r)
    p, rz = z.clone(), inner(r, z)
    # pᵀAp/pᵀM⁻¹p, M the preconditioner, is a Rayleigh quotient of M A; pᵀM⁻¹p needs no product
    # with a vector, since r is orthogonal to the last direction: (pᵀM⁻¹p)₊ = (rᵀz)₊ + β² pᵀM⁻¹p.
    pp, zero = rz, torch.zeros_like(rz)
    largest, rounding = zero, torch.full_like(rz, torch.finfo(r.dtype).eps)
    flat = torch.zeros_like(progress.active)
    finished = False
    while not finished:
        Ap = apply(p)
        pAp = inner(p, Ap)
        quotient = pAp / pp
        largest = torch.maximum(largest, quotient)
        bad = quotient <= rounding * largest
        flat |= progress.active & bad
        progress.active = progress.active > bad  # active and not bad
        step = torch.where(progress.active, rz / pAp, zero)
        x.addcmul_(p, step)
        r.addcmul_(Ap, step, value=-1)
        size = norm(r)
        finished = progress.finish_step(size)
        if precondition is None:
            rz_next = size.square()
        else:
            z = precondition(r)
            rz_next = inner(r, z)
        beta = torch.where(progress.active, rz_next / rz, zero)
        p = torch.addcmul(z, p, beta)
        pp = torch.addcmul(rz_next, beta * beta, pp)
        rz = rz_next
    return x, flat


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
    stopping = Stopping.choose(right, tolerance, max_iterations)
    return _in_cycles(_minres_cycle, apply, right, stopping, preconditioner, inside, working)


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


def _in_cycles(
    cycle: Callable[[LinearMap, LinearMap | None, Tensor, Progress], tuple[Tensor, Tensor]],
    apply: LinearMap,
    right: Tensor,
    stopping: Stopping,
    preconditioner: LinearMap | None,
    inside: LinearMap | None,
    working: torch.dtype | None,
) -> KrylovSolution:
    precondition = None if preconditioner is None else operator(preconditioner)
    quick = operator(apply if inside is None else inside)
    return refine(
        lambda r, progress: cycle(quick, precondition, r, progress), apply, right, stopping, working
    )


def refine(
    cycle: Cycle,
    apply: LinearMap,
    right: Tensor,
    stopping: Stopping,
    working: torch.dtype | None = None,
) -> KrylovSolution:
    """Repeat cycles for each item until it ends; cycles in `working`, residuals in `right`'s dtype."""
    right = right.detach()
    working = right.dtype if working is None else working
    # What a cycle in a narrower dtype cannot reach, the next one starts from.
    least = 8 * TOLERANCES[working] if working != right.dtype else 0.0
    if right.numel() == 0:
        none = torch.zeros(right.shape[:-1], dtype=torch.bool, device=right.device)
        return KrylovSolution(right.clone(), none.to(right.dtype), none.long(), none)
    # Small and large right-hand sides would lose their squares to underflow and overflow.
    scale = right.abs().amax(-1, keepdim=True)
    solvable = scale.isfinite() & (scale > 0)
    b = torch.where(solvable, right / scale, 0.0)
    size = torch.where(solvable, norm(b), 1.0)
    b /= size
    x, r, residual = torch.zeros_like(b), b, solvable.to(b.dtype)
    iterations = torch.zeros_like(scale, dtype=torch.long)
    active, stuck = solvable, torch.zeros_like(solvable)
    first, steps = True, 0
    while first or bool(active.any()):
        length = torch.where(residual > 0, residual, 1.0)
        target = (MARGIN * stopping.tolerance / length).clamp_(min=least)
        progress = Progress(active, iterations, target, stopping, steps)
        step, hopeless = cycle((r / length).to(working), progress)
        steps += progress.steps
        stuck |= hopeless
        candidate = torch.addcmul(x, step.to(x.dtype), length)
        r_next = b - operator(apply)(candidate)
        next_residual = norm(r_next)
        # The first cycle's NaN is let pass: it comes of an operator that holds NaN itself.
        worth_it = ~(next_residual > residual) if first else next_residual <= WORTHWHILE * residual
        x, r = torch.where(worth_it, candidate, x), torch.where(worth_it, r_next, r)
        active = active & worth_it & (next_residual <= WORTHWHILE * residual) & ~stuck
        residual = torch.where(worth_it, next_residual, residual)
        active = active & (residual > stopping.tolerance) & (iterations < stopping.max_iterations)
        first = False
    good = scale.isfinite() & residual.isfinite()
    return KrylovSolution(
        x=torch.where(good, x * scale * size, torch.nan),
        residual=torch.where(good, residual, torch.nan).squeeze(-1),
        iterations=iterations.squeeze(-1),
        negative_curvature=stuck.squeeze(-1),
    )


def operator(apply: LinearMap) -> LinearMap:
    """`apply` without its graph, its answers' shape checked."""

    def checked(v: Tensor) -> Tensor:
        image = apply(v).detach()
        if image.shape != v.shape:
            raise ValueError(
                f"apply maps a tensor of shape {tuple(v.shape)} to one of shape "
                f"{tuple(image.shape)}; a Krylov method needs the same shape back."
            )
        return image

    return checked


def inner(a: Tensor, b: Tensor) -> Tensor:
    """aᵀb by item, (..., 1)."""
    # Several times faster than a batched matrix product where items are many, never much slower.
    return (a * b).sum(-1, keepdim=True)


def norm(a: Tensor) -> Tensor:
    """‖a‖ by item, (..., 1)."""
    return torch.linalg.vector_norm(a, dim=-1, keepdim=True)
