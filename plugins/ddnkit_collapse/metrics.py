"""The metrics of neural collapse: NC1–NC4, equinorm, cosine margins and the distance to a simplex ETF.

Equation numbers are those of "Guiding Neural Collapse" (NeurIPS 2024), appendix A. All metrics but
the cosine margins go to zero at collapse; a metric that is undefined for its input is NaN. Class means are
of *embedded* features, and h_G is their own mean (equation 4); only NC4, which is about the classifier's
decisions, uses the mean that the classifier subtracts. Sums over samples and all small matrices are in
float64; products of samples with a matrix are in the features' own precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .statistics import CHUNK, ClassStatistics, class_statistics, deviations

if TYPE_CHECKING:
    from .settings import NeuralCollapse

#: The rounding error, relative to the result, up to which NC1 may be computed the faster way.
_RELATIVE_ROUNDING = 1e-11


@dataclass(frozen=True)
class HeldOut:
    """The test set at the time of an evaluation.

    Attributes:
        labels: classes ``(M,)``, int64.
        predictions: the classes that the classifier predicts ``(M,)``, int64.
        features: embedded features ``(M, d)``, if a metric has ``test_features`` set.
    """

    labels: Tensor
    predictions: Tensor
    features: Tensor | None = None


@dataclass(frozen=True)
class Evaluation:
    """What a metric is given: the training set as the classifier sees it, at one time of the training.

    Attributes:
        features: embedded features h_i ``(N, d)``, not centred.
        labels: their classes ``(N,)``, int64.
        weight: classifier W ``(C, d)``.
        global_mean: the mean h_G ``(d,)`` that the classifier subtracts from a feature; zeros
            where it does not centre.
        classes: number of classes C.
        margins: cosine margin of each sample ``(N,)``, `cosine_margins`.
        counts: training samples of each class ``(C,)``, including those not evaluated.
        predictions: the classes that the classifier predicts ``(N,)``, int64.
        held_out: the test set, where there is one.
    """

    features: Tensor
    labels: Tensor
    weight: Tensor
    global_mean: Tensor
    classes: int
    margins: Tensor
    counts: Tensor | None = None
    predictions: Tensor | None = None
    held_out: HeldOut | None = None


def neural_collapse_metric(settings: NeuralCollapse) -> Callable[[Evaluation], dict[str, float]]:
    """What `NeuralCollapse` builds: `neural_collapse` of an evaluation, and its mean cosine margin."""

    def measure(evaluation: Evaluation) -> dict[str, float]:
        figures = neural_collapse(
            evaluation.features,
            evaluation.labels,
            evaluation.weight,
            evaluation.global_mean,
            evaluation.classes,
        )
        return {**figures, "cosine_margin": float(evaluation.margins.mean())}

    return measure


def neural_collapse(
    features: Tensor, labels: Tensor, weight: Tensor, global_mean: Tensor, classes: int
) -> dict[str, float]:
    """All the metrics below, by the names of the columns of ``metrics.csv``.

    Args:
        features: embedded features ``(N, d)``, not centred.
        labels: classes ``(N,)``, int64.
        weight: classifier W ``(C, d)``.
        global_mean: the mean ``(d,)`` that the classifier subtracts.
        classes: number of classes C.
    """
    statistics = class_statistics(features, labels, classes)
    figures = {
        "nc1": nc1(features, labels, statistics),
        "nc2": nc2(weight),
        "nc3": nc3(weight, statistics),
        "nc4": nc4(features, weight, global_mean, statistics),
        "equinorm": equinorm(weight, statistics),
        "etf_distance_w": etf_distance(weight),
        "etf_distance_h": etf_distance(statistics.centred),
    }
    return {name: float(value) for name, value in figures.items()}


def nc1(features: Tensor, labels: Tensor, statistics: ClassStatistics) -> Tensor:
    """Variability collapse: (1/C) tr(Σ_W Σ_B†) (equation 11).

    With K the C×d centred class means of the C classes that have samples, Σ_B = KᵀK/C. From
    K Kᵀ = V diag(λ) Vᵀ follows Σ_B† = C Kᵀ V diag(λ⁻²) Vᵀ K over the λ > 0, at most C−1 of them,
    so that the trace is a sum over samples of their within-class deviations, projected by K:

        NC1 = (1/N) Σ_i ‖diag(1/λ) Vᵀ K (h_i − h̄_{c(i)})‖²

    O(NdC) time and O(dC + C²) memory: Σ_W and Σ_B, of size d×d, are never formed.

    Args:
        features: h_i ``(N, d)``.
        labels: classes ``(N,)``, int64.
        statistics: of these features.

    Returns:
        ``()``, float64; zero when every feature equals its class mean, NaN when all class means
        coincide.
    """
    K = statistics.centred[statistics.present]
    eigenvalues, V = torch.linalg.eigh(K @ K.T)
    largest = eigenvalues[-1]
    # The cut that torch.linalg.pinv would make for Σ_B: the rounding error of λ.
    kept = eigenvalues > max(K.shape) * torch.finfo(K.dtype).eps * largest
    inverse = torch.where(kept, 1 / eigenvalues, 0)
    projection = ((V * inverse).T @ K).to(features.dtype)
    total = _projected_variability(projection, features, labels, statistics)
    # Class means closer than the rounding of the features count as one point.
    rounding = max(K.shape) * torch.finfo(K.dtype).eps * statistics.scale
    return torch.where(largest.sqrt() > rounding, total / len(labels), torch.nan)


def nc2(weight: Tensor) -> Tensor:
    """Classifier to simplex ETF: ‖WWᵀ/‖WWᵀ‖_F − (I − 11ᵀ/C)/√(C−1)‖_F (equation 12).

    Args:
        weight: W ``(C, d)``.
    """
    W = weight.to(torch.float64)
    return _distance_to_etf_gram(W @ W.T)


def nc3(weight: Tensor, statistics: ClassStatistics) -> Tensor:
    """Self-duality: ‖WH̄/‖WH̄‖_F − (I − 11ᵀ/C)/√(C−1)‖_F (equation 13).

    Args:
        weight: W ``(C, d)``.
        statistics: its centred class means are H̄.
    """
    return _distance_to_etf_gram(weight.to(torch.float64) @ statistics.centred.T)


def nc4(
    features: Tensor, weight: Tensor, global_mean: Tensor, statistics: ClassStatistics
) -> Tensor:
    """Share of samples whose class by W is not that of the nearest class mean (equation 14).

    The paper states NC4 as a limit, argmax_c ⟨w_c, h⟩ + b_c → argmin_c ‖h − h̄_c‖, here with
    b_c = −⟨w_c, h_G⟩; the share of disagreements is the number that goes to zero with it. Classes
    without a sample have no mean to be nearest to.

    Args:
        features: h_i ``(N, d)``.
        weight: W ``(C, d)``.
        global_mean: the h_G ``(d,)`` that the classifier subtracts.
        statistics: of these features.
    """
    # argmin ‖h − h̄_c‖² = argmax 2⟨h − h_G, k_c⟩ − ‖k_c‖² with k_c = h̄_c − h_G: both decisions are
    # affine in h, and one product gives both.
    W, K = weight.to(torch.float64), statistics.centred
    # The products of features with k_c are squares, which may overflow or vanish: a power of two
    # changes no decision.
    k = K * torch.ldexp(torch.ones_like(statistics.scale), -torch.frexp(statistics.scale).exponent)
    squared = torch.where(statistics.present, (k * K).sum(dim=1), torch.inf)
    directions = torch.cat([W, 2 * k]).T.to(features.dtype)
    offsets = torch.cat([W @ global_mean.to(W.dtype), 2 * k @ statistics.global_mean + squared])
    disagreements = torch.zeros((), dtype=torch.int64, device=features.device)
    for chunk in features.split(CHUNK):
        scores = torch.addmm(-offsets.to(features.dtype), chunk, directions)
        by_classifier, by_mean = scores.tensor_split([len(W)], dim=1)
        disagreements += (by_classifier.argmax(dim=1) != by_mean.argmax(dim=1)).sum()
    share = disagreements.to(torch.float64) / len(features)
    return torch.where(statistics.scale > 0, share, torch.nan)


def equinorm(weight: Tensor, statistics: ClassStatistics) -> Tensor:
    """|std‖w_c‖/avg‖w_c‖ − std‖h̄_c − h_G‖/avg‖h̄_c − h_G‖| over the classes (equation 15).

    Standard deviations are those of a population (divided by C).

    Args:
        weight: W ``(C, d)``.
        statistics: only classes that have samples enter its side.
    """
    of_weight = _relative_spread(weight.to(torch.float64).norm(dim=1))
    return (of_weight - _relative_spread(statistics.centred[statistics.present].norm(dim=1))).abs()


def etf_distance(vectors: Tensor) -> Tensor:
    """min over α, U of ‖X − αUM̃‖_F / ‖X‖_F: relative distance to the nearest simplex ETF.

    M̃ = (I − 11ᵀ/C)/√(C−1) and U has orthonormal columns on the span of M̃. With X the d×C matrix
    of the vectors and σ_1 … σ_{C−1} the singular values of X(I − 11ᵀ/C), the best U is its polar
    factor and the best α = Σσ/√(C−1), so that

        ‖X − αUM̃‖²_F = ‖X1‖²/C + Σ_i (σ_i − σ̄)²

    which is a sum of squares: no digits cancel near an ETF.

    Args:
        vectors: rows of W or centred class means ``(C, d)``.

    Returns:
        ``()``, float64, in 0…1; NaN for zero vectors and where d < C−1, too few for an ETF.
    """
    X = vectors.to(torch.float64)
    classes, dimension = X.shape
    if dimension < classes - 1:
        return X.new_tensor(math.nan)
    mean = X.mean(dim=0)
    # One singular value belongs to the direction of 1 and is zero; it is the last. svdvals raises
    # on NaN, which the mean carries into the result instead.
    sigma = torch.linalg.svdvals((X - mean).nan_to_num())[: classes - 1]
    squared = classes * mean.square().sum() + (sigma - sigma.mean()).square().sum()
    return squared.sqrt() / X.norm()


def ce_bound(classes: int, temperature: float) -> float:
    """log(1 + (C−1) exp(−τC/(C−1))): the least cross-entropy of unit features and unit rows of W.

    Features on the rows of a simplex ETF attain it; their cosines are 1 and −1/(C−1).
    Source: Yaras et al. 2022, theorem 1, for logits τ·W·h.

    Args:
        classes: number of classes C, at least 2.
        temperature: τ.
    """
    return math.log1p((classes - 1) * math.exp(-temperature * etf_cosine_margin(classes)))


def etf_cosine_margin(classes: int) -> float:
    """C/(C−1): the cosine margin of every sample at an exact simplex ETF (GNC, equation 17)."""
    return classes / (classes - 1)


def cosine_margins(features: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """cos θ_c − max_{j≠c} cos θ_j, θ_j between w_j − w_G and h − h_G (GNC, equation 16).

    Args:
        features: h_i ``(N, d)``; h_G is their mean (equation 4).
        labels: classes c ``(N,)``, int64.
        weight: W ``(C, d)``; w_G is the mean of its rows.

    Returns:
        The margins ``(N,)``, float64; NaN for a feature equal to h_G.
    """
    centred = weight.to(torch.float64) - weight.mean(dim=0, dtype=torch.float64)
    directions = (centred / centred.norm(dim=1, keepdim=True)).T.to(features.dtype)
    global_mean = features.mean(dim=0, dtype=torch.float64).to(features.dtype)
    margins = []
    for chunk, chunk_labels in zip(features.split(CHUNK), labels.split(CHUNK), strict=True):
        offsets = chunk - global_mean
        # In float64 the squares of no float32 overflow.
        norms = torch.linalg.vector_norm(offsets, dim=1, keepdim=True, dtype=torch.float64)
        cosines = offsets @ directions / norms.to(offsets.dtype)
        own = cosines.gather(1, chunk_labels[:, None])[:, 0]
        others = cosines.scatter_(1, chunk_labels[:, None], -torch.inf).amax(dim=1)
        margins.append(own.to(torch.float64) - others)
    return torch.cat(margins)


def _projected_variability(
    projection: Tensor, features: Tensor, labels: Tensor, statistics: ClassStatistics
) -> Tensor:
    """Σ_i ‖P (h_i − h̄_{c(i)})‖², float64.

    Computed as P h_i − P h̄_{c(i)} it needs no pass over N×d numbers for the deviations, a fifth of the
    time at C = 100, but digits cancel: entries of P h_i are wrong by about ε √d ‖p_k‖ ‖h_i‖, all of
    them together by δ, and the root of the sum by at most δ. Near collapse, where that matters, and in
    float32, where it matters sooner, the deviations are computed.

    Args:
        projection: P ``(C, d)``.
        features: h_i ``(N, d)``.
        labels: classes c(i) ``(N,)``, int64.
        statistics: of these features.
    """
    if features.dtype == torch.float64:
        of_means = projection @ statistics.means.T
        pairs = zip(features.split(CHUNK), labels.split(CHUNK), strict=True)
        # C×samples, both factors along their rows: the fastest order there is for this product.
        total = _sum_of_squares(projection @ chunk.T - of_means[:, own] for chunk, own in pairs)
        rounding = torch.finfo(features.dtype).eps * math.sqrt(features.shape[1])
        delta = rounding * projection.norm() * statistics.scale * math.sqrt(len(features))
        if delta <= _RELATIVE_ROUNDING * total.sqrt():
            return total
    return _sum_of_squares(
        projection @ chunk.T for chunk in deviations(features, labels, statistics.means)
    )


def _sum_of_squares(matrices: Iterable[Tensor]) -> Tensor:
    norms = [torch.linalg.vector_norm(matrix, dtype=torch.float64) for matrix in matrices]
    return torch.stack(norms).square().sum()


def _distance_to_etf_gram(product: Tensor) -> Tensor:
    classes = len(product)
    eye = torch.eye(classes, dtype=product.dtype, device=product.device)
    return (product / product.norm() - (eye - 1 / classes) / math.sqrt(classes - 1)).norm()


def _relative_spread(norms: Tensor) -> Tensor:
    return norms.std(correction=0) / norms.mean()
