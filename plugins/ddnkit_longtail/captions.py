"""What the figures of a long-tailed run show, in words: their captions in a report."""

from __future__ import annotations

from ddnkit_collapse.panels import OVER_SEEDS

#: By the stem of the figure's file.
_SHOWN = {
    "cosines": "Cosines between the classes, on the training set and, where there is one, on the test "
    "set: mean and standard deviation over all pairs c ≠ k. h_c: mean of the features of class c; h_G: "
    "of all features; w_k: classifier vector. Dashed: the value at a simplex ETF, −1/(C−1), and 0 for a "
    "deviation.",
    "alignment": "Classifier and class means, on the training set and, where there is one, on the test "
    "set: mean over the classes of the cosine between class mean and own classifier vector, dashed: its "
    "value at a simplex ETF, 1; and squared distance of classifier and centred class means, each of "
    "Frobenius norm 1.",
    "class_accuracy": "Top-1 accuracy on each class at the end of the training, on the test set where "
    "there is one; a panel for each set of training samples. The classes are sorted by their training "
    "samples, largest first; grey: how many, logarithmic. Of more than 100 classes means of some that "
    "are next to each other are shown.",
    "minority": "Whether the rare classes collapse: the smallest angle between classifier vectors of the "
    "rarer half of the classes, and the smallest cosine between a feature and its own classifier vector; "
    "over the training and, where variants differ in nothing but the imbalance ratio, at its end from "
    "balanced to most imbalanced. Dashed: the value at a simplex ETF, arccos(−1/(C−1)) and 1.",
}


def caption(stem: str) -> str | None:
    """The caption of the figure in the file ``stem``.png; None if it is not one of these."""
    return f"{_SHOWN[stem]} {OVER_SEEDS}" if stem in _SHOWN else None
