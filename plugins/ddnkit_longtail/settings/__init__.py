"""What the sections of a long-tailed recipe may hold; nothing here imports torch."""

from .heads import BatchNormETFHead
from .imbalance import ImbalanceSettings, MixupSettings
from .losses import DotRegression, WeightedCrossEntropy
from .metrics import LongTail
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
