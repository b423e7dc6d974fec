"""The pipeline of Deep RFM: its sections, and the columns of a row for each layer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import pydantic
from ddnkit_train.settings import DataSettings
from pydantic import Field, PositiveFloat, PositiveInt

from ddnkit import Doubt, Job, Pipeline, Settings, Table, component

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..feature_maps import FeatureMap
    from ..kernels import Kernel

_SMOKE_SAMPLES, _SMOKE_LAYERS, _SMOKE_WIDTH = 300, 3, 256
#: Up to so many training samples float64 costs little.
_FLOAT64_SAMPLES = 10_000
_AUGMENTATION = ("flip", "crop", "rotation")


class KernelSettings(Settings):
    """A kernel of two samples."""

    name: Literal["laplace", "gaussian", "l1_laplace"] = Field(
        default="laplace",
        description="'laplace': exp(−‖x − z‖/L); 'gaussian': exp(−‖x − z‖²/(2L²)); 'l1_laplace': "
        "exp(−‖x − z‖₁/L).",
    )
    bandwidth: PositiveFloat = Field(default=2.0, description="L.")

    def build(self) -> Kernel:
        """The kernel."""
        from ..kernels import Gaussian, L1Laplace, Laplace

        kinds: dict[str, Callable[[float], Kernel]] = {
            "laplace": Laplace,
            "gaussian": Gaussian,
            "l1_laplace": L1Laplace,
        }
        return kinds[self.name](self.bandwidth)


class FourierKernelSettings(KernelSettings):
    """The kernel that random Fourier features have on average."""

    name: Literal["laplace", "gaussian", "l1_laplace"] = Field(
        default="l1_laplace", description="As for the predictors."
    )
    bandwidth: PositiveFloat = Field(
        default=20.0,
        description="L. The paper gives σ = 0.05: the scale of the frequencies, L = 1/σ. With "
        "L = 0.05 all features are noise.",
    )


class FeatureMapSettings(Settings):
    """The random features between two layers."""

    name: Literal["relu", "cosine", "identity"] = Field(
        default="relu",
        description="'relu': max(Wx, 0), W normal; 'cosine': random Fourier features cos(Wx + b) of "
        "`kernel`; 'identity': none.",
    )
    width: PositiveInt | None = Field(
        default=None, description="Number of features; default: 1024 of relu, 4096 of cosine."
    )
    kernel: FourierKernelSettings = Field(
        default=FourierKernelSettings(), description="Of cosine: what the features approximate."
    )

    @pydantic.model_validator(mode="after")
    def _has_a_width(self) -> FeatureMapSettings:
        if self.name == "identity" and self.width is not None:
            raise ValueError("identity has no width: its features are what it is given")
        return self

    def doubts(self) -> Iterable[Doubt]:
        """See `Settings.doubts`."""
        if self.name != "cosine":
            yield Doubt("kernel", f"does nothing: {self.name} has no kernel", idle=True)

    def build(self, *, smoke: bool = False) -> FeatureMap:
        """The distribution of maps; ``smoke`` narrows it."""
        from ..feature_maps import FourierFeatures, IdentityMap, ReLUFeatures

        if self.name == "identity":
            return IdentityMap()
        width = self.width or {"relu": 1024, "cosine": 4096}[self.name]
        width = min(width, _SMOKE_WIDTH) if smoke else width
        if self.name == "relu":
            return ReLUFeatures(width)
        return FourierFeatures(self.kernel.build(), width)


class DeepRFMCollapse(Pipeline):
    """Deep recursive feature machines (Algorithm 1): collapse and accuracy layer by layer."""

    # A row a layer: DNC of X_l, X_l M_l^{1/2} and Φ_l of that; accuracies of the predictor f_l, in per
    # cent; how its equations were solved: `rank` where by eigenvalues, `iterations` where by conjugate
    # gradients, `solved` 1 or 0.
    columns: ClassVar[tuple[str, ...]] = (
        "epoch",
        "step",
        "dnc1_input",
        "dnc1_agop",
        "dnc1_features",
        "dnc2_input",
        "dnc2_agop",
        "dnc2_features",
        "train_top1",
        "test_top1",
        "residual",
        "solved",
        "rank",
        "iterations",
        "seconds",
        "samples",
        "test_samples",
    )
    resumable: ClassVar[bool] = True

    data: DataSettings = component(
        "datasets",
        description="Images held in memory. They are taken as they are stored, flattened: what the "
        "section says of batches, augmentation and standardisation does not apply.",
    )
    samples: PositiveInt = Field(
        default=50_000, description="Take the first so many training samples, or all if fewer."
    )
    test_samples: PositiveInt | None = Field(
        default=None, description="Take the first so many test samples; default: all."
    )
    standardise: bool = Field(
        default=True,
        description="Shift and scale each feature by the training samples' mean and deviation; one "
        "that never varies becomes 0.",
    )
    kernel: KernelSettings = Field(
        default=KernelSettings(), description="Of the predictors, in all layers."
    )
    features: FeatureMapSettings = Field(
        default=FeatureMapSettings(), description="The feature map after each AGOP, drawn anew."
    )
    layers: PositiveInt = Field(
        default=19, description="How many inputs X_1, X_2, … are predicted from and measured."
    )
    ridge: float = Field(default=0.0, ge=0, description="γ of the kernel regressions.")
    labels: Literal["plus_minus", "one_hot"] = Field(
        default="plus_minus", description="Targets: 1 for the own class, else −1 or 0."
    )
    precision: Literal["auto", "float32", "float64"] = Field(
        default="auto",
        description="Of samples, coefficients and AGOP; kernel equations are solved in float64 in "
        f"any case. 'auto': float64 up to {_FLOAT64_SAMPLES:,} training samples, else float32.",
    )
    solver: Literal["auto", "cholesky", "eigh", "iterative"] = Field(
        default="auto", description="Of the kernel equations; see ddnkit_rfm.KernelRegression."
    )
    memory: PositiveInt | None = Field(
        default=None,
        description="Bytes that a step may take; default: half of what the device has free.",
    )
    gram_layers: tuple[PositiveInt, ...] = Field(
        default=(1, 3, 7, 13, 19),
        description="Layers l whose Gram matrix is drawn: that of the data for 1, otherwise of what "
        "the AGOP of layer l − 1 makes of its input. Those above `layers` are left out.",
    )

    def doubts(self) -> Iterable[Doubt]:
        """See `Settings.doubts`."""
        augmented = [key for key in _AUGMENTATION if getattr(self.data, key, None)]
        for key in ("batch_size", "sampler", "standardise", *augmented):
            text = "does nothing: Deep RFM takes samples as they are stored, all at once"
            yield Doubt(f"data.{key}", text, idle=True)
        late = [layer for layer in self.gram_layers if layer > self.layers]
        if late:
            text = f"there is no layer {', '.join(map(str, late))}: the last one is {self.layers}"
            yield Doubt("gram_layers", text)

    def prepare(self, *, download: bool) -> None:
        """See that the data are there, and fetch them where that is asked for."""
        self.data.locate(download=download)
        if download:
            # Here and once, not in each of several jobs.
            self.data.build(seed=0, smoke=False, download=True)

    def run(self, job: Job) -> None:
        """Run one variant with one seed, from the layer after the last one that was saved.

        Raises:
            ddnkit.InputError: the data are not held in memory, have no features, or a class no sample.
        """
        from ..deep_rfm_run import run_layers

        run_layers(self, job)

    def taken(self, available: int, *, smoke: bool) -> int:
        """How many of the training samples there are to take."""
        return min(self.samples, available, _SMOKE_SAMPLES if smoke else available)

    def depth(self, *, smoke: bool) -> int:
        """How many layers to run."""
        return min(self.layers, _SMOKE_LAYERS) if smoke else self.layers

    def dtype(self, samples: int) -> Literal["float32", "float64"]:
        """The precision for so many training samples."""
        if self.precision != "auto":
            return self.precision
        return "float64" if samples <= _FLOAT64_SAMPLES else "float32"

    def figures(self, folder: Path) -> list[Path]:
        """DNC1 and DNC2, Gram matrices, and accuracies by layer."""
        from ..deep_rfm_figures import draw_deep_rfm

        return draw_deep_rfm(folder)

    def caption(self, figure: Path) -> str:
        """What a figure shows."""
        from ..deep_rfm_figures import CAPTIONS

        return CAPTIONS[figure.stem]

    def tables(self, folder: Path) -> list[Table]:
        """What AGOP and feature map do to DNC1, and accuracies by layer."""
        from ..deep_rfm_tables import tables

        return tables(folder)
