"""Batch normalisation over the batches of several processes."""

from __future__ import annotations

import torch
from ddnkit_etf.reduction import all_reduced
from torch import Tensor, nn


class WholeBatchNorm(nn.Module):
    """Batch norm by the statistics of all processes' batches, on any device.

    torch's own `SyncBatchNorm` is for GPUs alone. Here one all-reduced sum of (Σx, Σx², n), in
    float64, gives mean and variance; its gradient is the sum of the processes' gradients, which makes
    the backward pass that of the whole batch. In evaluation it is the batch norm it was made of.

    Args:
        norm: whose parameters and buffers it takes over, under the same names.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__()
        self.eps, self.momentum = norm.eps, norm.momentum
        # The same tensors, not copies: an optimiser may hold them already.
        for name in ("weight", "bias"):
            self.register_parameter(name, getattr(norm, name))
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(norm, name))
        self.train(norm.training)

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalised ``(B, channels, ...)``, in training by the statistics of all processes."""
        if not self.training and self.running_mean is not None:
            return nn.functional.batch_norm(
                inputs, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        shape = [1, -1] + [1] * (inputs.ndim - 2)
        wide = inputs.to(torch.float64)
        mean, variance = self._statistics(wide)
        normalised = (wide - mean.view(shape)) * (variance + self.eps).rsqrt().view(shape)
        normalised = normalised.to(inputs.dtype)
        if self.weight is not None and self.bias is not None:
            normalised = normalised * self.weight.view(shape) + self.bias.view(shape)
        return normalised

    def _statistics(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        channels = inputs.shape[1]
        dims = (0, *range(2, inputs.ndim))
        here = inputs.new_full((1,), inputs.numel() / channels)
        sums = all_reduced(torch.cat([inputs.sum(dims), inputs.square().sum(dims), here]))
        count = sums[-1].detach()
        mean = sums[:channels] / count
        variance = (sums[channels:-1] / count - mean.square()).clamp(min=0)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
        unbiased = variance.detach() * count / (count - 1).clamp(min=1)
        with torch.no_grad():
            self._track(self.running_mean, mean)
            self._track(self.running_var, unbiased)
        return mean, variance

    def _track(self, running: Tensor | None, value: Tensor) -> None:
        """The exponential average that evaluation uses; of all batches where momentum is None."""
        if running is None or self.num_batches_tracked is None:
            return
        newest = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        running.copy_(running + newest * (value.to(running.dtype) - running))


def synchronise_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """The model with every batch norm using the statistics of all processes.

    By torch's own `SyncBatchNorm` on a GPU, by `WholeBatchNorm` elsewhere; the names in state
    dictionaries stay as they are.
    """
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(parent, name, WholeBatchNorm(child))
    return model
