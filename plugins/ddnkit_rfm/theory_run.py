"""A job of the rfm_theory pipeline: simulates Theorem 5.3, or tests the optimum of Theorem 5.4."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ddnkit import Job

from .asymptotics import collapse_curve, collapse_rate, fixed_point_kappa, published_kappa
from .kernel_optimum import optimality_check
from .samples import unit_rows

if TYPE_CHECKING:
    from .settings import RFMTheory

_SMOKE_LAYERS, _SMOKE_DRAWS, _SMOKE_DESCENTS = 4, 50, 1
#: Distances up to this share of ‖YᵀY‖ are rounding, and their quotients say nothing.
_ROUNDING = 1e-13


def run_theorem(settings: RFMTheory, job: Job) -> None:
    """Run one job: `RFMTheory.run`."""
    rows: list[dict[str, Any]] = []
    if settings.ratio is not None:
        rows = _simulate_collapse(settings, settings.ratio, job)
    elif settings.ridge is not None:
        rows = [_test_optimum(settings, settings.ridge, job)]
    for row in rows:
        job.record(row)


def _simulate_collapse(settings: RFMTheory, ratio: float, job: Job) -> list[dict[str, Any]]:
    """‖X̃_lᵀX̃_l − YᵀY‖ for l = 2…L+1, with the κ of the fixed point and with the paper's: a row for each l."""
    gram, labels = _draw_data(settings, job.seed)
    layers = min(settings.layers, _SMOKE_LAYERS) if job.smoke else settings.layers
    of_map, of_predictor = settings.feature_map, ratio * settings.feature_map
    kappas = {
        "distance": fixed_point_kappa(settings.samples, of_predictor, of_map),
        "published_distance": published_kappa(of_predictor, of_map),
    }
    curves = {
        name: collapse_curve(
            gram, labels, layers, predictor=of_predictor, feature_map=of_map, kappa=kappa
        ).tolist()
        for name, kappa in kappas.items()
        if kappa > 0
    }
    rate = collapse_rate(settings.samples, of_predictor, of_map)
    distances = curves["distance"]
    rows = []
    for k, now in enumerate(distances):
        sound = k > 0 and now > _ROUNDING * settings.samples
        figures = {name: curve[k] for name, curve in curves.items()}
        factor = now / distances[k - 1] if sound else None
        rows.append({"epoch": k + 2, "step": k + 2, **figures, "factor": factor, "rate": rate})
    return rows


def _test_optimum(settings: RFMTheory, ridge: float, job: Job) -> dict[str, Any]:
    """The numbers of `optimality_check`, as a row."""
    generator = torch.Generator().manual_seed(job.seed)
    labels = _balanced_labels(settings)
    draws = min(settings.draws, _SMOKE_DRAWS) if job.smoke else settings.draws
    descents = min(settings.descents, _SMOKE_DESCENTS) if job.smoke else settings.descents
    found = optimality_check(labels, ridge, draws=draws, descents=descents, generator=generator)
    return {
        "epoch": 1,
        "step": 1,
        "bound": found.bound,
        "value": found.value,
        "least": found.least,
        "increase": found.increase,
        "descent_distance": found.distance,
    }


def _draw_data(settings: RFMTheory, seed: int) -> tuple[Tensor, Tensor]:
    """X_1ᵀX_1 of samples of unit length around random class means, and the labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = _balanced_labels(settings)
    drawn = torch.randn(
        settings.classes + len(labels), settings.dimension, generator=generator, dtype=torch.float64
    )
    means, noise = drawn[: settings.classes], drawn[settings.classes :]
    X = unit_rows(means[labels] + settings.noise * noise)
    return X @ X.T, labels


def _balanced_labels(settings: RFMTheory) -> Tensor:
    return torch.arange(settings.classes).repeat_interleave(settings.samples)
