"""Losses: the ``loss`` section of a recipe.

A loss is built for the training samples of each class, ``counts`` (C,), and the head whose logits it
will see. The module takes logits ``(B, C)`` and either labels ``(B,)`` or shares ``(B, C)``, and gives a
mean over the batch in which every sample counts for itself: with a batch split over several processes,
their means, weighted by their samples, average to that of the whole.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from . import settings
from .model import Head


def cross_entropy(
    given: settings.CrossEntropy, *, counts: Tensor, head: Head
) -> nn.CrossEntropyLoss:
    """torch's own cross-entropy."""
    return nn.CrossEntropyLoss(**dict(given))


def mean_squared_error(
    given: settings.MeanSquaredError, *, counts: Tensor, head: Head
) -> MeanSquaredError:
    """`MeanSquaredError` of these settings."""
    return MeanSquaredError(**dict(given))


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
