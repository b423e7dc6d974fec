"""The average gradient outer product (AGOP) of a kernel machine.

    M = (1/N) Σ_i Σ_c ∇f_c(x_i) ∇f_c(x_i)ᵀ,    f_c(x) = Σ_j α_jc k(x, z_j)

(*Average gradient outer product as a mechanism for deep neural collapse*, eq. 1 and Algorithm 1; equation 1
divides by N, Algorithm 1 does not. A layer of Deep RFM is normalised after, so that only its cosine features
see the difference.)

Two ways to M, of a kernel with gradient ∇_x k(x, z) = w(x, z)(x − z), W_ij = w(x_i, z_j):

* by gradients. G_c = diag(B_c 1) X − B_c Z, B_c = W diag(α_c), whose rows are ∇f_c(x_i), and
  M = (1/N) Σ_c G_cᵀG_c. Its products take 2NnCd + 2NCd² operations.
* by Gram matrix. With r_c = B_c 1 and R = Wα, so that R_ic = r_c,i, the sum over c can be taken first:

      Σ_c G_cᵀG_c = Xᵀ diag(‖R_i‖²) X − Xᵀ P Z − Zᵀ Pᵀ X + Zᵀ S Z,
      P = Σ_c diag(r_c) B_c = W ∘ (R αᵀ),    S = Σ_c B_cᵀB_c = (WᵀW) ∘ (α αᵀ).

  2Nn² + 2Nnd + 2n²d operations, whatever the number of outputs C.

What cancels in G_c, x_i − z_j at a distance D relative to their norms, costs errors of ε/D by gradients, no
more than the rounding of the samples does, but ε/D² by Gram matrix. The Gram matrix is therefore given up
where its terms, before they cancel, are more than ε^(−1/3) times the trace of M, which leaves it an
error of about ε^(2/3): 4e-11 in float64, 2e-5 in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .blocks import FLOAT64_BYTES, allowed_memory, row_blocks
from .checks import check_columns, check_pair, check_samples
from .kernel_system import point_bytes
from .kernels import Kernel, RadialKernel

#: Bytes that a pair of samples takes in the Gram form: distances, W and P.
_GRAM_PAIR_BYTES = 5 * FLOAT64_BYTES

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
    if isinstance(kernel, RadialKernel) and _gram_is_cheaper(X, Z, coefficients):
        M = gram_sum(kernel, X, Z, coefficients, left)
    if M is None:
        M = gradient_sum(kernel, X, Z, coefficients, left)
    return (M + M.T) / (2 * len(X))


def _gram_is_cheaper(X: Tensor, Z: Tensor, coefficients: Tensor) -> bool:
    (N, d), (n, C) = X.shape, coefficients.shape
    return N * n * n + N * n * d + n * n * d < N * n * C * d + N * C * d * d


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


def gram_sum(
    kernel: RadialKernel, X: Tensor, Z: Tensor, coefficients: Tensor, memory: int
) -> Tensor | None:
    """Σ_c G_cᵀG_c ``(d, d)`` by Gram matrix; None where too much cancels, or `memory` does not hold S."""
    n, d = Z.shape
    left = memory - X.element_size() * n * n
    if left < _GRAM_PAIR_BYTES * n:
        return None
    centre = Z.mean(dim=0)
    z = Z - centre
    S, own, cross = X.new_zeros(n, n), X.new_zeros(d, d), X.new_zeros(d, d)
    for block in row_blocks(len(X), _GRAM_PAIR_BYTES * n, left, "W"):
        W, x = kernel.slopes(X[block], Z), X[block] - centre
        R = W @ coefficients
        S.addmm_(W.T, W)
        own.addmm_(x.T, R.square().sum(dim=1, keepdim=True) * x)
        cross.addmm_(x.T, (R @ coefficients.T).mul_(W) @ z)
    norms = torch.linalg.vector_norm(coefficients, dim=1) * torch.linalg.vector_norm(z, dim=1)
    before = own.trace() + (S.diagonal() * norms.square()).sum()
    for block in row_blocks(n, _GRAM_PAIR_BYTES * n, left, "S"):
        S[block].mul_(coefficients[block] @ coefficients.T)
        own.addmm_(z[block].T, S[block] @ z)
    total = own - cross - cross.T
    # Also None for NaN, of slopes whose squares overflow.
    trusted = before <= torch.finfo(X.dtype).eps ** (-1 / 3) * total.trace()
    return total if bool(trusted) else None
