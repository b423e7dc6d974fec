"""Jobs of the rfm_theory pipeline: Theorem 5.3 as a simulation, Theorem 5.4 as a trial."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .asymptotics import collapse_curve, collapse_rate, fixed_point_kappa, published_kappa
from .kernel_optimum import optimality_check
from .preparation import unit_rows

if TYPE_CHECKING:
    from .settings import RFMTheory

#: Distances up to this share of ‖YᵀY‖ are rounding, and their quotients no factors.
_ROUNDING = 1e-13


def recursion(settings: RFMTheory, ratio: float, layers: int, seed: int) -> list[dict[str, Any]]:
    """‖X̃_lᵀX̃_l − YᵀY‖ of l = 2…L+1 with the κ of the fixed point and with the paper's, row by row."""
    gram, labels = _data(settings, seed)
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


def optimum(
    settings: RFMTheory, ridge: float, draws: int, descents: int, seed: int
) -> dict[str, Any]:
    """The numbers of `optimality_check`, as a row."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(settings.classes).repeat_interleave(settings.samples)
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


def _data(settings: RFMTheory, seed: int) -> tuple[Tensor, Tensor]:
    """X_1ᵀX_1 of noisy class means, samples of unit length, and the labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(settings.classes).repeat_interleave(settings.samples)
    drawn = torch.randn(
        settings.classes + len(labels), settings.dimension, generator=generator, dtype=torch.float64
    )
    means, noise = drawn[: settings.classes], drawn[settings.classes :]
    X = unit_rows(means[labels] + settings.noise * noise)
    return X @ X.T, labels
