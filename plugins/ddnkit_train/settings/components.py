"""What the sections of a recipe may name: data sets, backbones, losses and optimisers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ddnkit import Component, Doubt

if TYPE_CHECKING:
    from torch import nn

    from ..data import Data

_LearningRate = Annotated[float, Field(gt=0, description="Learning rate.")]
_WeightDecay = Annotated[float, Field(ge=0, description="Coefficient of the L2 penalty.")]
_Beta = Annotated[float, Field(ge=0, lt=1)]
_Betas = Annotated[
    tuple[_Beta, _Beta], Field(description="Decay of the running gradient and of its square.")
]


class DataSettings(Component):
    """Base of all data sets: how the samples are grouped into batches.

    A subclass names its ``builder``, or overrides `build`.
    """

    builder: ClassVar[str]

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

    def build(self, *, seed: int, smoke: bool, download: bool = False) -> Data:
        """The data, on the CPU; with ``smoke`` small synthetic ones of the same shapes.

        ``download`` allows missing files to be fetched to the user's data folder.
        """
        built: Data = super().build(seed=seed, smoke=smoke, download=download)
        return built

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

    builder = "ddnkit_train.small_data:free_features"

    batch_size: PositiveInt | Literal["full"] = Field(
        default="full", description="Samples a step at most, or 'full' for all of them."
    )
    classes: int = Field(default=10, ge=2, description="Number of classes C.")
    samples: PositiveInt = Field(default=1000, description="Number of free features N, at least C.")

    @model_validator(mode="after")
    def _every_class_has_a_sample(self) -> FreeFeaturesData:
        if self.samples < self.classes:
            raise ValueError(f"{self.samples} samples are fewer than {self.classes} classes")
        return self


class ImageSettings(DataSettings):
    """Base of the data sets of real images."""

    standardise: Literal["global", "channel", "pixel", "none"] = Field(
        default="global",
        description="Subtract the mean and divide by the standard deviation of the training "
        "images: of all values together ('global'), of each 'channel', or of each 'pixel'.",
    )


class _SplitDigits(ImageSettings):
    """Base of the data sets of UCI digits, whose test samples are split off here."""

    data_seed: int = Field(
        default=0,
        ge=0,
        description="Seed of the split into training and test samples and of the choice of pairs: "
        "the data are the same for all seeds of the recipe.",
    )
    test_fraction: float = Field(
        default=0.2,
        gt=0,
        lt=1,
        description="Share of the single digits of each class that is held out for testing.",
    )


class Digits(_SplitDigits):
    """The UCI handwritten digits that scikit-learn ships: 1,797 images of 8×8, 10 classes."""

    builder = "ddnkit_train.small_data:digits"


class DigitPairs(_SplitDigits):
    """Two UCI digits side by side, 8×16: 100 classes (label 10·left + right) of real images.

    Test pairs draw from the digits held out, which are in no training pair.
    """

    builder = "ddnkit_train.small_data:digit_pairs"

    train_per_class: PositiveInt = Field(default=200, description="Training pairs of each class.")
    test_per_class: PositiveInt = Field(default=20, description="Test pairs of each class.")


class BackboneSettings(Component):
    """Base of all feature extractors. A subclass names its ``builder``, or overrides `build`."""

    builder: ClassVar[str]

    #: Keys that scale the start of weights; AGD, which gives all weights its own, refuses them.
    start_scales: ClassVar[tuple[str, ...]] = ()

    def build(self, *, sample_shape: tuple[int, ...], samples: int) -> nn.Module:
        """A module with an attribute ``feature_dim``, from samples to features ``(B, feature_dim)``.

        Args:
            sample_shape: of one sample as the network sees it.
            samples: number of training samples.
        """
        built: nn.Module = super().build(sample_shape=sample_shape, samples=samples)
        return built

    def locate(self, *, download: bool = False) -> None:
        """Check, before anything else is done, that the files the network starts from exist.

        Args:
            download: files that can be fetched may be missing.

        Raises:
            ddnkit.InputError: files are missing; the text says which, where they were looked for,
                and what to do.
        """
        return None

    def start(self, backbone: nn.Module, *, download: bool = False) -> None:
        """Give a network that was built its weights from files, where it has such; not in a smoke run.

        Raises:
            ddnkit.InputError: files are missing, damaged, or do not fit the network.
        """
        return None


class FreeFeatures(BackboneSettings):
    """Features that are parameters themselves, one vector a sample (unconstrained features)."""

    builder = "ddnkit_train.backbones:free_features"

    dimension: PositiveInt = Field(default=512, description="Feature dimension d.")


class MLP(BackboneSettings):
    """A perceptron of layers of equal width with ReLU between them; the last gives the features."""

    builder = "ddnkit_train.backbones:mlp"
    start_scales = ("init_scale",)

    width: PositiveInt = Field(default=512, description="Units of each layer; feature dimension.")
    depth: PositiveInt = Field(default=4, description="Number of hidden weight matrices.")
    bias: bool = Field(
        default=False, description="Add a bias in each layer. AGD is defined for matrices alone."
    )
    rectify: bool = Field(
        default=False,
        description="ReLU after the last layer too: `depth` hidden layers below the classifier.",
    )
    init_scale: PositiveFloat | None = Field(
        default=None,
        description="Gain of Xavier's uniform start of the weights; small: feature learning. Default: "
        "torch's own start, which for a square matrix is a gain of 0.58. Not with AGD.",
    )


class CNN(BackboneSettings):
    """A small convolutional network: 3×3 convolution, batch norm, ReLU; then average pooling.

    Bias-free, its batch norm without affine parameters, so that AGD applies.
    """

    builder = "ddnkit_train.backbones:cnn"

    channels: tuple[PositiveInt, ...] = Field(
        default=(32, 64, 128),
        min_length=1,
        description="Channels of each stage; every stage halves the resolution. The last is the "
        "feature dimension.",
    )
    blocks: PositiveInt = Field(default=1, description="Convolutions in each stage.")


class CrossEntropy(Component):
    """Mean cross-entropy of the logits against the labels."""

    builder = "ddnkit_train.losses:cross_entropy"

    label_smoothing: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Weight of the uniform distribution in the targets. The columns train_loss "
        "and ce_gap are of the plain cross-entropy in any case.",
    )


class MeanSquaredError(Component):
    """Squared difference of the logits from their targets, its mean over samples and classes."""

    builder = "ddnkit_train.losses:mean_squared_error"

    off_target: float = Field(
        default=0.0,
        lt=1,
        description="Target of the classes that a sample is not of; that of its own is 1. 0: one-hot "
        "targets; −1: the ±1 of the Deep RFM paper.",
    )


class AGD(Component):
    """Automatic gradient descent (arXiv:2304.05187): no learning rate; needs a bias-free model."""

    builder = "ddnkit_train.optimizers:agd"

    gain: float = Field(
        default=1.0, gt=0, description="Factor of the automatic step; the GNC paper uses 10."
    )


class SGD(Component):
    """Stochastic gradient descent with momentum."""

    builder = "ddnkit_train.optimizers:sgd"

    lr: _LearningRate = 0.1
    momentum: _Beta = Field(default=0.9, description="Momentum factor.")
    nesterov: bool = Field(default=False, description="Nesterov's momentum.")
    weight_decay: _WeightDecay = 0.0

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> SGD:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class Adam(Component):
    """Adam."""

    builder = "ddnkit_train.optimizers:adam"

    lr: _LearningRate = 1e-3
    betas: _Betas = (0.9, 0.999)
    weight_decay: _WeightDecay = 0.0


class AdamW(Component):
    """Adam with decoupled weight decay."""

    builder = "ddnkit_train.optimizers:adamw"

    lr: _LearningRate = 1e-3
    betas: _Betas = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0, description="Decoupled weight decay.")] = 0.01
