"""What the sections of a classification recipe may hold; nothing here imports torch."""

from .backbones import CNN, MLP, BackboneSettings, FreeFeatures
from .data import DataSettings, DigitPairs, Digits, FreeFeaturesData, ImageSettings
from .engine import EngineSettings
from .losses import CrossEntropy, MeanSquaredError
from .optimizers import AGD, SGD, Adam, AdamW
from .pipeline import Classification, TrainSettings
from .schedule import ScheduleSettings
from .sections import (
    BackboneSection,
    DataSection,
    HeadSection,
    LossSection,
    MetricsSection,
    OptimizerSection,
)

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
