"""The pipeline that measures DNC1 and the NFA in the fully connected layers of a network in training."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ddnkit_train import Classification
from pydantic import Field, PositiveInt

from ddnkit import Doubt, InputError, Job, Settings, Table, import_object

from ..network_columns import COLUMNS

if TYPE_CHECKING:
    from ddnkit_train import Data, Model


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
            yield Doubt(
                "nfa_samples", f"{self.nfa_samples} of {self.samples} samples are all of them"
            )


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

    columns: ClassVar[tuple[str, ...]] = (
        *Classification.columns,
        "objective",
        *COLUMNS,
    )

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
