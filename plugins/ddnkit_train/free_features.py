"""The data of the unconstrained-feature model: indices and balanced labels."""

from __future__ import annotations

import torch

from .data import Dataset


def free_features_data(classes: int, samples: int) -> Dataset:
    """Sample i is the index i, with label i mod C; no test set.

    Args:
        classes: number of classes C.
        samples: number of samples N; every class has ⌊N/C⌋ or ⌈N/C⌉ of them.
    """
    indices = torch.arange(samples)
    return Dataset(indices, indices % classes, classes)
