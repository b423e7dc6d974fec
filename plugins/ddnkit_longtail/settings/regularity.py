"""The regularity pipeline: Theorem 2 of INC measured."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import pydantic
from pydantic import Field

from ddnkit import Job, Pipeline, Table

if TYPE_CHECKING:
    from ..regularity import Comparison, Curve

_BINS = 10
_SMOKE_DRAWS = 500
#: Above it p_k may underflow, as small as exp(−C/(C−1) √(E_W E_H)) is.
_LARGEST_LOGIT = 300

Rate = Annotated[float, Field(gt=0)]


class Regularity(Pipeline):
    """How much nearer to its optimum one gradient step takes a feature: cross-entropy, dot regression."""

    columns: ClassVar[tuple[str, ...]] = (
        "epoch",
        "step",
        "violations",
        "angle",
        "draws",
        "bound",
        "eta_dr",
        "eta_dr_error",
        "eta_ce_best",
        "ce_fixed_least_excess",
        "eta_dr_projected",
        "ce_nearer_projected",
    )

    classes: int = Field(default=10, ge=2, description="C, vectors of the simplex ETF.")
    dimension: int = Field(default=32, description="d, of the features; C or more.")
    draws: int = Field(default=10_000, ge=_BINS, description="Features drawn near their optimum.")
    delta: float = Field(
        default=0.5,
        ge=1e-6,
        le=2,
        description="Largest distance of a feature from its optimum, as a share of √E_H.",
    )
    e_w: float = Field(default=1.0, gt=0, description="E_W, squared length of classifier vectors.")
    e_h: float = Field(default=1.0, gt=0, description="E_H, squared length of features.")
    rates: tuple[Rate, ...] = Field(
        default=(0.01, 0.1, 1.0, 10.0),
        min_length=1,
        description="Fixed learning rates of cross-entropy, besides the best for each feature.",
    )
    condition: bool = Field(
        default=True,
        description="Only features whose p_k are equal for all classes but their own, as the theorem "
        "assumes; false: in any direction.",
    )

    @pydantic.model_validator(mode="after")
    def _is_possible(self) -> Regularity:
        if self.dimension < self.classes:
            raise ValueError(
                f"dimension {self.dimension} is below classes {self.classes}: a simplex ETF spans C − 1 "
                "dimensions, and a feature with equal p_k needs one more"
            )
        if (self.e_w * self.e_h) ** 0.5 > _LARGEST_LOGIT:
            raise ValueError(
                f"√(e_w·e_h) of e_w {self.e_w:g} and e_h {self.e_h:g} is above {_LARGEST_LOGIT}, "
                "where the probabilities of cross-entropy underflow"
            )
        return self

    def run(self, job: Job) -> None:
        """Measure η of every draw; a row for each tenth of them, from the nearest to the farthest."""
        import torch
        from ddnkit_etf import simplex_etf

        from ..regularity import compare, near
        from ..regularity_report import RATES

        # All draws on the CPU, so that the same seed draws the same on every device.
        torch.manual_seed(job.seed)
        draws = min(self.draws, _SMOKE_DRAWS) if job.smoke else self.draws
        etf = simplex_etf(self.classes, self.dimension, direction="haar", dtype=torch.float64)
        weight = self.e_w**0.5 * etf.T
        labels = torch.randint(self.classes, (draws,))
        features = near(weight, labels, self.delta, e_h=self.e_h, condition=self.condition)
        h, W, y = (given.to(job.device) for given in (features, weight, labels))
        lines = []
        parts = zip(h.tensor_split(_BINS), y.tensor_split(_BINS), strict=True)
        for step, (near_by, own) in enumerate(parts, 1):
            found = compare(near_by, W, own, e_w=self.e_w, e_h=self.e_h, rates=self.rates)
            job.record({"epoch": step, "step": step, **_row(found)})
            lines += [{"step": step, **_line(found, one)} for one in (found.dr, *found.ce)]
            job.progress(step, _BINS, {})
        if job.rank == 0:
            with (job.folder / RATES).open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(lines)

    def figures(self, folder: Path) -> list[Path]:
        """η, and the share of draws below the bound, against the angle."""
        from ..regularity_report import figures

        return figures(folder)

    def caption(self, figure: Path) -> str:
        """What a figure shows."""
        from ..regularity_report import CAPTIONS

        return CAPTIONS[figure.stem]

    def tables(self, folder: Path) -> list[Table]:
        """How many draws are below the bound, by variant and rate."""
        from ..regularity_report import tables

        return tables(folder)


def _row(found: Comparison) -> dict[str, Any]:
    """The figures of one part of the draws."""
    best, *fixed = found.ce
    return {
        "violations": sum(int(found.violations(one).sum()) for one in found.ce),
        "angle": float(found.angle.mean()),
        "draws": len(found.angle),
        "bound": float(found.bound.median()),
        "eta_dr": float(found.dr.eta.median()),
        "eta_dr_error": float((found.dr.eta - found.bound).abs().max()),
        "eta_ce_best": float(best.eta.median()),
        "ce_fixed_least_excess": min(float((one.eta - found.bound).min()) for one in fixed),
        "eta_dr_projected": float(found.dr.projected.median()),
        "ce_nearer_projected": sum(int(found.nearer_projected(one).sum()) for one in fixed),
    }


def _line(found: Comparison, one: Curve) -> dict[str, Any]:
    """One loss at one rate on one part of the draws: a line of ``rates.csv``."""
    from ..regularity_report import DOT_REGRESSION

    excess = one.eta - found.bound
    rate = "best γ" if one.rate is None else f"γ = {one.rate:g}"
    return {
        "curve": DOT_REGRESSION if one is found.dr else f"CE, {rate}",
        "angle": float(found.angle.mean()),
        "draws": len(excess),
        "bound": float(found.bound.median()),
        "eta": float(one.eta.median()),
        "projected": float(one.projected.median()),
        "least_excess": float(excess.min()),
        "greatest_excess": float(excess.max()),
        "violations": int(found.violations(one).sum()),
        "nearer_projected": int(found.nearer_projected(one).sum()),
    }
