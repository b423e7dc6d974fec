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

#: So many standard deviations of the rounding of a sum are rounding still.
_DEVIATIONS = 8


class ClassSums(NamedTuple):
    """The features of a batch summed by class, ``sums`` (d, C), and their numbers, ``counts`` (C,).

    ``norm`` (): √Σ ‖h_i‖² over all samples, without a graph.
    """

    sums: Tensor
    counts: Tensor
    norm: Tensor

    def class_means(self) -> Tensor:
        """(d, C); zero where there is no sample of a class."""
        return self.sums / torch.where(self.counts > 0, self.counts, 1)

    def mean(self) -> Tensor:
        """(d,), over all samples: the classes' sums hold all that there is to read; 0 of none."""
        return self.sums.sum(dim=-1) / self._total()

    def rounding(self) -> Tensor:
        """The largest Frobenius norm, (), that rounding alone can give the centred class means.

        The errors of n additions, taken as independent, add up to a standard deviation of u √n times
        the size of the terms (Higham and Mary, 2019), u = eps/2. The mean of a class of n_c features of
        root mean square s has one of u √n_c s, those of C classes together at most u √(C max n_c) s.
        The mean that is subtracted from each column has one of u √max n_c s, so √C times that in all.
        Divisions and subtractions, u s √C each, are below both. Eight standard deviations of the two.
        """
        C = len(self.counts)
        u = torch.finfo(self.sums.dtype).eps / 2
        largest = (self.counts.amax() / self._total()).sqrt()
        return largest * self.norm * (2 * _DEVIATIONS * u * C**0.5)

    def _total(self) -> Tensor:
        total = self.counts.sum()
        return total.clamp_(min=torch.finfo(total.dtype).tiny)  # 0/0 of no sample is 0


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
    # In float64 the squares of no float32 overflow.
    norm = torch.linalg.vector_norm(features.detach(), dtype=torch.float64).to(features.dtype)
    if is_shared():
        # Each of the C columns of the last row has a part of the squares: a sum by itself.
        parts = (norm.square() / classes).expand(1, classes)
        packed = sum_over_processes(torch.cat((sums, counts.unsqueeze(0), parts)))
        sums, counts, norm = packed[:-2], packed[-2].detach(), packed[-1].detach().sum().sqrt()
    return ClassSums(sums, counts, norm)


def batch_mean(features: Tensor) -> Tensor:
    """The whole batch's mean (d,) from this process's features (N, d), differentiable; 0 of none."""
    if not is_shared():
        return features.mean(dim=0) if len(features) else features.sum(dim=0)
    sums = features.sum(dim=0)
    packed = sum_over_processes(torch.cat((sums, sums.new_full((1,), len(features)))))
    return packed[:-1] / packed[-1].detach().clamp(min=1)


def is_shared() -> bool:
    """Whether there are other processes to share the batch with."""
    available = distributed.is_available() and distributed.is_initialized()
    return available and distributed.get_world_size() > 1


def sum_over_processes(share: Tensor) -> Tensor:
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
    link.register_hook(sum_over_processes)
    return total + (link - link.detach())
