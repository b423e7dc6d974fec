"""The ``metrics`` section of a recipe; nothing here imports torch."""

from __future__ import annotations

from ddnkit import Component


class NeuralCollapse(Component):
    """NC1–NC4, equinorm, mean cosine margin, distance of W and the class means to an ETF."""

    builder = "ddnkit_collapse.metrics:neural_collapse_metric"
