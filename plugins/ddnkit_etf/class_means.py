"""Class means over mini-batches: what the nearest ETF is computed from (*GNC*, section 3.5).

Per batch, the mean of each class minus the batch's mean; over batches, an exponential moving average
    M_t = α_t M_batch + (1 − α_t) M_{t−1}        (eq. 9)
whose history is detached; then H̃ = M_t / ‖M_t‖_F. What the text and the published code settle
differently, or leave to balanced classes, are settings (docs/fidelity.md):

* Eq. 9 as printed averages normalised means, H̃_t = α_t H̃_batch + (1 − α_t) H̃_{t−1}, and its result
  is not of unit norm any more (``normalise="before"``). The code normalises after averaging.
* The formula is blind to how many samples a class has: all columns of H̃ weigh the same. Where classes
  are of unequal size the sum over *samples* of ‖h_i − m_{c(i)}‖² is another problem, linear in the n_c h̄_c
  in place of the h̄_c: ``weight="samples"`` multiplies each column by its class's share of the samples so
  far, times C.
* A class that the batch lacks keeps its average, zero until first seen (``absent="keep"``). Each class
  then has its own clock t: one first seen late starts from its own first mean and not from almost
  zero. The text puts the batch's mean in its place, so that its centred mean is "zero"; the code puts
  it in place of the *centred* mean ("global_mean"). Both average that in, and all classes share one
  clock. Where every batch holds every class, as stratified batches do, the three are the same.

Centred means may be zero: of a batch of one class or one sample, of equal features or features of length
zero. H̃ has no direction then. What is left of such means is rounding, of size 1e-9 or so, which bringing
them to unit norm would blow up; they count as zero (`ClassSums.rounding`), H̃ is zero and passes no
gradient, and the batch counts for nothing. So does one whose means are not finite; but these are returned,
so that nothing is hidden.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from ddnkit import settings_from

from .directions import safe_scale
from .reduction import ClassSums, class_sums
from .settings import MeansSettings


class ClassMeans(nn.Module):
    """Tracks centred class means of features.

    With `torch.distributed` set up, they are those of all processes' batches together.

    Args:
        feature_dim: d.
        classes: C.
        settings: how they are averaged.
        fields: of the settings, by keyword: ``alpha=0.1``, ``absent="zero"``.

    Buffers: ``means`` (d, C); ``counts`` (C,): how many batches a class was averaged over;
    ``samples`` (C,): how many of its samples were seen.

    Attributes:
        determined: whether the last H̃ has a direction, (), on the device of the features; False where
            it is zero, and before the first batch.
    """

    means: Tensor
    counts: Tensor
    samples: Tensor
    determined: Tensor

    def __init__(
        self,
        feature_dim: int,
        classes: int,
        settings: MeansSettings | float | None = None,
        **fields: object,
    ):
        super().__init__()
        if isinstance(settings, int | float):
            text = f"ClassMeans(d, C, {settings:g}) is now ClassMeans(d, C, alpha={settings:g})"
            warnings.warn(f"{text}; the old form goes with the next release", DeprecationWarning, 2)
            settings, fields = None, {"alpha": settings, **fields}
        self.settings = settings_from(MeansSettings, fields, settings)
        self.register_buffer("means", torch.zeros(feature_dim, classes))
        self.register_buffer("counts", torch.zeros(classes))
        self.register_buffer("samples", torch.zeros(classes))
        self.determined = torch.zeros((), dtype=torch.bool)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Add a batch, features (N, d) and labels (N,), to the means; returns H̃ (d, C).

        Differentiable in the features, through this batch's share. No device is waited for.
        """
        return self.update(class_sums(features, labels, self.means.shape[1]))

    def update(self, batch: ClassSums, centre: Tensor | None = None) -> Tensor:
        """The same for a batch given as its sums by class, minus ``centre`` (d,), by default its mean."""
        newest, counted = self._centre(batch, batch.mean() if centre is None else centre)
        rounding = batch.rounding()
        if self.settings.normalise == "before":
            newest, _, _ = _unit(newest, rounding)
            rounding = torch.zeros_like(rounding)
        alpha = self._alpha()
        averaged = alpha * newest + (1 - alpha) * self.means
        means = torch.where(counted, averaged, self.means)
        unit, size, self.determined = _unit(means, rounding)
        with torch.no_grad():
            # A batch that says nothing, or no number, leaves all as it was.
            kept = self.determined & (size < torch.inf)
            self.means.copy_(torch.where(kept, means, self.means))
            self.counts += counted & kept
            self.samples += batch.counts * kept
        if self.settings.weight == "samples":
            seen = self.samples.sum().clamp(min=torch.finfo(self.samples.dtype).tiny)
            weights = self.samples * len(self.samples) / seen
            means = means * weights
            # A class without a sample may be all that was apart (``absent="global_mean"``).
            unit, _, apart = _unit(means, rounding * weights.amax())
            self.determined = self.determined & apart
        return unit if self.settings.normalise == "after" else means

    def _centre(self, batch: ClassSums, centre: Tensor) -> tuple[Tensor, Tensor]:
        """The batch's centred class means (d, C), and the classes (C,) that they are averaged for."""
        present = batch.counts > 0
        mean = centre.unsqueeze(-1)
        instead = mean if self.settings.absent == "global_mean" else torch.zeros_like(mean)
        centred = torch.where(present, batch.class_means() - mean, instead)
        return centred, present if self.settings.absent == "keep" else torch.ones_like(present)

    def _alpha(self) -> Tensor:
        if self.settings.alpha is None:
            return (2 / (self.counts + 2)).clamp(min=1e-4)
        return torch.where(self.counts == 0, 1.0, self.settings.alpha)


def _unit(means: Tensor, rounding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """means/‖means‖, the norm but for a scale, and whether there is a direction; zero where there is none.

    There it has no gradient either.
    """
    scale = safe_scale(means.flatten()).squeeze(-1)
    means = means * scale
    size = means.norm()
    value = size.detach()
    determined = ~(value <= rounding * scale)  # true for NaN, which is no zero
    # Not 0 for 0, whose reciprocal has no gradient either.
    return means / torch.where(determined, size, torch.inf), value, determined
