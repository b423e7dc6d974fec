"""The ``metrics`` section of a recipe; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ddnkit import Settings

if TYPE_CHECKING:
    from .evaluation import Evaluation


class NeuralCollapse(Settings):
    """NC1–NC4, equinorm, mean cosine margin, distance of W and the class means to an ETF."""

    def build(self) -> Callable[[Evaluation], dict[str, float]]:
        """A function of an `Evaluation`."""
        from .metrics import neural_collapse

        def measure(evaluation: Evaluation) -> dict[str, float]:
            figures = neural_collapse(
                evaluation.features,
                evaluation.labels,
                evaluation.weight,
                evaluation.global_mean,
                evaluation.classes,
            )
            return {**figures, "cosine_margin": float(evaluation.margins.mean())}

        return measure
