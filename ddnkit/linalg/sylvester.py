"""S X + X S = K for skew K, by matrix products: what the derivative of a polar factor asks for.

For any p > 0 the equation is (S + p) X (S + p) − (S − p) X (S − p) = 2p K. With W = (S + pI)⁻¹ and the
Cayley transform C = (S − pI) W = I − 2pW, whose eigenvalues (s − p)/(s + p) lie in (−1, 1),

    X = C X C + 2p W K W = Σ_k Cᵏ (2p W K W) Cᵏ,

and twice the terms cost three products (the squared Smith iteration):

    X ← X + C X C,    C ← C².

After J doublings the error in the component of sᵢ and sⱼ is (cᵢcⱼ)^(2^J). With p = √(s_min s_max) every
|c| is at most (√κ − 1)/(√κ + 1) < e^(−2/√κ), κ = s_max/s_min: J = log₂(√κ log(1/ε)/4) does for all.
Conjugate gradients, one product an iteration, would take some √κ log(1/ε) of them and the scalars
between. Rounding: a relative error ε in the powers of C is one of ε/(1 − cᵢcⱼ) < ε √κ/4 in X, where an
S that is rounded itself costs ε κ. W is therefore computed in the precision of S, the rest in that of K.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .kkt import relative


def skew_sylvester(
    S: Tensor, K: Tensor, least: Tensor, largest: Tensor, *, doublings: int
) -> tuple[Tensor, Tensor]:
    """X (..., C, C), skew, with S X + X S = K, and ‖S X + X S − K‖_F/‖K‖_F (...).

    No device is waited for. 3 products of C×C matrices a doubling, in the dtype of K.

    Args:
        S: symmetric positive definite, (..., C, C), in the dtype of K or a wider one.
        K: skew, (..., C, C).
        least, largest: bounds (...) of the eigenvalues of S.
        doublings: see `doublings_for`.
    """
    p = (least * largest).sqrt()[..., None, None]
    identity = torch.eye(S.shape[-1], dtype=S.dtype, device=S.device)
    W = positive_inverse(S + p * identity)
    C = (identity - 2 * p * W).to(K.dtype)
    W = ((2 * p).sqrt() * W).to(K.dtype)
    X = W @ K @ W
    for k in range(doublings):
        if k:
            C = C @ C
        X = X + C @ X @ C
    # Rounding leaves a symmetric part as well, and 1/2s enlarges it where a skew one has no entry.
    X = (X - X.mT) / 2
    product = S @ X.to(S.dtype)
    residual = product - product.mT - K
    size = torch.linalg.matrix_norm(K).to(S.dtype)
    return X, relative(torch.linalg.matrix_norm(residual), size).to(K.dtype)


def doublings_for(ratio: float, dtype: torch.dtype) -> int:
    """How many take the error below the rounding of ``dtype`` where least/largest ≥ ``ratio``."""
    terms = -math.log(torch.finfo(dtype).eps) / (4 * ratio**0.5)
    return max(math.ceil(math.log2(terms)), 1)


def positive_inverse(M: Tensor) -> Tensor:
    """M⁻¹ for symmetric positive definite M, (..., C, C), by Cholesky; no device is waited for.

    NaN or nonsense where M is not positive definite: for a caller that can tell.
    """
    L = torch.linalg.cholesky_ex(M, check_errors=False).L
    identity = torch.eye(M.shape[-1], dtype=M.dtype, device=M.device).expand_as(M)
    inverse = torch.linalg.solve_triangular(L, identity, upper=False)
    return inverse.mT @ inverse
