"""What the panels show, in words: their captions in a report."""

from __future__ import annotations

#: What every line and band is.
OVER_SEEDS = "Lines: median over the seeds; bands: their range."

#: By the stem of the panel's file.
_SHOWN = {
    "panels": "All panels of the run.",
    "ce_loss": "Cross-entropy on the training set; dashed: its lower bound, at a simplex ETF.",
    "ce_gap": "Cross-entropy on the training set above its lower bound.",
    "cosine_margin": "Average cosine margin of the training samples; dashed: that of a simplex "
    "ETF, C/(C−1).",
    "p_cm": "P_CM: the cosine margins of the training samples at the end, sorted; dashed: that of "
    "a simplex ETF, C/(C−1).",
    "nc1": "NC1: variability of the features within their classes.",
    "nc2": "NC2: distance of the classifier to a simplex ETF, by its Gram matrix.",
    "nc3": "NC3: distance of classifier and class means from self-duality.",
    "equinorm": "W–H equinorm: difference between the relative spreads of the lengths of classifier "
    "rows and of class means.",
    "train_top1": "Top-1 accuracy on the training set, in per cent.",
    "test_top1": "Top-1 accuracy on the test set, in per cent.",
}


def caption(stem: str) -> str:
    """The caption of the figure in the file ``stem``.png."""
    return f"{_SHOWN.get(stem, stem.replace('_', ' ') + '.')} {OVER_SEEDS}"
