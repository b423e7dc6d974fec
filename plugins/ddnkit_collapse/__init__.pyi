from .metrics import (
    Evaluation,
    HeldOut,
    ce_bound,
    cosine_margins,
    equinorm,
    etf_cosine_margin,
    etf_distance,
    nc1,
    nc2,
    nc3,
    nc4,
    neural_collapse,
)
from .panels import draw_panels
from .settings import NeuralCollapse
from .statistics import ClassStatistics, class_statistics

__all__ = [
    "ClassStatistics",
    "Evaluation",
    "HeldOut",
    "NeuralCollapse",
    "ce_bound",
    "class_statistics",
    "cosine_margins",
    "draw_panels",
    "equinorm",
    "etf_cosine_margin",
    "etf_distance",
    "nc1",
    "nc2",
    "nc3",
    "nc4",
    "neural_collapse",
]
