"""The average gradient outer product (AGOP) of a kernel machine.

    M = (1/N) Σ_i Σ_c ∇f_c(x_i) ∇f_c(x_i)ᵀ,    f_c(x) = Σ_j α_jc k(x, z_j)

(*Average gradient outer product as a mechanism for deep neural collapse*, eq. 1 and Algorithm 1; equation 1
divides by N, Algorithm 1 does not. A layer of Deep RFM is normalised after, so that only its cosine features
see the difference.)

Two ways to M, of a kernel with gradient ∇_x k(x, z) = w(x, z)(x − z), W_ij = w(x_i, z_j): by gradients, here,

    G_c = diag(B_c 1) X − B_c Z,    B_c = W diag(α_c),    M = (1/N) Σ_c G_cᵀG_c,

rows of G_c being ∇f_c(x_i), in 2NnCd + 2NCd² operations; and by Gram matrix (`gram_form`), whatever C.
"""

from __future__ import annotations

from torch import Tensor

from .blocks import FLOAT64_BYTES, allowed_memory, row_blocks
from .checks import check_columns, check_pair, check_samples
from .gram_form import gram_operations, gram_sum, own_gram_sum
from .kernel_system import point_bytes
from .kernels import Kernel, RadialKernel

#: Matrices d×d that either form holds.
_MATRICES = 4


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
        memory: bytes that may be taken; by default half of what the device has free.

    Returns:
        ``(d, d)``, exactly symmetric, in the dtype of X.

    Raises:
        ddnkit.InputError: something is not finite or does not match, or the memory holds not one sample's
            gradients.
    """
    Z = X if centres is None else centres
    check_samples(X)
    if centres is not None:
        check_samples(Z, "centres")
        check_pair(X, Z, ("X", "centres"))
    check_columns(coefficients, Z, "coefficients")
    d = X.shape[1]
    taken = point_bytes(len(X) + len(Z), d) + FLOAT64_BYTES * _MATRICES * d * d
    left = allowed_memory(memory, X.device) - taken
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
    """Of `gradient_sum`, of N samples and n centres, in its matrix products with G."""
    return 2 * N * outputs * d * (n + d)


def _gram_is_cheaper(X: Tensor, Z: Tensor, coefficients: Tensor, own: bool) -> bool:
    (N, d), (n, C) = X.shape, coefficients.shape
    return gram_operations(N, n, d, own=own) < gradient_operations(N, n, d, C)


def gradient_sum(kernel: Kernel, X: Tensor, Z: Tensor, coefficients: Tensor, memory: int) -> Tensor:
    """Σ_c G_cᵀG_c ``(d, d)``, of as many samples, if need be of as many outputs, as `memory` bytes hold."""
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
