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
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


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
    """∂ℓ/∂A for V = ∂ℓ/∂U, both (..., d, C). O(dC² + C³) time, O(dC) memory."""
    Q, s = right_vectors, singular_values
    T = U.mT @ V
    X = Q.mT @ (T - T.mT) @ Q
    X /= s.unsqueeze(-1) + s.unsqueeze(-2)
    X = Q @ X @ Q.mT
    S_inverse = (Q / s.unsqueeze(-2)) @ Q.mT
    # U X + (V − U T) S⁻¹, with the products of d×C matrices gathered into two.
    gradient = V @ S_inverse
    gradient += U @ (X - T @ S_inverse)
    return gradient
