"""The ETF classifier for long-tailed data: batch norm, unit features, a random ETF that stays."""

from __future__ import annotations

from ddnkit_etf import FixedETFClassifier


class BatchNormETFClassifier(FixedETFClassifier):
    """logits = wᵀh with h = √E_H b/‖b‖, b a batch norm of the features, and w of length √E_W.

    W is a random simplex ETF (Haar, from torch's generator) that is never trained (*Inducing Neural
    Collapse in Imbalanced Learning*, eq. 1, 5 and 6); nothing is centred. In the terms of
    `ddnkit_etf.ClassifierHead`, τ = √(E_W E_H) on unit features and rows.

    Args:
        feature_dim: d ≥ C − 1.
        classes: C.
        e_w, e_h: E_W and E_H, squared lengths of classifier vectors and features.
        batch_norm: "affine", "plain" or "none", see `ddnkit_etf.ClassifierHead`.
        direction: "haar" or "canonical", see `ddnkit_etf.simplex_etf`.
    """

    def __init__(
        self,
        feature_dim: int,
        classes: int,
        *,
        e_w: float = 1.0,
        e_h: float = 1.0,
        batch_norm: str = "affine",
        direction: str = "haar",
    ) -> None:
        super().__init__(
            feature_dim,
            classes,
            temperature=(e_w * e_h) ** 0.5,
            direction=direction,
            centre=False,
            batch_norm=batch_norm,
        )
