"""Deep neural collapse of the features of a layer: DNC1 and DNC2, both 0 at collapse (Definition 3.2).

The paper writes them for classes of equal size. Where sizes differ, a class here counts once, whatever its
size: with weights 1/(K n_c) for its samples, instead of 1/N,

    Σ_W = (1/K) Σ_c (1/n_c) Σ_i (x_ci − μ_c)(x_ci − μ_c)ᵀ,   μ_G = (1/K) Σ_c μ_c,
    Σ_B = (1/K) Σ_c (μ_c − μ_G)(μ_c − μ_G)ᵀ

are still the two parts of one covariance, and neither changes if a class is sampled more often. Σ_B and μ_G
are then what the paper's formula says; μ_G is not the mean of all samples. Classes without a sample are left
out, K being the number of the others.
"""

from __future__ import annotations

import torch
from ddnkit_collapse import ClassStatistics, class_statistics
from torch import Tensor

from .checks import check_labels, check_samples

#: Samples that are held in float64 at a time.
_CHUNK = 4096


def dnc1(X: Tensor, labels: Tensor) -> Tensor:
    """tr Σ_W / tr Σ_B: variability within the classes relative to that between them.

    Args:
        X: features ``(n, d)``.
        labels: classes ``(n,)``, int64.

    Returns:
        ``()``, float64; NaN where all class means coincide, as those of a single class do.

    Raises:
        ddnkit.InputError: features are not finite, or labels do not match.
    """
    statistics = _statistics(X, labels)
    within = X.new_zeros((), dtype=torch.float64)
    for x, c in zip(X.split(_CHUNK), labels.split(_CHUNK), strict=True):
        squares = (x - statistics.means[c]).square().sum(dim=1)
        within += (squares / statistics.counts[c]).sum()
    deviations = _centred(statistics)
    between = deviations.square().sum()
    rounding = torch.finfo(torch.float64).eps * X.shape[1] * statistics.scale
    apart = (between / len(deviations)).sqrt() > rounding
    return torch.where(apart, within / between, torch.nan)


def dnc2(X: Tensor, labels: Tensor) -> Tensor:
    """‖μ̄ᵀμ̄ − Σ_ETF‖_F of the class means, centred and normalised: μ̄_c = (μ_c − μ_G)/‖μ_c − μ_G‖.

    Σ_ETF = (1 + 1/(K−1)) I − 11ᵀ/(K−1), the inner products of the vertices of a regular simplex.

    Args:
        X: features ``(n, d)``.
        labels: classes ``(n,)``, int64.

    Returns:
        ``()``, float64; NaN where the mean of a class is that of all, as of a single class.

    Raises:
        ddnkit.InputError: features are not finite, or labels do not match.
    """
    statistics = _statistics(X, labels)
    deviations = _centred(statistics)
    norms = torch.linalg.vector_norm(deviations, dim=1, keepdim=True)
    rounding = torch.finfo(torch.float64).eps * X.shape[1] * statistics.scale
    mu = deviations / torch.where(norms > rounding, norms, torch.nan)
    K = len(mu)
    # A single class has no deviation: NaN whatever is divided by.
    etf = (K * torch.eye(K, dtype=mu.dtype, device=mu.device) - 1) / max(K - 1, 1)
    return torch.linalg.matrix_norm(mu @ mu.T - etf)


def _statistics(X: Tensor, labels: Tensor) -> ClassStatistics:
    check_samples(X)
    check_labels(labels, len(X))
    return class_statistics(X, labels, int(labels.max()) + 1)


def _centred(statistics: ClassStatistics) -> Tensor:
    """μ_c − μ_G ``(K, d)`` of the classes that have samples."""
    means = statistics.means[statistics.present]
    return means - means.mean(dim=0)
