"""The ETF classifier for long-tailed data: batch norm, unit features, a random ETF that stays."""

from __future__ import annotations

from ddnkit_etf import FixedETFClassifier
from torch import Tensor, nn


class BatchNormETFClassifier(FixedETFClassifier):
    """logits = wᵀh with h = √E_H b/‖b‖, b a batch norm of the features, and w of length √E_W.

    W is a random simplex ETF (Haar, from torch's generator) that is never trained (*Inducing Neural
    Collapse in Imbalanced Learning*, eq. 1, 5 and 6); nothing is centred. In the terms of
    `ddnkit_etf.ClassifierHead`, τ = √(E_W E_H) on unit features and rows.

    Args:
        feature_dim: d ≥ C − 1.
        classes: C.
        e_w, e_h: E_W and E_H, squared lengths of classifier vectors and features.
        batch_norm: False leaves the batch norm out.
        affine: the batch norm learns a scale and a shift.
        direction: "haar" or "canonical", see `ddnkit_etf.simplex_etf`.
    """

    def __init__(
        self,
        feature_dim: int,
        classes: int,
        *,
        e_w: float = 1.0,
        e_h: float = 1.0,
        batch_norm: bool = True,
        affine: bool = True,
        direction: str = "haar",
    ) -> None:
        super().__init__(
            feature_dim,
            classes,
            temperature=(e_w * e_h) ** 0.5,
            direction=direction,
            centre=False,
        )
        self.norm = nn.BatchNorm1d(feature_dim, affine=affine) if batch_norm else None

    def embed(self, features: Tensor) -> Tensor:
        """b/‖b‖, in float32 or wider; in training mode b is normalised by the batch at hand."""
        if features.element_size() < 4:
            features = features.float()
        return super().embed(features if self.norm is None else self.norm(features))

    def feature_map(self) -> tuple[Tensor, Tensor] | None:
        """The batch norm as it is in evaluation: (a, b), (d,) each."""
        norm = self.norm
        if norm is None or norm.running_mean is None or norm.running_var is None:
            return None
        scale = (norm.running_var + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.detach()
        shift = -norm.running_mean * scale
        if norm.bias is not None:
            shift = shift + norm.bias.detach()
        return scale, shift
