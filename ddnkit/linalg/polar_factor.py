"""The polar factor of a tall matrix, and the derivative of it that stays finite at equal singular values.

A = U S with UᵀU = I and S = (AᵀA)^{1/2} symmetric positive definite; U is the point of the Stiefel
manifold that maximises ⟨A, U⟩ (orthogonal Procrustes).

Derivative. From dA = dU S + U dS with UᵀdU skew and dS symmetric: Ω = UᵀdU solves the Sylvester
equation S Ω + Ω S = UᵀdA − dAᵀU, and dU = U Ω + (I − UUᵀ) dA S⁻¹. Transposing this linear map, for an
incoming gradient V and T = UᵀV:

    S X + X S = T − Tᵀ  (X skew),      ∂ℓ/∂A = U X + (V − U T) S⁻¹.

With S = Q diag(s) Qᵀ the Sylvester equation divides by sᵢ + sⱼ. Differentiating an SVD divides by
sᵢ² − sⱼ² instead, which is 0/0 exactly where neural collapse leads: all singular values equal.
Checked against PROBLEMS 13 and *Guiding Neural Collapse*, Proposition 1.

In singular vectors, A = P diag(s) Qᵀ and U = P Qᵀ. With V̂ = V Q and T̂ = PᵀV̂ = QᵀTQ the solution is
X = Q X̂ Qᵀ, X̂ᵢⱼ = (T̂ᵢⱼ − T̂ⱼᵢ)/(sᵢ + sⱼ), and

    ∂ℓ/∂A = (V̂ diag(1/s) + P Ŷ) Qᵀ,      Ŷ = X̂ − T̂ diag(1/s):

four products of the size of A and none of the size of S. With U in place of P it is

    ∂ℓ/∂A = V S⁻¹ − U Q M̂ Qᵀ,      M̂ᵢⱼ = (T̃ᵢⱼ + T̃ⱼᵢ) sᵢ/(sᵢ + sⱼ),   T̃ = T̂ diag(1/s),

three of the size of A and five of the size of S: less where A is tall, or small. Where d = C, (I − UUᵀ)
is zero, and so are the two terms with 1/s together; they are left out there, and a single s = 0 does no
harm.

Without singular vectors, S and S⁻¹ are enough for the formula above it, the Sylvester equation being
solved by products as well (`sylvester`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .items import product
from .sylvester import doublings_for, skew_sylvester

#: Columns from which on a product in float64 is felt beside one in float32.
_LARGE = 256


class PolarFactors(NamedTuple):
    """A = U Q diag(s) Qᵀ: U (..., d, C), Q = right_vectors (..., C, C), singular_values (..., C)."""

    U: Tensor
    right_vectors: Tensor
    singular_values: Tensor


def polar(A: Tensor) -> PolarFactors:
    """The polar factor of A, shape (..., d, C) with d ≥ C, by singular values, in A's dtype.

    U is orthonormal to rounding error for any A; where A is rank-deficient it is one of several.
    """
    left, s, right = torch.linalg.svd(A, full_matrices=False)
    return PolarFactors(left @ right, right.mT, s)


def symmetric_factors(U: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """(Q, s) of S = UᵀA, for a polar factor U that came without them."""
    S = U.mT @ A
    s, Q = torch.linalg.eigh((S + S.mT) / 2)
    return Q, s


def polar_adjoint(U: Tensor, right_vectors: Tensor, singular_values: Tensor, V: Tensor) -> Tensor:
    """∂ℓ/∂A for V = ∂ℓ/∂U, both (..., d, C), in U's dtype. O(dC²) time, O(dC) memory."""
    Q, s, V = (x.to(U.dtype) for x in (right_vectors, singular_values, V))
    # A product of small batches is half as dear where nothing has to be asked about their shapes.
    times = torch.bmm if U.dim() == V.dim() == Q.dim() == 3 else torch.matmul
    column, row = s.unsqueeze(-1), s.unsqueeze(-2)
    transposed, T, pairs = Q.mT, times(U.mT, V), column + row
    if U.shape[-2] == U.shape[-1]:
        # X̂ is zero there, whatever it is divided by.
        pairs.diagonal(dim1=-2, dim2=-1).fill_(1)
        T = times(times(transposed, T), Q)
        return times(U, times(times(Q, (T - T.mT) / pairs), transposed))
    scaled = Q / row
    T = times(times(transposed, T), scaled)
    within = times(times(Q, (T + T.mT) * (column / pairs)), transposed)
    gradient = times(V, times(scaled, transposed))
    if times is torch.bmm:
        return gradient.baddbmm_(U, within, alpha=-1)
    return gradient.sub_(times(U, within))


def polar_adjoint_by_vectors(
    left_vectors: Tensor, right_vectors: Tensor, singular_values: Tensor, V: Tensor
) -> Tensor:
    """The same from P = left_vectors (..., d, C), in their dtype; s may be in a wider one."""
    P, Q = left_vectors, right_vectors
    s = singular_values
    pairs = (s.unsqueeze(-1) + s.unsqueeze(-2)).to(P.dtype)
    # X̂ is zero there, whatever it is divided by.
    pairs.diagonal(dim1=-2, dim2=-1).fill_(1)
    inverse = s.reciprocal().to(P.dtype).unsqueeze(-2)
    gradient = product(V.to(P.dtype), Q)
    T = P.mT @ gradient
    X = T - T.mT
    X /= pairs
    if P.shape[-2] == P.shape[-1]:
        return P @ X @ Q.mT
    X.addcmul_(T, inverse, value=-1)
    gradient *= inverse
    return product(_plus_product(gradient, P, X), Q.mT)


def polar_adjoint_by_products(
    U: Tensor,
    S: Tensor,
    S_inverse: Tensor,
    bounds: tuple[Tensor, Tensor],
    V: Tensor,
    *,
    ratio: float,
) -> tuple[Tensor, Tensor]:
    """∂ℓ/∂A for V = ∂ℓ/∂U, both (..., d, C), without singular vectors; no device is waited for.

    Args:
        S, S_inverse: (..., C, C), in the dtype of V or a wider one.
        bounds: (...) each, below and above the singular values.
        ratio: what lower/upper bound is not less than, known before they are.

    Returns:
        the gradient in the `precision` for V, and the relative residual (...) of the Sylvester
        equation.
    """
    dtype = precision(V)
    U, V = U.to(dtype), V.to(dtype)
    T = U.mT @ V
    X, residual = skew_sylvester(S, T - T.mT, *bounds, doublings=doublings_for(ratio, dtype))
    if U.shape[-2] == U.shape[-1]:
        return U @ X, residual
    within = (X - T.to(S.dtype) @ S_inverse).to(dtype)
    return _plus_product(V @ S_inverse.to(dtype), U, within), residual


def precision(A: Tensor) -> torch.dtype:
    """What to compute products with A (..., d, C) in, where their rounding matters at all.

    float64 for narrow matrices, which cost next to nothing, else the dtype of A, float32 at least.
    """
    if A.shape[-1] < _LARGE:
        return torch.float64
    return torch.promote_types(A.dtype, torch.float32)


def _plus_product(total: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """total + A B, in the memory of ``total``."""
    if total.dim() == A.dim() == B.dim() == 3:
        return total.baddbmm_(A, B)
    return total.add_(A @ B)
