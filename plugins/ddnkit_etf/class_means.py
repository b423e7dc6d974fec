"""Class means over mini-batches: what the nearest ETF is computed from (*GNC*, section 3.5).

Per batch, the mean of each class minus the batch's mean; over batches, an exponential moving average
    M_t = α_t M_batch + (1 − α_t) M_{t−1}        (eq. 9, averaged before normalising as published)
whose history is detached; then H̃ = M_t / ‖M_t‖_F. A class that the batch lacks keeps its average
(zero until first seen: the centred mean of a class that is replaced by the global mean). Each class
has its own clock: a class first seen late starts from its own first mean and not from almost zero.
Where every batch holds every class, as stratified batches do, this is the paper's single clock.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ddnkit import InputError


class ClassMeans(nn.Module):
    """Tracks centred class means of features.

    Args:
        feature_dim: d.
        classes: C.
        alpha: smoothing factor α; None for the paper's decay α_t = max(2/(t+2), 1e-4), t from 0.

    Buffers: ``means`` (d, C), ``counts`` (C,): in how many batches a class was seen.
    """

    means: Tensor
    counts: Tensor

    def __init__(self, feature_dim: int, classes: int, alpha: float | None = None):
        super().__init__()
        if alpha is not None and not 0 < alpha <= 1:
            raise InputError(f"alpha must be in (0, 1], not {alpha}")
        self.alpha = alpha
        self.register_buffer("means", torch.zeros(feature_dim, classes))
        self.register_buffer("counts", torch.zeros(classes))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Take in a batch, features (N, d) and labels (N,); returns H̃ (d, C), of unit norm.

        Differentiable in the features, through this batch's share. No device is waited for.
        """
        classes = torch.arange(self.means.shape[1], device=labels.device)
        member = (labels.unsqueeze(-1) == classes).to(features.dtype)  # (N, C)
        number = member.sum(dim=0)
        present = number > 0
        batch_means = features.T @ member / number.clamp(min=1) - features.mean(dim=0).unsqueeze(-1)
        alpha = self._alpha()
        averaged = alpha * batch_means + (1 - alpha) * self.means
        means = torch.where(present, averaged, self.means)
        with torch.no_grad():
            self.means.copy_(means)
            self.counts += present
        return means / means.norm().clamp(min=torch.finfo(means.dtype).tiny)

    def _alpha(self) -> Tensor:
        if self.alpha is None:
            return (2 / (self.counts + 2)).clamp(min=1e-4)
        return torch.where(self.counts == 0, 1.0, self.alpha)
