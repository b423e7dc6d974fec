from .data import MixedData, class_counts, imbalanced_subset, mix
from .metrics import LongTailMetrics, class_cosines, rare_angle, worst_cosine
from .objective import (
    BatchNormETFClassifier,
    DotRegression,
    WeightedCrossEntropy,
    balanced_lengths,
    dot_regression,
)
from .regularity import regularity_number
from .settings import InducingNeuralCollapse, LongTailed, Regularity

__all__ = [
    "BatchNormETFClassifier",
    "DotRegression",
    "InducingNeuralCollapse",
    "LongTailMetrics",
    "LongTailed",
    "MixedData",
    "Regularity",
    "WeightedCrossEntropy",
    "balanced_lengths",
    "class_cosines",
    "class_counts",
    "dot_regression",
    "imbalanced_subset",
    "mix",
    "rare_angle",
    "regularity_number",
    "worst_cosine",
]
