"""The ETF classifier for long-tailed data: batch norm, unit features, a random ETF that stays."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddnkit_etf import FixedETFClassifier

from ddnkit import settings_from

from .settings.heads import BatchNormETFHead

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
