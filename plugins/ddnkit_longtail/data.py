"""The data of a long-tailed training: imbalanced subsets of a data set, and mixup.

Mixup mixes samples and labels of a batch in pairs (Zhang et al., ICLR 2018).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from ddnkit_train import Data, Plan, Share
from ddnkit_train.data import Split
from torch import Tensor, nn
from torch.nn import functional

from ddnkit import InputError

from .settings import LongTailed

PROFILES = ("exponential", "step")
_WHOLE = Share()


def make_long_tailed(data: Data, settings: LongTailed, *, smoke: bool) -> Data:
    """The subset of ``data`` that the settings ask for, and mixed."""
    imbalance, alpha = settings.imbalance, settings.mixup.alpha
    if imbalance.ratio is not None:
        fields = dict(imbalance)
        if smoke:  # synthetic samples are fewer than the real ones
            del fields["largest"]
        data = data.subset(imbalanced_subset(data.labels, data.classes, **fields))
    return MixedData(data, alpha) if alpha else data


def class_counts(
    classes: int,
    largest: int,
    ratio: float,
    *,
    profile: str = "exponential",
    minority: float = 0.5,
) -> list[int]:
    """How many samples each class keeps so that the smallest has about ``ratio`` of the largest.

    * "exponential": n_k = ⌊n_max μ^{k/(C−1)}⌋ for k = 0 … C−1 (*Inducing Neural Collapse in
      Imbalanced Learning*, section 5, after Cui et al. 2019).
    * "step": n_max for the first classes, ⌊n_max μ⌋ for the ⌊minority·C⌋ last ones.

    Never less than one.

    Args:
        classes: C.
        largest: n_max.
        ratio: μ = n_min / n_max, in (0, 1].
        profile: one of `PROFILES`.
        minority: the share of classes that are small, of the step profile.

    Example:
        >>> sum(class_counts(10, 5000, 0.01))
        12406
    """
    return [_round_down(largest * share) for share in _shares(classes, ratio, profile, minority)]


def _shares(classes: int, ratio: float, profile: str, minority: float) -> list[float]:
    """What each class keeps of the largest."""
    if not 0 < ratio <= 1:
        raise InputError(
            f"the ratio of the smallest class to the largest is in (0, 1], not {ratio}"
        )
    if profile == "exponential":
        return [ratio ** (k / max(classes - 1, 1)) for k in range(classes)]
    if profile == "step":
        small = math.floor(minority * classes)
        return [1.0] * (classes - small) + [ratio] * small
    raise InputError(f"profile is one of {', '.join(PROFILES)}, not {profile!r}")


def _round_down(count: float) -> int:
    # 5000·0.001 is 5 on paper and may be 4.999… in floating point.
    return max(math.floor(count * (1 + 1e-12)), 1)


def largest_that_fits(available: list[int], shares: list[float]) -> int:
    """The largest n_max for which every class has its samples."""
    return min(math.floor(n / share + 1e-9) for n, share in zip(available, shares, strict=True))


def imbalanced_subset(
    labels: Tensor,
    classes: int,
    ratio: float,
    *,
    profile: str = "exponential",
    minority: float = 0.5,
    largest: int | None = None,
    order: str = "label",
    seed: int = 0,
) -> Tensor:
    """The samples of an imbalanced subset: exactly `class_counts` of each class, drawn at random.

    Args:
        labels: classes of all samples ``(N,)``, int64.
        classes: C.
        ratio, profile, minority: see `class_counts`.
        largest: n_max; by default as many as the classes can give.
        order: which class is the largest, and so on down: "label", class 0 first, or "random".
        seed: of the draw, and of a random order.

    Returns:
        Indices ``(n,)``, int64, increasing, on the labels' device.

    Raises:
        ddnkit.InputError: a class has fewer samples than it is to keep; the text names it.
    """
    generator = torch.Generator().manual_seed(seed)
    available = torch.bincount(labels, minlength=classes).tolist()
    ranked = torch.arange(classes)
    if order == "random":
        ranked = torch.randperm(classes, generator=generator)
    shares = [0.0] * classes
    for place, share in zip(
        ranked.tolist(), _shares(classes, ratio, profile, minority), strict=True
    ):
        shares[place] = share
    if largest is None:
        largest = largest_that_fits(available, shares)
    kept = []
    # On the CPU whatever the device, so that the same seed chooses the same samples everywhere.
    where = labels.cpu()
    for label, (share, there) in enumerate(zip(shares, available, strict=True)):
        wanted = _round_down(largest * share)
        if wanted > there:
            raise InputError(
                f"class {label} is to keep {wanted} samples and has {there}: lower "
                f"imbalance.largest ({largest}), or leave it out for the largest that fits"
            )
        own = (where == label).nonzero().squeeze(-1)
        kept.append(own[torch.randperm(there, generator=generator)[:wanted]])
    return torch.cat(kept).sort().values.to(labels.device)


def mix(
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
            yield mix(x, y, x2, y2, self._lambda(plan), self.classes)

    def evaluation(
        self, split: Split, batch: int, share: Share = _WHOLE, index: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Data.evaluation`: nothing is mixed."""
        return self._data.evaluation(split, batch, share, index)

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
