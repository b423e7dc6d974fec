"""Metrics of a long-tailed training: accuracy by class size, and cosines between the classes.

The cosines are those of *Inducing Neural Collapse in Imbalanced Learning*, section 5.1 and Fig. 3–5: with
h_c the mean of the embedded features of class c and h_G the mean of all of them, over all pairs c ≠ k

    cos∠(h_c − h_G, h_k − h_G) and cos∠(h_c − h_G, w_k)     mean and standard deviation,

over all classes the mean of cos∠(h_c − h_G, w_c), and ‖W̃ − H̃‖²_F of classifier and centred class means,
each of unit Frobenius norm. At a simplex ETF: −1/(C−1) with deviation 0, 1, and 0.
"""

from __future__ import annotations

import math

import torch
from ddnkit_collapse import (
    ClassStatistics,
    Evaluation,
    HeldOut,
    NeuralCollapse,
    class_statistics,
)
from ddnkit_etf import unit_rows
from torch import Tensor
from torch.nn import functional

from .settings import LongTail


def measure_long_tail(settings: LongTail) -> LongTailMetrics:
    """The metrics of a recipe's section."""
    return LongTailMetrics(**dict(settings))


class LongTailMetrics:
    """A function of an `Evaluation`: the neural-collapse metrics and those of this module.

    Args:
        many_above, few_below: training samples that part the classes into many, medium and few.
    """

    test_features = True

    def __init__(self, many_above: int = 100, few_below: int = 20) -> None:
        self._many_above, self._few_below = many_above, few_below
        self._collapse = NeuralCollapse().build()

    def __call__(self, evaluation: Evaluation) -> dict[str, float]:
        """The metrics by column; NaN for a group without classes, or where a class has no sample."""
        weight, classes = evaluation.weight, evaluation.classes
        counts = evaluation.counts
        if counts is None:
            counts = torch.bincount(evaluation.labels, minlength=classes)
        statistics = class_statistics(evaluation.features, evaluation.labels, classes)
        figures = {
            **self._collapse(evaluation),
            **class_cosines(statistics, weight),
            "worst_cos": float(worst_cosine(evaluation.features, evaluation.labels, weight)),
            "rare_angle": rare_angle(weight, counts),
        }
        held_out = evaluation.held_out
        if held_out is None:
            return figures
        figures |= self._accuracies(held_out, counts)
        if held_out.features is not None:
            tested = class_statistics(held_out.features, held_out.labels, classes)
            of_test = class_cosines(tested, weight)
            figures |= {f"test_{name}": value for name, value in of_test.items()}
        return figures

    def _accuracies(self, held_out: HeldOut, counts: Tensor) -> dict[str, float]:
        """In per cent: of the test samples of each group of classes, and the mean over all classes."""
        right = held_out.predictions == held_out.labels
        samples = counts.to(held_out.labels.device)
        many, few = samples > self._many_above, samples < self._few_below
        groups = {"many": many, "medium": ~(many | few), "few": few}
        figures = {
            f"test_{name}": 100 * float(right[group[held_out.labels]].to(torch.float64).mean())
            for name, group in groups.items()
        }
        tested = torch.bincount(held_out.labels, minlength=len(counts))
        hits = torch.bincount(held_out.labels[right], minlength=len(counts))
        recalls = (hits.to(torch.float64) / tested)[tested > 0]
        return figures | {"test_balanced": 100 * float(recalls.mean())}


def class_cosines(statistics: ClassStatistics, weight: Tensor) -> dict[str, float]:
    """The cosines of this module's head, of the classes that have samples.

    Args:
        statistics: of embedded features.
        weight: W ``(C, d)``.

    Returns:
        ``hh_cos_mean``, ``hh_cos_std``, ``hw_cos_mean``, ``hw_cos_std``, ``hw_own_cos`` and
        ``wh_distance``.
    """
    present = statistics.present
    H, W = statistics.centred[present], weight.to(torch.float64)[present]
    unit_h, unit_w = functional.normalize(H, dim=1), functional.normalize(W, dim=1)
    hh, hw = unit_h @ unit_h.T, unit_h @ unit_w.T
    pairs = ~torch.eye(len(H), dtype=torch.bool, device=H.device)
    return {
        "hh_cos_mean": float(hh[pairs].mean()),
        "hh_cos_std": float(hh[pairs].std(correction=0)),
        "hw_cos_mean": float(hw[pairs].mean()),
        "hw_cos_std": float(hw[pairs].std(correction=0)),
        "hw_own_cos": float(hw.diagonal().mean()),
        "wh_distance": float((W / W.norm() - H / H.norm()).square().sum()),
    }


def worst_cosine(features: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """The smallest cos∠(h_i, w_{c(i)}) of all samples ``()``: 1 where every one reached its vector."""
    unit = unit_rows(weight.to(features.dtype))
    return (unit_rows(features) * unit[labels]).sum(dim=1).min()


def rare_angle(weight: Tensor, counts: Tensor) -> float:
    """The smallest angle between classifier vectors of the rarer half of the classes, in degrees.

    In minority collapse (Fang et al., PNAS 2021) it goes to 0; at a simplex ETF of all C classes it is
    arccos(−1/(C−1)). Of classes equally large the last ones count as rarer.

    Args:
        weight: W ``(C, d)``.
        counts: training samples of each class ``(C,)``.
    """
    rare = counts.argsort(stable=True, descending=True)[(len(counts) + 1) // 2 :]
    if len(rare) < 2:
        return math.nan
    unit = functional.normalize(weight.to(torch.float64)[rare.to(weight.device)], dim=1)
    # 2 arcsin(‖a − b‖/2) keeps its digits where vectors coincide, as arccos(a·b) does not.
    return math.degrees(2 * math.asin(min(float(functional.pdist(unit).min()) / 2, 1.0)))
