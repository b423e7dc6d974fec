"""The classifier and the losses for classes of unequal size: a fixed ETF, and losses weighted by class.

The losses take labels ``(B,)`` or shares ``(B, C)`` of a mixed sample; a loss of shares T is the mean of
its losses of the classes, Σ_c T_c ℓ_c, so that mixup's λ ℓ_a + (1−λ) ℓ_b is the loss of
T = λ e_a + (1−λ) e_b.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from ddnkit_etf import FixedETFClassifier
from ddnkit_train import Head
from torch import Tensor, nn
from torch.nn import functional

from ddnkit import InputError, settings_from

from . import settings as recipe
from .settings import BatchNormETFHead

if TYPE_CHECKING:
    from typing_extensions import Self


class BatchNormETFClassifier(FixedETFClassifier):
    """logits = wᵀh with h = √E_H b/‖b‖, b a batch norm of the features, and w of length √E_W.

    W is a random simplex ETF (Haar, from torch's generator) that is never trained (*Inducing Neural
    Collapse in Imbalanced Learning*, eq. 1, 5 and 6); nothing is centred. In the terms of
    `ddnkit_etf.ClassifierHead`, τ = √(E_W E_H) on unit features and rows.

    Args:
        feature_dim: d ≥ C − 1.
        classes: C.
        settings: by default its defaults.
        fields: of the settings, by keyword, in place of theirs: ``e_h=25.0``.
    """

    def __init__(
        self,
        feature_dim: int,
        classes: int,
        settings: BatchNormETFHead | None = None,
        **fields: object,
    ) -> None:
        own = settings_from(BatchNormETFHead, fields, settings)
        super().__init__(feature_dim, classes, own.as_fixed())

    @classmethod
    def with_lengths(cls, settings: BatchNormETFHead, *, feature_dim: int, classes: int) -> Self:
        """The head of a recipe's section."""
        return cls(feature_dim, classes, settings)


def build_dot_regression(
    settings: recipe.DotRegression, *, counts: Tensor, head: Head
) -> DotRegression:
    """Dot regression on the logits of ``head``.

    Raises:
        ddnkit.InputError: the head's classifier is learned, or its features have no fixed length.
    """
    if any(parameter is getattr(head, "weight", None) for parameter in head.parameters()):
        raise InputError(
            "loss: dot_regression only pulls features and classifier vectors together. A learned "
            "classifier would put all of its vectors in one place; it needs one that is an ETF: "
            "head: batch_norm_etf, fixed_etf or nearest_etf"
        )
    if not getattr(head, "normalise", True):
        raise InputError(
            "loss: dot_regression needs features of fixed length; this head takes them as they are"
        )
    equal = torch.ones(len(counts), device=counts.device)
    lengths = balanced_lengths(counts) if settings.lengths == "balanced" else equal
    return DotRegression(float(head.temperature), lengths)


def build_weighted_cross_entropy(
    settings: recipe.WeightedCrossEntropy, *, counts: Tensor, head: Head
) -> WeightedCrossEntropy:
    """Weighted by the classes' training samples."""
    return WeightedCrossEntropy(balanced_lengths(counts).square())


def balanced_lengths(counts: Tensor) -> Tensor:
    """√((N/C)/n_c): the length of each classifier vector that balances the gradients of the classes.

    Dot regression's gradient with respect to a feature is −(1 − cos) w_c, in proportion to the length of
    w_c (*Inducing Neural Collapse in Imbalanced Learning*, section 4.3).

    Args:
        counts: training samples of each class ``(C,)``.

    Returns:
        ``(C,)``, float64; 1 for a class without a sample.
    """
    counts = counts.to(torch.float64)
    return torch.where(counts > 0, (counts.sum() / len(counts) / counts.clamp(min=1)).sqrt(), 1.0)


def dot_regression(
    features: Tensor, weight: Tensor, labels: Tensor, *, e_w: float = 1.0, e_h: float = 1.0
) -> Tensor:
    """ℓ = (w_cᵀh − √(E_W E_H))² / (2√(E_W E_H)) for each sample (*INC*, eq. 14).

    Its gradient with respect to h is −(1 − cos∠(h, w_c)) w_c (eq. 15) where ‖h‖² = E_H, ‖w_c‖² = E_W.

    Args:
        features: h ``(B, d)``, of length √E_H.
        weight: W ``(C, d)``, rows of length √E_W.
        labels: classes c ``(B,)``, int64.
        e_w, e_h: E_W and E_H.

    Returns:
        ``(B,)``.
    """
    scale = (e_w * e_h) ** 0.5
    return ((features * weight[labels]).sum(dim=-1) - scale).square() / (2 * scale)


class DotRegression(nn.Module):
    """Mean of ℓ_c = l_c (z_c − τ)² / (2τ) over the samples: dot regression on a head's logits.

    With z_c = τ cos∠(h, w_c) and τ = √(E_W E_H) this is `dot_regression` for classifier vectors of
    length l_c √E_W: the logits of those are l_c z_c, and their target l_c τ.

    Args:
        temperature: τ, the logit of a feature that points along its classifier vector.
        lengths: l_c ``(C,)``, the class's length relative to √E_W.
    """

    lengths: Tensor

    def __init__(self, temperature: float, lengths: Tensor) -> None:
        super().__init__()
        if temperature <= 0:
            raise InputError(f"dot regression needs a temperature above 0, not {temperature}")
        self.temperature = temperature
        self.register_buffer("lengths", lengths.to(torch.get_default_dtype()))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss ``()`` of logits ``(B, C)`` and labels ``(B,)`` or shares ``(B, C)``."""
        tau = self.temperature
        if labels.ndim == 2:
            each = self.lengths * (logits - tau).square()
            return (labels * each).sum() / (2 * tau * len(logits))
        own = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
        return (self.lengths[labels] * (own - tau).square()).mean() / (2 * tau)


class WeightedCrossEntropy(nn.Module):
    """Cross-entropy with each sample weighted by its class's weight v_c, its mean over the batch.

    Divided by the samples and not, as torch's own, by the batch's weights: a rare class keeps its
    weight in a batch that has few others, and the parts of a batch add up over processes.

    Args:
        weights: v_c ``(C,)``.
    """

    weights: Tensor

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.register_buffer("weights", weights.to(torch.get_default_dtype()))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss ``()`` of logits ``(B, C)`` and labels ``(B,)`` or shares ``(B, C)``."""
        if labels.ndim == 2:
            each = self.weights * functional.log_softmax(logits, dim=1)
            return -(labels * each).sum() / len(logits)
        losses = functional.cross_entropy(logits, labels, reduction="none")
        return (self.weights[labels] * losses).mean()
