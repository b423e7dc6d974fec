"""The average gradient outer product by Gram matrix, in a time that does not grow with the outputs.

With G_c = diag(r_c) X − B_c Z, B_c = W diag(α_c), r_c = B_c 1, and R = Wα, so that R_ic = r_c,i, the sum
over c can be taken first:

    Σ_c G_cᵀG_c = Xᵀ diag(‖R_i‖²) X − Xᵀ P Z − Zᵀ Pᵀ X + Zᵀ S Z,
    P = Σ_c diag(r_c) B_c = W ∘ (R αᵀ),    S = Σ_c B_cᵀB_c = (WᵀW) ∘ (α αᵀ).

Half of S will do: Nn² + 2Nnd + n²d + 4Nd² + 2nd² operations for N samples and n centres. At a machine's own
centres, X = Z, W is symmetric too, and all is one symmetric matrix,

    Σ_c G_cᵀG_c = Zᵀ V Z,    V = diag(‖R_i‖²) + W² ∘ (α αᵀ) − W ∘ (R αᵀ + α Rᵀ),

n³ + n²d + 2nd² operations.

What cancels in G_c, x_i − z_j at a distance D relative to their norms, costs errors of ε/D by gradients, no
more than the rounding of the samples does, but ε/D² by Gram matrix. The Gram matrix is therefore given up
where its terms, before they cancel, are more than ε^(−1/3) times the trace of the sum, which leaves it an
error of about ε^(2/3): 4e-11 in float64, 2e-5 in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.linalg import vector_norm

from .blocks import FLOAT64_BYTES, fill_symmetric, row_blocks, triangle_blocks
from .kernels import RadialKernel

#: Bytes that a pair of samples takes: distances, W and P, or parts of V.
_PAIR_BYTES = 5 * FLOAT64_BYTES


def gram_operations(N: int, n: int, d: int, *, own: bool) -> int:
    """Of `gram_sum`, or of `own_gram_sum`, in the matrix products after W."""
    if own:
        return n**3 + n * n * d + 2 * n * d * d
    return N * n * n + 2 * N * n * d + n * n * d + 4 * N * d * d + 2 * n * d * d


def own_gram_sum(
    kernel: RadialKernel, Z: Tensor, coefficients: Tensor, memory: int
) -> Tensor | None:
    """Σ_c G_cᵀG_c ``(d, d)`` at the centres z; None where too much cancels, or `memory` does not hold W."""
    n, d = Z.shape
    left = memory - Z.element_size() * n * n
    if left < _PAIR_BYTES * n:
        return None
    centre = Z.mean(dim=0, dtype=torch.float64)
    blocks = list(triangle_blocks(n, _PAIR_BYTES * n, left, "V"))
    W = fill_symmetric(
        Z.new_empty(n, n), blocks, lambda rows, rest: kernel.slopes(Z[rows], Z[rest], centre)
    )
    z, R, half = Z - Z.mean(dim=0), W @ coefficients, Z.new_zeros(d, d)
    for block in blocks:
        rest, alpha = slice(block.start, None), coefficients[block]
        V = W[block] @ W[:, rest]
        V.mul_(alpha @ coefficients[rest].T)
        mixed = torch.addmm(R[block] @ coefficients[rest].T, alpha, R[rest].T)
        V.sub_(mixed.mul_(W[block, rest]))
        V.diagonal().add_(R[block].square().sum(dim=1))
        _add_half(half, z[block], V, z[rest])
    before = (vector_norm(R, dim=1) * vector_norm(z, dim=1)).square().sum()
    return _trusted(half + half.T, before + _size(vector_norm(W, dim=0), coefficients, z))


def gram_sum(
    kernel: RadialKernel, X: Tensor, Z: Tensor, coefficients: Tensor, memory: int
) -> Tensor | None:
    """Σ_c G_cᵀG_c ``(d, d)`` at samples x; None where too much cancels, or `memory` does not hold S."""
    n, d = Z.shape
    left = memory - X.element_size() * n * n
    if left < _PAIR_BYTES * n:
        return None
    centre = Z.mean(dim=0)
    z = Z - centre
    S, own, cross = X.new_zeros(n, n), X.new_zeros(d, d), X.new_zeros(d, d)
    triangle = list(triangle_blocks(n, _PAIR_BYTES * n, left, "S"))
    for block in row_blocks(len(X), _PAIR_BYTES * n, left, "W"):
        W, x = kernel.slopes(X[block], Z), X[block] - centre
        R = W @ coefficients
        for rows in triangle:
            S[rows, rows.start :].addmm_(W[:, rows].T, W[:, rows.start :])
        own.addmm_(x.T, R.square().sum(dim=1, keepdim=True) * x)
        cross.addmm_(x.T, (R @ coefficients.T).mul_(W) @ z)
    before = own.trace() + _size(S.diagonal().sqrt(), coefficients, z)
    half = -cross
    for rows in triangle:
        part = S[rows, rows.start :].mul_(coefficients[rows] @ coefficients[rows.start :].T)
        _add_half(half, z[rows], part, z[rows.start :])
    return _trusted(own + half + half.T, before)


def _add_half(half: Tensor, z: Tensor, part: Tensor, rest: Tensor) -> None:
    """Add to H, with H + Hᵀ = Zᵀ S Z, what rows of a symmetric S from its diagonal on contribute.

    Args:
        half: H ``(d, d)``.
        z: the samples of the rows ``(b, d)``.
        part: the rows ``(b, m)``; overwritten.
        rest: the samples of the columns ``(m, d)``, of which the first b are `z`.
    """
    part[:, : len(z)].div_(2)
    half.addmm_(z.T, part @ rest)


def _size(columns: Tensor, coefficients: Tensor, z: Tensor) -> Tensor:
    """The trace of Zᵀ S Z were no two of its terms to cancel, by the norms of W's columns."""
    norms = vector_norm(coefficients, dim=1) * vector_norm(z, dim=1)
    return (columns * norms).square().sum()


def _trusted(total: Tensor, before: Tensor) -> Tensor | None:
    """The sum, or None where its terms before they cancel say that its digits are few.

    Also None for NaN, of slopes whose squares overflow.
    """
    trusted = before <= torch.finfo(total.dtype).eps ** (-1 / 3) * total.trace()
    return total if bool(trusted) else None
