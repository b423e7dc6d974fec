"""The rate at which Deep RFM collapses if kernels are linear up to a multiple of I: Theorem 5.3, simulated.

    X̃_{l+1}ᵀX̃_{l+1} = κ⁻¹ X_lᵀM_lX_l               (eq. 3: through M_l, the AGOP of the layer's predictor)
    X_{l+1}ᵀX_{l+1} = X̃_{l+1}ᵀX̃_{l+1} + λ_map I    (eq. 4: through the feature map)

Samples are columns, Y ``(K, N)`` the one-hot labels, and the predictor is ridgeless regression with the
kernel matrix XᵀX + λ_k I. Equation numbers are those of *Average gradient outer product as a mechanism for
deep neural collapse* (NeurIPS 2024), which writes λ̂ for λ_k. Its model takes no derivative of λ_k I, which
stands for the non-linear part of a kernel.

By Gram matrices alone. Let A = XᵀX. The coefficients are Y(A + λ_k I)⁻¹, the linear part of the predictor is
f(x) = Y(A + λ_k I)⁻¹Xᵀx, and its Jacobian the same at every sample, so that

    M = X(A + λ_k I)⁻¹YᵀY(A + λ_k I)⁻¹Xᵀ,    XᵀMX = BYᵀYBᵀ,    B = A(A + λ_k I)⁻¹ = I − λ_k(A + λ_k I)⁻¹.

No X is needed after the first layer's Gram matrix.

Fixed point, for K classes of n samples each. On the range of YᵀY, A* = YᵀY + λ_map I is n + λ_map, hence

    BYᵀYBᵀ = ((n + λ_map)/(n + λ_map + λ_k))² YᵀY:    κ* = (1 + λ_k/(n + λ_map))⁻² ≈ 1 − 2λ_k/(n + λ_map)

makes YᵀY a fixed point of the recursion, exactly. The paper has κ = 1 − 2λ_k(1 + λ_map⁻¹), from
YᵀY(A*)⁻¹ = (1 + λ_map⁻¹)YᵀY in the proof in appendix C; by its own Lemma C.2 the factor is
λ_map⁻¹ − nλ_map⁻¹/(n + λ_map) = 1/(n + λ_map). With the paper's κ the recursion ends at a multiple of YᵀY
that is off by 2λ_k(1 + λ_map⁻¹ − 1/(n + λ_map)) to first order, more than the theorem's O(λ_k²/λ_map²) as
λ_k → 0. With κ* it ends at YᵀY, and the theorem's rate can be made exact:

Rate. Let A = A* + E. To first order in E, B changes by λ_k(A* + λ_k I)⁻¹E(A* + λ_k I)⁻¹, and B and
(A* + λ_k I)⁻¹ take YᵀY to √κ* YᵀY and YᵀY/(n + λ_map + λ_k), so that the next E is

    λ_k/(n + λ_map) · (PEYᵀY + YᵀYEP),    P = (A* + λ_k I)⁻¹.

Block by block, with R the range of YᵀY and R⊥ the deviations from class means: E on R×R is multiplied by
2λ_k n/((n + λ_map)(n + λ_map + λ_k)), between R and R⊥, where the within-class variability is, by

    ρ = λ_k/(λ_k + λ_map) · n/(n + λ_map),

and on R⊥×R⊥ by 0. The larger of the two is the rate: ρ wherever λ_k + λ_map ≤ n. ρ is below 1 for all λ_k and
λ_map > 0, and for many samples a function of λ_k/λ_map alone: what the theorem says of that ratio.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ddnkit import InputError

from .samples import check_labels


def agop_gram(gram: Tensor, labels: Tensor, predictor: float) -> Tensor:
    """XᵀMX = BYᵀYBᵀ, B = A(A + λ_k I)⁻¹: the Gram matrix A seen through the AGOP of ridgeless regression.

    Args:
        gram: A = XᵀX ``(N, N)``, positive definite where λ_k = 0.
        labels: classes ``(N,)``, int64.
        predictor: λ_k ≥ 0.

    Returns:
        ``(N, N)``.

    Raises:
        ddnkit.InputError: shapes do not match, λ_k is negative, or A + λ_k I not positive definite.
    """
    N = len(gram)
    if gram.shape != (N, N):
        raise InputError(f"gram has shape {tuple(gram.shape)}; expected (N, N)")
    check_labels(labels, N)
    if not predictor >= 0:
        raise InputError(f"the predictor's λ is {predictor}: it needs to be at least 0")
    shifted = gram + predictor * torch.eye(N, dtype=gram.dtype, device=gram.device)
    factor, info = torch.linalg.cholesky_ex(shifted)
    if int(info):
        raise InputError(
            "A + λ_k I is not positive definite, so that regression cannot interpolate the labels "
            "(assumption 5.2): give data of full rank, N ≤ d, or a larger λ_k"
        )
    # BYᵀ = A(A + λ_k I)⁻¹Yᵀ
    fitted = gram @ torch.cholesky_solve(one_hot(labels).to(gram.dtype), factor)
    return fitted @ fitted.T


def gram_recursion(
    gram: Tensor,
    labels: Tensor,
    layers: int,
    *,
    predictor: float,
    feature_map: float,
    kappa: float,
) -> list[Tensor]:
    """X̃_lᵀX̃_l of the data after each layer of Deep RFM (equations 3 and 4).

    Args:
        gram: X_1ᵀX_1 ``(N, N)`` of the data.
        labels: classes ``(N,)``, int64.
        layers: number L of layers.
        predictor: λ_k of the predictors' kernel.
        feature_map: λ_map of the feature maps' kernel.
        kappa: κ, `fixed_point_kappa` or `published_kappa`.

    Returns:
        L matrices ``(N, N)``, l of 2…L+1.

    Raises:
        ddnkit.InputError: as for `agop_gram`, or κ is not above 0.
    """
    if not kappa > 0:
        raise InputError(f"κ is {kappa}: it needs to be above 0")
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    projected = []
    for _ in range(layers):
        projected.append(agop_gram(gram, labels, predictor) / kappa)
        gram = projected[-1] + feature_map * identity
    return projected


def collapse_curve(
    gram: Tensor,
    labels: Tensor,
    layers: int,
    *,
    predictor: float,
    feature_map: float,
    kappa: float | None = None,
) -> Tensor:
    """‖X̃_lᵀX̃_l − YᵀY‖ by layer, in the spectral norm: what Theorem 5.3 bounds.

    Args:
        gram: X_1ᵀX_1 ``(N, N)`` of the data.
        labels: classes ``(N,)``, int64.
        layers: number L of layers.
        predictor: λ_k of the predictors' kernel.
        feature_map: λ_map of the feature maps' kernel.
        kappa: κ; by default `fixed_point_kappa`, for classes of N/K samples.

    Returns:
        ``(L,)``, l of 2…L+1.

    Raises:
        ddnkit.InputError: as for `gram_recursion`.
    """
    Y = one_hot(labels).to(gram.dtype)
    if kappa is None:
        kappa = fixed_point_kappa(len(Y) / Y.shape[1], predictor, feature_map)
    grams = gram_recursion(
        gram, labels, layers, predictor=predictor, feature_map=feature_map, kappa=kappa
    )
    return torch.linalg.matrix_norm(torch.stack(grams) - Y @ Y.T, ord=2)


def fixed_point_kappa(samples: float, predictor: float, feature_map: float) -> float:
    """κ* = (1 + λ_k/(n + λ_map))⁻², with which YᵀY is a fixed point, for n samples in each class."""
    return (1 + predictor / (samples + feature_map)) ** -2


def published_kappa(predictor: float, feature_map: float) -> float:
    """κ = 1 − 2λ_k(1 + λ_map⁻¹), as the paper has it; not above 0 unless λ_k < ½ λ_map/(1 + λ_map)."""
    return 1 - 2 * predictor * (1 + 1 / feature_map)


def collapse_rate(samples: float, predictor: float, feature_map: float) -> float:
    """The factor from layer to layer near YᵀY with κ*: λ_k/(λ_k + λ_map) · n/(n + λ_map).

    Or 2λ_k n/((n + λ_map)(n + λ_map + λ_k)) where that is larger, for λ_k + λ_map > n.

    Args:
        samples: n in each class.
        predictor: λ_k.
        feature_map: λ_map.
    """
    n, total = samples, samples + feature_map
    within = predictor / (predictor + feature_map) * n / total
    return max(within, 2 * predictor * n / (total * (total + predictor)))
