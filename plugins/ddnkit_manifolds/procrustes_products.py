"""The Procrustes problem by matrix products, for a GPU: no eigenvectors, no wait for the device.

U = A Z with Z = (AᵀA)^{-1/2} in float64 (`ddnkit.linalg.inverse_square_root`), in a number of steps that
is known beforehand: A is scaled by an upper bound of its largest singular value, at most C^{1/8} too
large, so that every singular value of a full rank, t = eps₃₂ d relative to the largest or more, lies in
[t C^{-1/8}, 1]. One step of Newton–Schulz on U itself, U ← U (I − E/2), E = UᵀU − I, then takes the
square of what is left. With Z symmetric and positive, UᵀU = I is all that makes U the polar factor: an
item of which ‖E‖ is too large for its square to vanish ends as MAX_ITERATIONS, and its feasibility
shows it.

Rank. A Cholesky factorisation of AᵀA − (tσ)² I that breaks down tells on the device that a singular
value is below tσ (σ: a lower bound of the largest, C^{-1/8} of it or more). Such an item is replaced by
B = A + ησR, η = 0.1, where P̂ is the preferred point, scaled to ‖P̂‖_F = √C, and

    R = (I − P_r P_rᵀ) P̂ V_0 V_0ᵀ   with soft projectors, for W = (AᵀA + τ²I)⁻¹ and τ = tσ/2,
    V_0 V_0ᵀ ≈ N⁴, N = τ² W,      I − P_r P_rᵀ ≈ (I − A W Aᵀ)⁴.

In the direction of a singular value s both are (τ²/(s² + τ²))⁴. With sharp projectors polar(B) is the
exact completion (`procrustes.complete`), whatever η: R and A share neither columns nor rows. What the
soft ones cost, for singular values relative to σ:

* where s is well kept, η (τ/s)⁸/s: less than 1e-6 from s = 10 τ on;
* in the null directions ν/(η t_j), with ν ≈ 1e-7 for the rounding of A that stands there instead of
  zero, and t_j the singular values of R: about 1e-6, more where P̂ says next to nothing;
* an s within about a factor 2 of τ is neither kept nor dropped, as whatever is below the threshold in
  any case; the objective loses less than s by it.

Items of full rank are not changed. Where P̂ says nothing in a null direction, B is deficient as well:
U is then no frame there, and status, feasibility and with them the certificate say so.

Gradient. Z serves as S⁻¹, and the Sylvester equation is solved by products too
(`ddnkit.linalg.skew_sylvester`), with a bound of the singular values from ‖Z⁴‖_F^{1/4} ≥ 1/s_min. An
item of deficient rank has no gradient: its `uniqueness` is 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddnkit import Solution, Status
from ddnkit.linalg import (
    gram,
    inverse_square_root,
    largest_eigenvalue_bounds,
    odd_quintics,
    positive_inverse,
)

#: η: large beside the rounding of A.
_COMPLETION = 0.1


def least_ratio(d: int, C: int) -> float:
    """Least singular value over the upper bound of the largest, of a rank that counts as full.

    Less another C^{-1/8} for the bound of the least one.
    """
    return _threshold(d) * C**-0.25


def solution(target: Tensor, preferred: Tensor | None, solver: str) -> Solution:
    """polar(A) of each item of ``target``, (B, d, C) in float32, with what the adjoint needs.

    Args:
        preferred: (B, d, C), the point that a rank-deficient item is completed to be near to; None
            takes an arbitrary, fixed one.
    """
    d, C = target.shape[-2:]
    A, finite, size = _to_unit_size(target)
    deficient, first = _complete(A, _arbitrary(target) if preferred is None else preferred)
    G, square, _, second = _scale(A)
    size = size * first * second
    least = _threshold(d) * C**-0.125
    Z = inverse_square_root(G, least, square)
    del square
    U = A @ Z
    del A
    E = gram(U)
    E.diagonal(dim1=-2, dim2=-1).sub_(1)
    # Its square, which is what is left, is then below the rounding of the input.
    good = torch.linalg.matrix_norm(E) <= (C * torch.finfo(target.dtype).eps) ** 0.5
    U = torch.baddbmm(U, U, E, alpha=-0.5).to(target.dtype)
    S = G @ Z
    bounds = _bounds(Z, square=d == C)
    unique = _relative_curvature(bounds, square=d == C > 1)
    status = torch.where(good, int(Status.CONVERGED), int(Status.MAX_ITERATIONS))
    status = torch.where(finite, status, int(Status.NON_FINITE))
    aux = {
        "symmetric": (S + S.mT).mul_(_per_matrix(size / 2)),
        "inverse": Z / _per_matrix(size),
        "bounds": bounds * size.unsqueeze(-1),
    }
    return Solution(
        U.masked_fill_(_per_matrix(~finite), torch.nan),
        status,
        torch.full_like(status, len(odd_quintics(least))),
        solver,
        aux,
        uniqueness=torch.where(deficient, 0.0, unique).to(target.dtype),
    )


def _threshold(d: int) -> float:
    return min(torch.finfo(torch.float32).eps * d, 0.1)


def _to_unit_size(target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A in float64 and of largest entry 1, which items are finite, and what A was divided by."""
    largest = torch.linalg.vector_norm(target, torch.inf, dim=(-2, -1))
    finite = largest.isfinite()
    size = _positive(torch.where(finite, largest, 1.0).to(torch.float64))
    return target.to(torch.float64).div_(_per_matrix(size)), finite, size


def _scale(A: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Divides A by a bound b of its norm, in place: AᵀA, its square, a lower bound of its norm, and b."""
    G = gram(A)
    square = G @ G
    lower, upper = largest_eigenvalue_bounds(G, square)
    upper = _positive(upper)
    matrix = _per_matrix(upper)
    A.div_(matrix.sqrt())
    return G.div_(matrix), square.div_(matrix.square()), _positive(lower / upper), upper.sqrt()


def _complete(A: Tensor, preferred: Tensor) -> tuple[Tensor, Tensor]:
    """Scales A and makes it B where its rank is deficient, in place: where (B,), and the scale (B,)."""
    d = A.shape[-2]
    G, _, largest, scale = _scale(A)
    threshold = _per_matrix(_threshold(d) ** 2 * largest)
    info = torch.linalg.cholesky_ex(_shift_diagonal(G, -threshold), check_errors=False).info
    deficient = info > 0
    soft = _per_matrix(_softness(d) ** 2 * largest)
    R = _remainder(A, G, soft, preferred).masked_fill_(_per_matrix(~deficient), 0.0)
    A.add_(R, alpha=_COMPLETION)
    return deficient, scale


def _softness(d: int) -> float:
    # No less than what AᵀA + τ²I can be inverted for.
    return max(_threshold(d) / 2, 1e-5)


def _remainder(A: Tensor, G: Tensor, soft: Tensor, preferred: Tensor) -> Tensor:
    """R of the module's text, for τ² = ``soft``."""
    W = positive_inverse(_shift_diagonal(G, soft))
    N = soft * W
    square = N @ N
    size = torch.linalg.vector_norm(preferred, dim=(-2, -1)) / preferred.shape[-1] ** 0.5
    R = (preferred / _per_matrix(_positive(size))).to(A.dtype) @ (square @ square)
    # (I − AWAᵀ)⁴ = I − A W (I + N)(I + N²) Aᵀ
    W = torch.baddbmm(W, W, N)
    W = torch.baddbmm(W, W, square)
    return R.baddbmm_(A, W @ (A.mT @ R), alpha=-1)


def _bounds(Z: Tensor, *, square: bool) -> Tensor:
    """Below the least singular value, below the second least, and above the largest, which is 1."""
    fourth = _square(_square(Z))
    least = torch.linalg.matrix_norm(fourth).pow(-0.25)
    second = least
    if square:
        # Z without one direction q: its largest eigenvalue is at least Z's second, whatever q is, and
        # near to it for a q near the first eigenvector, as the largest column of Z⁴ is.
        index = fourth.diagonal(dim1=-2, dim2=-1).argmax(dim=-1)
        q = fourth.gather(-1, index[:, None, None].expand(*fourth.shape[:-1], 1))
        q = q / torch.linalg.vector_norm(q, dim=-2, keepdim=True)
        without = torch.eye(Z.shape[-1], dtype=Z.dtype, device=Z.device) - q * q.mT
        rest = _square(_square(without @ Z @ without))
        second = torch.linalg.matrix_norm(rest).pow(-0.25)
    return torch.stack((least, torch.maximum(least, second), torch.ones_like(least)), dim=-1)


def _relative_curvature(bounds: Tensor, *, square: bool) -> Tensor:
    """As `procrustes.relative_curvature`, from bounds: never more than it is."""
    least = (bounds[..., 0] + bounds[..., 1]) / 2 if square else bounds[..., 0]
    return least / bounds[..., -1]


def _arbitrary(target: Tensor) -> Tensor:
    """A fixed matrix (d, C) without structure, for a node without a preferred point."""
    d, C = target.shape[-2:]
    entry = torch.arange(d * C, device=target.device, dtype=torch.float64).reshape(d, C)
    return torch.sin(entry.square() * 2**0.5).to(target.dtype).expand_as(target)


def _shift_diagonal(G: Tensor, shift: Tensor) -> Tensor:
    shifted = G.clone()
    shifted.diagonal(dim1=-2, dim2=-1).add_(shift.squeeze(-1))
    return shifted


def _square(M: Tensor) -> Tensor:
    return M @ M


def _positive(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 1.0)


def _per_matrix(x: Tensor) -> Tensor:
    return x[:, None, None]
