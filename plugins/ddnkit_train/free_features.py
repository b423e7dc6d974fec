"""The data of the unconstrained-feature model: indices and balanced labels."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .data import Dataset


class Indices(Dataset):
    """Samples that are their own indices: a subset is numbered anew, from 0."""

    def subset(self, index: Tensor) -> Indices:
        """See `Data.subset`."""
        return replace(self, inputs=self.inputs[: len(index)], labels=self.labels[index])


def free_features_data(classes: int, samples: int) -> Indices:
    """Sample i is the index i, with label i mod C; no test set.

    Args:
        classes: number of classes C.
        samples: number of samples N; every class has ⌊N/C⌋ or ⌈N/C⌉ of them.
    """
    indices = torch.arange(samples)
    return Indices(indices, indices % classes, classes)
