"""What the sections of a long-tailed recipe may name: subsets and mixup, the head, losses and metrics."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

from ddnkit_etf.settings import FixedETFHead
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from ddnkit import Component, Doubt, Settings


class ImbalanceSettings(Settings):
    """An imbalanced subset of the training samples; all of them by default."""

    ratio: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="μ, samples of the smallest class over those of the largest; 1: equally many of "
        "each. Default: the data as they are.",
    )
    profile: Literal["exponential", "step"] = Field(
        default="exponential",
        description="'exponential': n_k = ⌊n_max μ^{k/(C−1)}⌋; 'step': n_max for the first classes, "
        "⌊n_max μ⌋ for the others. At least one sample each.",
    )
    minority: float = Field(
        default=0.5, gt=0, lt=1, description="Share of the classes that are small, of 'step' alone."
    )
    largest: PositiveInt | None = Field(
        default=None,
        description="n_max, samples of the largest class. Default: as many as all classes can give.",
    )
    order: Literal["label", "random"] = Field(
        default="label",
        description="Which class is the largest: class 0 and so on down, or random.",
    )
    seed: NonNegativeInt = Field(
        default=0,
        description="Of the choice of samples: the data are the same for all seeds of the recipe.",
    )

    def doubts(self) -> Iterable[Doubt]:
        """See `Settings.doubts`."""
        if self.ratio is None:
            for key in ("profile", "minority", "largest", "order", "seed"):
                text = "does nothing: without a ratio all samples are kept"
                yield Doubt(key, text, idle=True)
        elif self.ratio == 1:
            for key in ("profile", "minority", "order"):
                text = "does nothing: with ratio 1 all classes have equally many samples"
                yield Doubt(key, text, idle=True)
        elif self.profile != "step":
            yield Doubt("minority", f"does nothing with profile {self.profile}", idle=True)


class MixupSettings(Settings):
    """Training samples mixed in pairs, their labels with them."""

    alpha: NonNegativeFloat = Field(
        default=0.0,
        description="α of the Beta(α, α) that a batch's λ is drawn from; 0: nothing is mixed.",
    )


class BatchNormETFHead(Component):
    """A random simplex ETF that is never trained, on features after a batch norm, of fixed length."""

    builder = "ddnkit_longtail:BatchNormETFClassifier.with_lengths"

    e_w: float = Field(default=1.0, gt=0, description="E_W, squared length of classifier vectors.")
    e_h: float = Field(default=1.0, gt=0, description="E_H, squared length of features.")
    batch_norm: Literal["affine", "plain", "none"] = Field(
        default="affine",
        description="Batch norm of the features, before all else; 'affine': with a learned scale and "
        "shift, which AGD could not train.",
    )
    direction: Literal["haar", "canonical"] = Field(
        default="haar", description="A random frame, from the seed, or the first C axes."
    )

    def as_fixed(self) -> FixedETFHead:
        """The same in the terms of a fixed ETF on unit features."""
        return FixedETFHead(
            temperature=(self.e_w * self.e_h) ** 0.5,
            direction=self.direction,
            centre=False,
            batch_norm=self.batch_norm,
        )


class DotRegression(Component):
    """Squared difference of a feature's product with its class's ETF vector from the largest it can be."""

    builder = "ddnkit_longtail.objective:build_dot_regression"

    lengths: Literal["balanced", "equal"] = Field(
        default="balanced",
        description="Lengths of the classifier vectors while training: 'balanced': √((N/C)/n_c) of "
        "the head's, so that rare classes pull as hard as frequent ones; 'equal'. In evaluation "
        "they are equal.",
    )


class WeightedCrossEntropy(Component):
    """Cross-entropy with the samples of class c weighted by N/(C n_c): each class counts the same."""

    builder = "ddnkit_longtail.objective:build_weighted_cross_entropy"


class LongTail(Component):
    """The neural-collapse metrics; accuracy on frequent and rare classes; cosines between classes."""

    builder = "ddnkit_longtail.metrics:measure_long_tail"
    columns: ClassVar[tuple[str, ...]] = (
        "test_many",
        "test_medium",
        "test_few",
        "test_balanced",
        "hh_cos_mean",
        "hh_cos_std",
        "hw_cos_mean",
        "hw_cos_std",
        "hw_own_cos",
        "wh_distance",
        "test_hh_cos_mean",
        "test_hh_cos_std",
        "test_hw_cos_mean",
        "test_hw_cos_std",
        "test_hw_own_cos",
        "test_wh_distance",
        "worst_cos",
        "rare_angle",
    )

    many_above: PositiveInt = Field(
        default=100, description="Classes with more training samples than this are 'many'."
    )
    few_below: PositiveInt = Field(
        default=20, description="Classes with fewer training samples than this are 'few'."
    )

    @model_validator(mode="after")
    def _groups_are_apart(self) -> LongTail:
        if self.few_below > self.many_above + 1:
            raise ValueError(
                f"few_below {self.few_below} and many_above {self.many_above} overlap: a class of "
                f"{self.many_above + 1} samples would be in both groups"
            )
        return self
