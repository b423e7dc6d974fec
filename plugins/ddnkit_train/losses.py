"""Losses of a classification that torch does not have as they are needed."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class MeanSquaredError(nn.Module):
    """(1/BC) Σ_i ‖z_i − t_i‖², t_ic = 1 for the class c of sample i and ``off_target`` for the others.

    A mean over the classes too, as of torch's `MSELoss`, so that learning rates found with that one
    carry over; a rate η of this loss is the rate 2η/C of ½‖z − t‖².

    A mixed sample with shares T ``(B, C)`` has its targets mixed alike. ‖z − t‖² is Σ_c T_c ‖z − t_c‖²
    less the variance of the targets, in which z has no part: the gradient is the same.

    Args:
        off_target: target of the classes that a sample is not of; 0: one-hot targets.
    """

    def __init__(self, off_target: float = 0.0) -> None:
        super().__init__()
        self.off_target = off_target

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss ``()`` of logits ``(B, C)`` and classes ``(B,)`` or shares ``(B, C)``."""
        if labels.ndim == 1:
            labels = functional.one_hot(labels, logits.shape[1])
        target = self.off_target + (1 - self.off_target) * labels.to(logits.dtype)
        return functional.mse_loss(logits, target)
