"""Cosine margins, and the values that an exact simplex ETF gives."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .statistics import CHUNK


def ce_bound(classes: int, temperature: float) -> float:
    """log(1 + (C−1) exp(−τC/(C−1))): the least cross-entropy of unit features and unit rows.

    It is reached by features on the rows of a simplex ETF, whose cosines are 1 and −1/(C−1).
    Source: Yaras et al. 2022, theorem 1, for logits τ·W·h.

    Args:
        classes: number of classes C, at least 2.
        temperature: τ.
    """
    return math.log1p((classes - 1) * math.exp(-temperature * etf_cosine_margin(classes)))


def etf_cosine_margin(classes: int) -> float:
    """C/(C−1): the cosine margin of every sample at an exact simplex ETF (GNC, equation 17)."""
    return classes / (classes - 1)


def cosine_margins(features: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """cos θ_c − max_{j≠c} cos θ_j, θ_j between w_j − w_G and h − h_G (GNC, equation 16).

    Args:
        features: h_i ``(N, d)``; h_G is their mean (equation 4).
        labels: classes c ``(N,)``, int64.
        weight: W ``(C, d)``; w_G is the mean of its rows.

    Returns:
        The margins ``(N,)``, float64; NaN for a feature equal to h_G.
    """
    centred = weight.to(torch.float64) - weight.mean(dim=0, dtype=torch.float64)
    directions = (centred / centred.norm(dim=1, keepdim=True)).T.to(features.dtype)
    global_mean = features.mean(dim=0, dtype=torch.float64).to(features.dtype)
    margins = []
    for chunk, chunk_labels in zip(features.split(CHUNK), labels.split(CHUNK), strict=True):
        offsets = chunk - global_mean
        # In float64 the squares of no float32 overflow.
        norms = torch.linalg.vector_norm(offsets, dim=1, keepdim=True, dtype=torch.float64)
        cosines = offsets @ directions / norms.to(offsets.dtype)
        own = cosines.gather(1, chunk_labels[:, None])[:, 0]
        others = cosines.scatter_(1, chunk_labels[:, None], -torch.inf).amax(dim=1)
        margins.append(own.to(torch.float64) - others)
    return torch.cat(margins)
