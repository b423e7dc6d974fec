"""The long-tailed pipeline: classification on an imbalanced subset, with mixup if asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ddnkit_train import Classification
from ddnkit_train.settings import MetricsSection
from pydantic import Field, InstanceOf

from ddnkit import Job, Table, component

from .imbalance import ImbalanceSettings, MixupSettings

if TYPE_CHECKING:
    from ddnkit_train import Data


class LongTailed(Classification):
    """Train on classes of unequal size; measure how the frequent and the rare ones fare."""

    imbalance: ImbalanceSettings = Field(
        default=ImbalanceSettings(), description="Which of the training samples are kept."
    )
    mixup: MixupSettings = Field(
        default=MixupSettings(), description="Whether training samples are mixed in pairs."
    )
    metrics: InstanceOf[MetricsSection] = component(
        "metrics", "long_tail", description="Figures measured on training and test set."
    )

    def load_data(self, job: Job) -> Data:
        """The data of a job: the subset of those of the recipe, and mixed."""
        from ..imbalance import imbalanced_subset
        from ..mixup import MixedData

        data, of = super().load_data(job), self.imbalance
        if of.ratio is not None:
            kept = imbalanced_subset(
                data.labels,
                data.classes,
                of.ratio,
                profile=of.profile,
                minority=of.minority,
                # Synthetic samples are fewer than the real ones.
                largest=None if job.smoke else of.largest,
                order=of.order,
                seed=of.seed,
            )
            data = data.subset(kept)
        return MixedData(data, self.mixup.alpha) if self.mixup.alpha else data

    def figures(self, folder: Path) -> list[Path]:
        """The panels of a classification, then those of the long tail."""
        from ..figures import draw_long_tail

        return [*super().figures(folder), *draw_long_tail(folder)]

    def caption(self, figure: Path) -> str:
        """What a panel shows."""
        from ..captions import caption

        return caption(figure.stem) or super().caption(figure)

    def tables(self, folder: Path) -> list[Table]:
        """Those of a classification; accuracy by class size; how far the rare classes collapsed."""
        from ..tables import tables

        return [*super().tables(folder), *tables(folder)]
