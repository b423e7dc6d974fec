"""What the sections of a long-tailed recipe may hold; nothing here imports torch."""

from .components import (
    BatchNormETFHead,
    DotRegression,
    ImbalanceSettings,
    LongTail,
    MixupSettings,
    WeightedCrossEntropy,
)
from .pipeline import InducingNeuralCollapse, LongTailed
from .regularity import Regularity

__all__ = [
    "BatchNormETFHead",
    "DotRegression",
    "ImbalanceSettings",
    "InducingNeuralCollapse",
    "LongTail",
    "LongTailed",
    "MixupSettings",
    "Regularity",
    "WeightedCrossEntropy",
]
