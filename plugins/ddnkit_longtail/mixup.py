"""Mixup: samples and labels of a batch mixed in pairs (Zhang et al., ICLR 2018)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from ddnkit_train import Data, Plan, Share
from torch import Tensor, nn
from torch.nn import functional

from ddnkit import InputError

_WHOLE = Share()


def mixed(
    inputs: Tensor,
    labels: Tensor,
    partners: Tensor,
    partner_labels: Tensor,
    lam: float,
    classes: int,
) -> tuple[Tensor, Tensor]:
    """λx + (1−λ)x′ and the shares λe_y + (1−λ)e_y′.

    Args:
        inputs, partners: x and x′ ``(B, ...)``, floating.
        labels, partner_labels: y and y′ ``(B,)``, int64.
        lam: λ in 0…1.
        classes: C.

    Returns:
        Inputs ``(B, ...)`` and shares ``(B, C)``, in the inputs' dtype.
    """
    own, others = (
        functional.one_hot(each, classes).to(inputs.dtype) for each in (labels, partner_labels)
    )
    return torch.lerp(partners, inputs, lam), torch.lerp(others, own, lam)


class MixedData(Data):
    """Data whose training batches are mixed: each sample with another of its batch, one λ a batch.

    λ ~ Beta(α, α) and the pairs follow from the plan's seed, so that a resumed run mixes the same ones
    and several processes mix what one would. Each sample of a pair is augmented for itself.

    Args:
        data: what is mixed; its evaluation stays as it is.
        alpha: α.

    Raises:
        ddnkit.InputError: samples are indices, which cannot be mixed.
    """

    def __init__(self, data: Data, alpha: float) -> None:
        if not data.sample_shape:
            raise InputError("mixup: the samples of these data are indices, which cannot be mixed")
        self._data, self._alpha = data, alpha
        self.classes: int = data.classes
        self.labels: Tensor = data.labels
        self.prepare: nn.Module = data.prepare

    @property
    def inputs(self) -> Tensor | None:
        """The stored training samples, where they are in memory."""
        return getattr(self._data, "inputs", None)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample as the network sees it."""
        return self._data.sample_shape

    @property
    def test_samples(self) -> int:
        """Number of test samples."""
        return self._data.test_samples

    def to(self, device: torch.device | str) -> MixedData:
        """The same data, giving its batches on ``device``."""
        return MixedData(self._data.to(device), self._alpha)

    def subset(self, index: Tensor) -> MixedData:
        """See `Data.subset`."""
        return MixedData(self._data.subset(index), self._alpha)

    def training(
        self, plans: Iterable[Plan], share: Share = _WHOLE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Data.training`: mixed inputs, and shares ``(B, C)`` in place of labels."""
        drawn, first, second = itertools.tee(plans, 3)
        own = self._data.training(first, share)
        partners = self._data.training(map(self._partners, second), share)
        for plan, (x, y), (x2, y2) in zip(drawn, own, partners, strict=False):
            yield mixed(x, y, x2, y2, self._lambda(plan), self.classes)

    def evaluation(self, *args: Any, **options: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Data.evaluation`: nothing is mixed."""
        return self._data.evaluation(*args, **options)

    def _partners(self, plan: Plan) -> Plan:
        """The batch in another order, augmented anew: what its samples are mixed with."""
        index = plan.index
        if index is None:
            index = torch.arange(self.samples, device=self.labels.device)
        generator = torch.Generator(index.device).manual_seed(plan.seed ^ 1)
        order = torch.randperm(len(index), generator=generator, device=index.device)
        return Plan(index[order], plan.seed ^ 2)

    def _lambda(self, plan: Plan) -> float:
        return float(np.random.default_rng(plan.seed).beta(self._alpha, self._alpha))
