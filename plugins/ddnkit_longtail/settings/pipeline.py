"""The long-tailed pipeline, classification on an imbalanced subset with mixup; and its paper."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ddnkit_train import Classification
from ddnkit_train.settings import MetricsSection
from pydantic import Field, InstanceOf

from ddnkit import Job, Paper, PublishedFigure, Table, component, import_object

from .components import ImbalanceSettings, LongTail, MixupSettings

if TYPE_CHECKING:
    from ddnkit_train import Data


#: Training images in all, by data set and imbalance ratio.
_TOTALS: dict[tuple[object, object], int] = {
    ("cifar10", 0.005): 11_203,
    ("cifar10", 0.01): 12_406,
    ("cifar10", 0.02): 13_996,
    ("cifar100", 0.005): 9_502,
    ("cifar100", 0.01): 10_847,
    ("cifar100", 0.02): 12_608,
}


class InducingNeuralCollapse(Paper):
    """Inducing Neural Collapse in Imbalanced Learning (NeurIPS 2022): how many images it trains on.

    Its accuracies are not here; docs/long_tailed.md has what was measured of them.
    """

    title: ClassVar[str] = "Inducing Neural Collapse in Imbalanced Learning (NeurIPS 2022)"

    def published(self, settings: Mapping[str, Any]) -> Iterable[PublishedFigure]:
        """The training images of CIFAR-10-LT and CIFAR-100-LT in all, as ``train_samples``."""
        data, imbalance = (settings.get(section) or {} for section in ("data", "imbalance"))
        total = _TOTALS.get((data.get("name"), imbalance.get("ratio")))
        if total and imbalance.get("profile") == "exponential":
            yield PublishedFigure("train_samples", f"{total:,}", self.title)


class LongTailed(Classification):
    """Train on classes of unequal size; measure accuracy and collapse of frequent and rare classes."""

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
        make_long_tailed = import_object("ddnkit_longtail.data:make_long_tailed")
        data: Data = make_long_tailed(super().load_data(job), self, smoke=job.smoke)
        return data

    def figures(self, folder: Path) -> list[Path]:
        """The panels of a classification, then those of the long tail."""
        draw = import_object("ddnkit_longtail.figures:draw_long_tail")
        return [*super().figures(folder), *draw(folder)]

    def further_panels(self) -> tuple[str, ...]:
        """Those of other metrics than a long tail's, which has figures of its own."""
        return tuple(name for name in super().further_panels() if name not in LongTail.columns)

    def caption(self, figure: Path) -> str:
        """What a panel shows."""
        caption = import_object("ddnkit_longtail.figures:caption")(figure.stem)
        return caption or super().caption(figure)

    def tables(self, folder: Path) -> list[Table]:
        """Those of a classification; accuracy by class size; how far the rare classes collapsed."""
        tables = import_object("ddnkit_longtail.tables:tables")
        return [*super().tables(folder), *tables(folder)]
