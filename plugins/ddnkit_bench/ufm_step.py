"""``ddnkit bench ufm_step``: a training step on unconstrained features, with each head.

The features are the parameters and all of them are the batch, as in *Guiding Neural Collapse*, section
4: almost nothing is computed but the classifier. The memory it takes besides the features is its own
(Table 3 there: 10.7 GB for the nearest ETF with the DDN gradient on UFM-100, 70.3 GB on UFM-200, and on
UFM-1000 it did not fit).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ddnkit import InputError, registry
from ddnkit.bench import Case, Comparison, Competitor

from . import Prepare
from .train_step import HEADS, step_phases


class UFMStep(Comparison):
    """A full-batch step of UFM-10, 100, 200 and 1000 with each head, by AGD.

    A case's size: samples N, dimension d, classes C.
    """

    size_names = ("N", "d", "C")
    sizes = ((1000, 512, 10), (5000, 1024, 100), (5000, 1024, 200), (10_000, 1024, 1000))

    def small(self, case: Case) -> Case:
        """A few features of the same kind."""
        return Case((16, 16, 4))

    def inputs(self, case: Case, dtype: torch.dtype) -> Mapping[str, Any]:
        """The indices of the features, balanced labels."""
        samples, _, classes = case.size
        indices = torch.arange(samples)
        return {"indices": indices, "labels": indices % classes}

    def competitors(self, case: Case, device: str) -> Sequence[Competitor]:
        """The standard head first."""
        if "free_features" not in registry.names("backbones"):
            raise InputError("ufm_step needs the backbones of ddnkit_train")
        return [Competitor(head, _step(head, case)) for head in HEADS]


def _step(head: str, case: Case) -> Prepare:
    def prepare(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        samples, dimension, classes = case.size
        torch.manual_seed(0)
        backbone: Any = registry.get("backbones", "free_features")(dimension=dimension)
        network = backbone.build(sample_shape=(), samples=samples)
        return step_phases(head, network, inputs["indices"], inputs["labels"], classes)

    return prepare
