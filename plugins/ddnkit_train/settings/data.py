"""Data sets: the ``data`` section of a recipe."""

from __future__ import annotations

import abc
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

import pydantic
from pydantic import Field, PositiveInt

from ddnkit import Doubt, Settings

if TYPE_CHECKING:
    from ..data import Data, Dataset


class DataSettings(Settings, abc.ABC):
    """Base of all data sets: how the samples are grouped into batches."""

    batch_size: PositiveInt | Literal["full"] = Field(
        default=256,
        description="Samples a step at most, or 'full' for the whole training set. An epoch has "
        "ceil(samples / batch_size) steps, whose sizes differ by at most one sample.",
    )
    sampler: Literal["stratified", "shuffled"] = Field(
        default="stratified",
        description="'stratified': every class has its share of every batch, an equal one where "
        "the classes have equally many samples; 'shuffled': a random order. The same for every "
        "head: one that alone had stratified batches would be favoured.",
    )

    def doubts(self) -> Iterable[Doubt]:
        """See `Settings.doubts`."""
        if self.batch_size == "full":
            yield Doubt("sampler", "does nothing: every step has all samples", idle=True)

    @abc.abstractmethod
    def build(self, *, seed: int, smoke: bool, download: bool = False) -> Data:
        """The data, on the CPU; with ``smoke`` small synthetic ones of the same shapes.

        ``download`` allows missing files to be fetched to the user's data folder.
        """

    def locate(self, *, download: bool = False) -> None:
        """Check, before anything else is done, that the files the data need exist.

        It is quick, and opens none of them. By default data need no files.

        Args:
            download: files that can be fetched may be missing.

        Raises:
            ddnkit.InputError: files are missing; the text says which, where they were looked for,
                and what to do.
        """
        return None


class FreeFeaturesData(DataSettings):
    """Indices in place of images: the data of the unconstrained-feature model (UFM).

    Sample i is the index i, its label i modulo the number of classes; there is no test set.
    """

    batch_size: PositiveInt | Literal["full"] = Field(
        default="full", description="Samples a step at most, or 'full' for all of them."
    )
    classes: int = Field(default=10, ge=2, description="Number of classes C.")
    samples: PositiveInt = Field(default=1000, description="Number of free features N, at least C.")

    @pydantic.model_validator(mode="after")
    def _every_class_has_a_sample(self) -> FreeFeaturesData:
        if self.samples < self.classes:
            raise ValueError(f"{self.samples} samples are fewer than {self.classes} classes")
        return self

    def build(self, *, seed: int, smoke: bool, download: bool = False) -> Dataset:
        """The indices 0…N−1 with balanced labels; already synthetic, so ``smoke`` keeps them."""
        from ..free_features import free_features_data

        return free_features_data(self.classes, self.samples)


class ImageSettings(DataSettings, abc.ABC):
    """Base of the data sets of real images."""

    standardise: Literal["global", "channel", "pixel", "none"] = Field(
        default="global",
        description="Subtract the mean and divide by the standard deviation of the training "
        "images: of all values together ('global'), of each 'channel', or of each 'pixel'.",
    )


class _SplitImages(ImageSettings, abc.ABC):
    """Base of the data sets that are split here."""

    data_seed: int = Field(
        default=0,
        ge=0,
        description="Seed of the split into training and test samples and of the choice of pairs: "
        "the data are the same for all seeds of the recipe.",
    )


class Digits(_SplitImages):
    """The UCI handwritten digits that scikit-learn ships: 1,797 images of 8×8, 10 classes."""

    test_fraction: float = Field(
        default=0.2, gt=0, lt=1, description="Share of each class held out for testing."
    )

    def build(self, *, seed: int, smoke: bool, download: bool = False) -> Dataset:
        """Images ``(N, 1, 8, 8)``, split stratified by class."""
        from ..digits import digits

        return digits(self, smoke=smoke)


class DigitPairs(_SplitImages):
    """Two UCI digits side by side, 8×16: 100 classes (label 10·left + right) of real images.

    The digits of the test pairs are disjoint from those of the training pairs.
    """

    test_fraction: float = Field(
        default=0.2, gt=0, lt=1, description="Share of the single digits that test pairs draw from."
    )
    train_per_class: PositiveInt = Field(default=200, description="Training pairs of each class.")
    test_per_class: PositiveInt = Field(default=20, description="Test pairs of each class.")

    def build(self, *, seed: int, smoke: bool, download: bool = False) -> Dataset:
        """Images ``(N, 1, 8, 16)``, balanced."""
        from ..digits import digit_pairs

        return digit_pairs(self, smoke=smoke)
