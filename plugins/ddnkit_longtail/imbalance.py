"""Imbalanced subsets of a data set: how many samples each class keeps, and which."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ddnkit import InputError

PROFILES = ("exponential", "step")


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
    return [_rounded_down(largest * share) for share in _shares(classes, ratio, profile, minority)]


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


def _rounded_down(count: float) -> int:
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
        wanted = _rounded_down(largest * share)
        if wanted > there:
            raise InputError(
                f"class {label} is to keep {wanted} samples and has {there}: lower "
                f"imbalance.largest ({largest}), or leave it out for the largest that fits"
            )
        own = (where == label).nonzero().squeeze(-1)
        kept.append(own[torch.randperm(there, generator=generator)[:wanted]])
    return torch.cat(kept).sort().values.to(labels.device)
