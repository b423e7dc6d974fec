"""Sums and means over the whole batch, where several processes have a share of it each.

A head on one process of W must centre on the mean, and solve for the ETF nearest to the class means,
of the samples of all W: else each would train another classifier. While training, the sums and counts
of all shares are therefore added up, in one all-reduce a step, and the gradient of the sum is the sum
of the gradients: with S = Σ_r s_r and the loss ℓ = (1/W) Σ_r ℓ_r,

    W ∂ℓ/∂s_r = Σ_q ∂ℓ_q/∂S,

which the local share of the backward goes on from. Averaging parameter gradients over the processes,
as DistributedDataParallel does, takes W out again: the result is that of one process on the whole
batch. The loop owes the convention: the average of its processes' losses is the loss of the batch.

A process alone, or without `torch.distributed`, communicates nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, distributed


class ClassSums(NamedTuple):
    """A batch by class: its features summed, ``sums`` (d, C), and counted, ``counts`` (C,)."""

    sums: Tensor
    counts: Tensor

    def class_means(self) -> Tensor:
        """(d, C); zero where there is no sample of a class."""
        return self.sums / torch.where(self.counts > 0, self.counts, 1)

    def mean(self) -> Tensor:
        """(d,), over all samples: the classes' sums hold all that there is to read."""
        return self.sums.sum(dim=-1) / self.counts.sum()


def class_sums(features: Tensor, labels: Tensor, classes: int) -> ClassSums:
    """The whole batch's sums from this process's features (N, d) and labels (N,), in 0 … C−1.

    Labels may be shares (N, C): a sample then counts for each class by its share of it. In float32
    or wider; differentiable in the features.
    """
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    # A product with the one-hot labels: it waits for no device, and unlike scattered additions it
    # gives the same sums each time.
    if labels.ndim == 2:
        member = labels.to(features.dtype)
    else:
        member = labels.unsqueeze(-1) == torch.arange(classes, device=labels.device)  # (N, C)
        member = member.to(features.dtype)
    sums, counts = features.T @ member, member.sum(dim=0)
    if shared():
        packed = all_reduced(torch.cat((sums, counts.unsqueeze(0))))
        sums, counts = packed[:-1], packed[-1].detach()
    return ClassSums(sums, counts)


def batch_mean(features: Tensor) -> Tensor:
    """The whole batch's mean (d,) from this process's features (N, d), differentiable."""
    if not shared():
        return features.mean(dim=0)
    sums = features.sum(dim=0)
    packed = all_reduced(torch.cat((sums, sums.new_full((1,), len(features)))))
    return packed[:-1] / packed[-1].detach()


def shared() -> bool:
    """Whether there are other processes to share the batch with."""
    available = distributed.is_available() and distributed.is_initialized()
    return available and distributed.get_world_size() > 1


def all_reduced(share: Tensor) -> Tensor:
    """Σ over processes of ``share``, the same bits on each; differentiable as often as one likes.

    Every process must call it, and differentiate it, equally often and in the same order.
    """
    total = share.detach().clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(total)
    if not (share.requires_grad and torch.is_grad_enabled()):
        return total
    # torch.distributed.nn's own is deprecated. Zero, with the gradient of the identity; the hook
    # turns the gradient, too, into the sum over processes.
    link = share.view_as(share)
    link.register_hook(all_reduced)
    return total + (link - link.detach())
