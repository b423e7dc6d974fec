"""The average gradient outer product (AGOP) of a kernel machine.

    M = (1/N) Σ_i Σ_c ∇f_c(x_i) ∇f_c(x_i)ᵀ,    f_c(x) = Σ_j α_jc k(x, z_j)

(*Average gradient outer product as a mechanism for deep neural collapse*, eq. 1 and Algorithm 1; equation 1
divides by N, Algorithm 1 does not. Layers of Deep RFM normalise afterwards, so that the difference matters
to cosine features alone.)

There are two ways to M for a kernel with gradient ∇_x k(x, z) = w(x, z)(x − z), W_ij = w(x_i, z_j).

By gradients (`gradient_sum`), whose rows ∇f_c(x_i) make up

    G_c = diag(B_c 1) X − B_c Z,    B_c = W diag(α_c),    M = (1/N) Σ_c G_cᵀG_c,

in 2NnCd + 2NCd² operations, for N samples, n centres, C outputs.

By Gram matrix (`gram_sum`, `own_gram_sum`), in a time that does not grow with C. With r_c = B_c 1 and
R = Wα, so that R_ic = r_c,i, the sum over c comes first:

    Σ_c G_cᵀG_c = Xᵀ diag(‖R_i‖²) X − Xᵀ P Z − Zᵀ Pᵀ X + Zᵀ S Z,
    P = Σ_c diag(r_c) B_c = W ∘ (R αᵀ),    S = Σ_c B_cᵀB_c = (WᵀW) ∘ (α αᵀ).

Half of S suffices: Nn² + 2Nnd + n²d + 4Nd² + 2nd² operations. At a machine's own centres, X = Z, W is
symmetric too, and all of it is one symmetric matrix, in n³ + n²d + 2nd² operations:

    Σ_c G_cᵀG_c = Zᵀ V Z,    V = diag(‖R_i‖²) + W² ∘ (α αᵀ) − W ∘ (R αᵀ + α Rᵀ).

Cancellation. For x_i − z_j at a distance D relative to their norms, the gradients lose digits to an error of
ε/D, no more than the rounding of the samples causes, but the Gram matrix to ε/D². It is therefore not used
where its terms, before they cancel, exceed ε^(−1/3) times the trace of the sum, which bounds its error by
about ε^(2/3): 4e-11 in float64, 2e-5 in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.linalg import vector_norm

from .blocks import FLOAT64_BYTES, allowed_memory, fill_symmetric, row_blocks, triangle_blocks
from .kernel_system import point_bytes
from .kernels import Kernel, RadialKernel
from .samples import check_columns, check_pair, check_samples

#: Matrices d×d that either form holds.
_MATRICES = 4

#: Bytes that a pair of samples takes by Gram matrix: distances, W and P, or parts of V.
_PAIR_BYTES = 5 * FLOAT64_BYTES


def agop(
    kernel: Kernel,
    X: Tensor,
    coefficients: Tensor,
    *,
    centres: Tensor | None = None,
    memory: int | None = None,
) -> Tensor:
    """M = (1/N) Σ_i Σ_c ∇f_c(x_i) ∇f_c(x_i)ᵀ of the machine f_c(x) = Σ_j α_jc k(x, z_j) (eq. 1).

    Args:
        kernel: k; where x_i = z_j its gradient is what the kernel says it is, 0 for those of this package.
        X: samples x ``(N, d)``.
        coefficients: α ``(n, C)``.
        centres: z ``(n, d)``; by default X.
        memory: bytes that may be used; by default half of the device's free memory.

    Returns:
        ``(d, d)``, exactly symmetric, in the dtype of X.

    Raises:
        ddnkit.InputError: something is not finite or does not match, or the gradients of a single sample do
            not fit in the memory.
    """
    Z = X if centres is None else centres
    check_samples(X)
    if centres is not None:
        check_samples(Z, "centres")
        check_pair(X, Z, ("X", "centres"))
    check_columns(coefficients, Z, "coefficients")
    d = X.shape[1]
    held = point_bytes(len(X) + len(Z), d) + FLOAT64_BYTES * _MATRICES * d * d
    left = allowed_memory(memory, X.device) - held
    M = None
    if isinstance(kernel, RadialKernel) and _gram_is_cheaper(X, Z, coefficients, centres is None):
        M = (
            own_gram_sum(kernel, X, coefficients, left)
            if centres is None
            else gram_sum(kernel, X, Z, coefficients, left)
        )
    if M is None:
        M = gradient_sum(kernel, X, Z, coefficients, left)
    return (M + M.T) / (2 * len(X))


def gradient_operations(N: int, n: int, d: int, outputs: int) -> int:
    """Operations of `gradient_sum` for N samples and n centres, in the matrix products with G."""
    return 2 * N * outputs * d * (n + d)


def _gram_is_cheaper(X: Tensor, Z: Tensor, coefficients: Tensor, own: bool) -> bool:
    (N, d), (n, C) = X.shape, coefficients.shape
    return gram_operations(N, n, d, own=own) < gradient_operations(N, n, d, C)


def gradient_sum(kernel: Kernel, X: Tensor, Z: Tensor, coefficients: Tensor, memory: int) -> Tensor:
    """Σ_c G_cᵀG_c ``(d, d)`` by gradients, of as many samples and outputs at a time as fit in the memory."""
    (n, C), d = coefficients.shape, X.shape[1]

    def row_bytes(outputs: int) -> int:
        return X.element_size() * kernel.gradient_numbers(n, outputs, d)

    outputs = C
    while outputs > 1 and row_bytes(outputs) > memory:
        outputs = (outputs + 1) // 2
    total = X.new_zeros(d, d)
    for alpha in coefficients.split(outputs, dim=1):
        for block in row_blocks(len(X), row_bytes(outputs), memory, "the gradient of a sample"):
            G = kernel.gradients(X[block], Z, alpha).flatten(0, 1)
            total.addmm_(G.T, G)
    return total


def gram_operations(N: int, n: int, d: int, *, own: bool) -> int:
    """Operations of `gram_sum` or, if ``own``, of `own_gram_sum`, in the matrix products after W."""
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
    return _drop_if_cancelled(half + half.T, before + _size(vector_norm(W, dim=0), coefficients, z))


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
    return _drop_if_cancelled(own + half + half.T, before)


def _add_half(half: Tensor, z: Tensor, part: Tensor, rest: Tensor) -> None:
    """Add the contribution of some rows of a symmetric S, from its diagonal on, to H, H + Hᵀ = Zᵀ S Z.

    Args:
        half: H ``(d, d)``.
        z: the samples of the rows ``(b, d)``.
        part: the rows ``(b, m)``; overwritten.
        rest: the samples of the columns ``(m, d)``, of which the first b are `z`.
    """
    part[:, : len(z)].div_(2)
    half.addmm_(z.T, part @ rest)


def _size(columns: Tensor, coefficients: Tensor, z: Tensor) -> Tensor:
    """The trace of Zᵀ S Z if none of its terms cancelled, from the norms of W's columns."""
    norms = vector_norm(coefficients, dim=1) * vector_norm(z, dim=1)
    return (columns * norms).square().sum()


def _drop_if_cancelled(total: Tensor, before: Tensor) -> Tensor | None:
    """The sum, or None where its terms, by their size before they cancel, leave it too few digits.

    Also None for a sum that is NaN, because squares of slopes overflow.
    """
    accurate = before <= torch.finfo(total.dtype).eps ** (-1 / 3) * total.trace()
    return total if bool(accurate) else None
