"""What the sections of a classification recipe may hold; nothing here imports torch."""

from .components import (
    AGD,
    CNN,
    MLP,
    SGD,
    Adam,
    AdamW,
    BackboneSettings,
    CrossEntropy,
    DataSettings,
    DigitPairs,
    Digits,
    FreeFeatures,
    FreeFeaturesData,
    ImageSettings,
    MeanSquaredError,
)
from .pipeline import Classification
from .sections import (
    BackboneSection,
    DataSection,
    HeadSection,
    LossSection,
    MetricsSection,
    OptimizerSection,
)
from .training import EngineSettings, ScheduleSettings, TrainSettings

__all__ = [
    "AGD",
    "CNN",
    "MLP",
    "SGD",
    "Adam",
    "AdamW",
    "BackboneSection",
    "BackboneSettings",
    "Classification",
    "CrossEntropy",
    "DataSection",
    "DataSettings",
    "DigitPairs",
    "Digits",
    "EngineSettings",
    "FreeFeatures",
    "FreeFeaturesData",
    "HeadSection",
    "ImageSettings",
    "LossSection",
    "MeanSquaredError",
    "MetricsSection",
    "OptimizerSection",
    "ScheduleSettings",
    "TrainSettings",
]
