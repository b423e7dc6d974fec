"""This plugin's pipelines, what a recipe may say of them, and their paper; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pydantic
from ddnkit_train.settings import Classification, DataSettings
from pydantic import Field, PositiveFloat, PositiveInt

from ddnkit import (
    Component,
    Doubt,
    InputError,
    Job,
    Paper,
    Pipeline,
    PublishedFigure,
    Settings,
    Table,
    component,
    import_object,
)
from ddnkit.renamed import OldMethod

from .network_columns import COLUMNS

if TYPE_CHECKING:
    from ddnkit_train import Data, Model

#: Of a kernel regression: how its equations are solved, and how labels become its targets.
Solver = Literal["auto", "cholesky", "eigh", "iterative"]
Coding = Literal["plus_minus", "one_hot"]
_KernelName = Literal["laplace", "gaussian", "l1_laplace"]

_SMOKE_SAMPLES, _SMOKE_LAYERS = 300, 3
#: Up to this number of training samples, float64 costs little.
_FLOAT64_SAMPLES = 10_000
_AUGMENTATION = ("flip", "crop", "rotation")
#: The most samples of a kernel that a descent, which projects it tens of thousands of times, can take.
_LARGEST_KERNEL = 50


class KernelSettings(Component):
    """A kernel of two samples."""

    builder = "ddnkit_rfm.kernels:build_kernel"

    name: _KernelName = Field(
        default="laplace",
        description="'laplace': exp(−‖x − z‖/L); 'gaussian': exp(−‖x − z‖²/(2L²)); 'l1_laplace': "
        "exp(−‖x − z‖₁/L).",
    )
    bandwidth: PositiveFloat = Field(default=2.0, description="L.")


class FourierKernelSettings(KernelSettings):
    """The kernel that random Fourier features approximate."""

    name: _KernelName = Field(default="l1_laplace", description="As for the predictors.")
    bandwidth: PositiveFloat = Field(
        default=20.0,
        description="L. The paper's σ = 0.05 is the scale of the frequencies, L = 1/σ. With "
        "L = 0.05 all features would be noise.",
    )


class FeatureMapSettings(Component):
    """The random features between two layers."""

    builder = "ddnkit_rfm.feature_maps:build_feature_map"

    name: Literal["relu", "cosine", "identity"] = Field(
        default="relu",
        description="'relu': max(Wx, 0), W normal; 'cosine': random Fourier features cos(Wx + b) of "
        "`kernel`; 'identity': none.",
    )
    width: PositiveInt | None = Field(
        default=None, description="Number of features; default: 1024 of relu, 4096 of cosine."
    )
    kernel: FourierKernelSettings = Field(
        default=FourierKernelSettings(),
        description="For cosine: the kernel that the features approximate.",
    )

    @pydantic.model_validator(mode="after")
    def _has_a_width(self) -> FeatureMapSettings:
        if self.name == "identity" and self.width is not None:
            raise ValueError("identity has no width: its features are its inputs")
        return self

    def doubts(self) -> Iterable[Doubt]:
        """See `Settings.doubts`."""
        if self.name != "cosine":
            yield Doubt("kernel", f"does nothing: {self.name} has no kernel", idle=True)


class DeepRFMCollapse(Pipeline):
    """Deep recursive feature machines (Algorithm 1): collapse and accuracy layer by layer."""

    # One row for each layer: DNC of X_l, X_l M_l^{1/2} and Φ_l of that; accuracies of the predictor f_l in
    # per cent; how its equations were solved: `rank` if by eigenvalues, `iterations` if by conjugate
    # gradients, `solved` is 1 or 0.
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
        description="Images held in memory. They are used as they are stored, flattened: the section's "
        "keys for batches, augmentation and standardisation have no effect.",
    )
    samples: PositiveInt = Field(
        default=50_000,
        description="Use this many training samples, the first ones, or all if there are fewer.",
    )
    test_samples: PositiveInt | None = Field(
        default=None, description="Use this many test samples, the first ones; default: all."
    )
    standardise: bool = Field(
        default=True,
        description="Shift and scale each feature by the training samples' mean and deviation; one "
        "that never varies becomes 0.",
    )
    kernel: KernelSettings = Field(
        default=KernelSettings(), description="The kernel of the predictors, in all layers."
    )
    features: FeatureMapSettings = Field(
        default=FeatureMapSettings(),
        description="The feature map after each AGOP, drawn anew for each layer.",
    )
    layers: PositiveInt = Field(
        default=19, description="How many inputs X_1, X_2, … are predicted from and measured."
    )
    ridge: float = Field(default=0.0, ge=0, description="γ of the kernel regressions.")
    labels: Coding = Field(
        default="plus_minus",
        description="Targets: 1 for a sample's own class, otherwise −1 (plus_minus) or 0 (one_hot).",
    )
    precision: Literal["auto", "float32", "float64"] = Field(
        default="auto",
        description="Of samples, coefficients and AGOP; kernel equations are always solved in float64. "
        f"'auto': float64 up to {_FLOAT64_SAMPLES:,} training samples, else float32.",
    )
    solver: Solver = Field(
        default="auto",
        description="How kernel equations are solved; see ddnkit_rfm.KernelRegression.",
    )
    memory: PositiveInt | None = Field(
        default=None,
        description="Bytes that a step may use; default: half of the device's free memory.",
    )
    gram_layers: tuple[PositiveInt, ...] = Field(
        default=(1, 3, 7, 13, 19),
        description="Layers l whose Gram matrix is drawn: that of the data for 1, otherwise of the "
        "input of layer l − 1 times the root of its AGOP. Layers above `layers` are left out.",
    )

    def doubts(self) -> Iterable[Doubt]:
        """See `Settings.doubts`."""
        augmented = [key for key in _AUGMENTATION if getattr(self.data, key, None)]
        for key in ("batch_size", "sampler", "standardise", *augmented):
            text = "does nothing: Deep RFM uses samples as they are stored, all at once"
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
        import_object("ddnkit_rfm.deep_rfm_run:run_layers")(self, job)

    taken: ClassVar[OldMethod] = OldMethod("sample_count")
    depth: ClassVar[OldMethod] = OldMethod("layer_count")

    def sample_count(self, available: int, *, smoke: bool) -> int:
        """How many of the available training samples are used."""
        return min(self.samples, available, _SMOKE_SAMPLES if smoke else available)

    def layer_count(self, *, smoke: bool) -> int:
        """How many layers are run."""
        return min(self.layers, _SMOKE_LAYERS) if smoke else self.layers

    def dtype(self, samples: int) -> Literal["float32", "float64"]:
        """The precision for so many training samples."""
        if self.precision != "auto":
            return self.precision
        return "float64" if samples <= _FLOAT64_SAMPLES else "float32"

    def figures(self, folder: Path) -> list[Path]:
        """DNC1 and DNC2, Gram matrices, and accuracies by layer."""
        return import_object("ddnkit_rfm.deep_rfm_report:draw_deep_rfm")(folder)

    def caption(self, figure: Path) -> str:
        """What a figure shows."""
        return import_object("ddnkit_rfm.deep_rfm_report:CAPTIONS")[figure.stem]

    def tables(self, folder: Path) -> list[Table]:
        """What AGOP and feature map do to DNC1, and accuracies by layer."""
        return import_object("ddnkit_rfm.deep_rfm_report:tables")(folder)


#: The paper's NFA correlation at the end, by data set and network.
_NFA: dict[tuple[object, object], str] = {
    ("mnist", "mlp"): "0.74 ± 0.13",
    ("cifar10", "resnet18"): "0.74 ± 0.17",
}


class AGOPNeuralCollapse(Paper):
    """Average gradient outer product as a mechanism for deep neural collapse (NeurIPS 2024): its NFA.

    The correlation that it prints is of five hidden layers of width 512, trained by SGD on the
    squared error, for a perceptron on MNIST and ResNet-18 on CIFAR-10. Start, length and rates of the
    training are not compared.
    """

    title: ClassVar[str] = (
        "“Average gradient outer product as a mechanism for deep neural collapse” (NeurIPS 2024)"
    )

    def published(self, settings: Mapping[str, Any]) -> Iterable[PublishedFigure]:
        """Section 6: the NFA correlation over all layers and three seeds, as ``nfa``."""
        data, backbone, loss, optimizer = (
            settings.get(section) or {} for section in ("data", "backbone", "loss", "optimizer")
        )
        network = backbone.get("name")
        prefix = "" if network == "mlp" else "mlp_"
        layers = backbone.get(f"{prefix}depth"), backbone.get(f"{prefix}width")
        trained = loss.get("name"), optimizer.get("name")
        text = _NFA.get((data.get("name"), network))
        if text and (*layers, *trained) == (5, 512, "mean_squared_error", "sgd"):
            source = f"section 6 of {self.title}, over all layers and three seeds"
            yield PublishedFigure("nfa", text, source)


class LayerSettings(Settings):
    """What is measured of the fully connected layers at an evaluation."""

    samples: PositiveInt = Field(
        default=2000,
        description="Training samples that DNC1 and the objective are measured on, each class in "
        "proportion. The features of all of them are held in memory.",
    )
    nfa: bool = Field(
        default=True, description="Correlate WᵀW with the root of the AGOP of each layer's input."
    )
    nfa_samples: PositiveInt = Field(
        default=500, description="How many of those samples the AGOP is averaged over."
    )

    def doubts(self) -> Iterable[Doubt]:
        """See `Settings.doubts`."""
        if not self.nfa:
            yield Doubt("nfa_samples", "does nothing: nfa is false", idle=True)
        elif self.nfa_samples > self.samples:
            text = f"there are only the {self.samples} of layers.samples, and all of them are used"
            yield Doubt("nfa_samples", text)


class LayerwiseCollapse(Classification):
    """Train a network; measure collapse through each fully connected layer, and its feature matrix.

    The layers are the last five `Linear` ones of the backbone, or as many as it has; the classifier is
    not one of them. DNC1 = tr Σ_W / tr Σ_B of layer k, W = USVᵀ, is measured of its input Φ(X)
    (``dnc1_input_k``), of SVᵀΦ(X) (``dnc1_right_k``) and of relu(WΦ(X)) (``dnc1_output_k``), the ReLU
    whether or not the network has one there; ``nfa_k`` is the correlation of WᵀW with the square root of
    the AGOP of the logits with respect to Φ(X). ``objective`` is the loss that is minimised.

    Source: *Average gradient outer product as a mechanism for deep neural collapse* (NeurIPS 2024),
    section 6.
    """

    columns: ClassVar[tuple[str, ...]] = (*Classification.columns, "objective", *COLUMNS)

    layers: LayerSettings = Field(
        default=LayerSettings(), description="What is measured of the fully connected layers."
    )

    def run(self, job: Job) -> None:
        """Train one variant with one seed.

        Raises:
            ddnkit.InputError: as for a classification; the backbone has no fully connected layer, or
                its weights are split over several processes.
        """
        if self.engine.strategy == "fsdp" and job.world > 1:
            raise InputError(
                "engine.strategy: fsdp splits every W over the processes, but singular values and "
                "AGOPs need the whole W; use ddp"
            )
        super().run(job)

    def measure(self, model: Model, data: Data) -> dict[str, float]:
        """The objective and the figures of the fully connected layers; see the class.

        Raises:
            ddnkit.InputError: the backbone has no fully connected layer.
        """
        measure = import_object("ddnkit_rfm.network_metrics:measure_layers")
        return measure(self, model, data)

    def figures(self, folder: Path) -> list[Path]:
        """The panels of a classification, then those of its layers."""
        draw = import_object("ddnkit_rfm.network_report:draw_layers")
        return [*super().figures(folder), *draw(folder)]

    def caption(self, figure: Path) -> str:
        """What a panel shows."""
        captions = import_object("ddnkit_rfm.network_report:CAPTIONS")
        return captions.get(figure.stem) or super().caption(figure)

    def tables(self, folder: Path) -> list[Table]:
        """The tables of a classification, the NFA at the end, and where DNC1 falls."""
        tables = import_object("ddnkit_rfm.network_report:tables")
        return [*super().tables(folder), *tables(folder)]


class RFMTheory(Pipeline):
    """Why Deep RFM collapses: the rate of Theorem 5.3, or the optimum of Theorem 5.4, in numbers."""

    columns: ClassVar[tuple[str, ...]] = (
        "epoch",
        "step",
        "distance",
        "published_distance",
        "factor",
        "rate",
        "bound",
        "value",
        "least",
        "increase",
        "descent_distance",
    )

    ratio: PositiveFloat | None = Field(
        default=None, description="λ_k/λ_map: simulate the recursion of Theorem 5.3."
    )
    ridge: PositiveFloat | None = Field(
        default=None, description="μ: test the optimum of Theorem 5.4. Give either this or ratio."
    )
    classes: int = Field(default=5, ge=2, description="K, the number of classes.")
    samples: PositiveInt = Field(default=20, description="n, the samples of each class.")
    feature_map: PositiveFloat = Field(
        default=0.1, description="λ_map: the feature map's kernel is linear plus λ_map I."
    )
    dimension: PositiveInt = Field(
        default=200, description="d of the data, at least K·n (assumption 5.1)."
    )
    noise: PositiveFloat = Field(
        default=2.0,
        description="Standard deviation of the data around their class means, whose own is 1, before "
        "each sample is divided by its norm.",
    )
    layers: int = Field(
        default=12, ge=2, description="L, how often AGOP and feature map are applied."
    )
    draws: PositiveInt = Field(
        default=1000, description="Number of random kernels that the optimum is compared with."
    )
    descents: PositiveInt = Field(
        default=3, description="How many of them a projected gradient descent starts from."
    )

    @pydantic.model_validator(mode="after")
    def _is_one_theorem(self) -> RFMTheory:
        if (self.ratio is None) == (self.ridge is None):
            given = "neither" if self.ratio is None else "both"
            raise ValueError(f"give either ratio or ridge; {given} is given")
        N = self.classes * self.samples
        if self.ratio is not None and self.dimension < N:
            raise ValueError(
                f"dimension {self.dimension} is below the {N} samples, which could not have full rank"
            )
        if self.ridge is not None and N > _LARGEST_KERNEL:
            raise ValueError(
                f"{N} samples are more than the {_LARGEST_KERNEL} that descents can take"
            )
        if self.descents > self.draws:
            raise ValueError(f"{self.descents} descents cannot start from {self.draws} draws")
        return self

    def doubts(self) -> Iterable[Doubt]:
        """See `Settings.doubts`."""
        simulated = self.ratio is not None
        other = (
            ("draws", "descents") if simulated else ("feature_map", "dimension", "noise", "layers")
        )
        for key in other:
            text = f"does nothing with {'ratio' if simulated else 'ridge'}"
            yield Doubt(key, f"{text}: it belongs to the other theorem", idle=True)

    def run(self, job: Job) -> None:
        """Record a row for each layer l of 2…L+1 (Theorem 5.3), or one row (Theorem 5.4)."""
        import_object("ddnkit_rfm.theory_run:run_theorem")(self, job)

    def figures(self, folder: Path) -> list[Path]:
        """The distance to the collapsed Gram matrix by layer, if it was simulated."""
        return import_object("ddnkit_rfm.theory_report:figures")(folder)

    def caption(self, figure: Path) -> str:
        """What the figure shows."""
        return import_object("ddnkit_rfm.theory_report:CAPTION")

    def tables(self, folder: Path) -> list[Table]:
        """The derived rates beside the measured ones, and the optimum beside what was tried."""
        return import_object("ddnkit_rfm.theory_report:tables")(folder)
