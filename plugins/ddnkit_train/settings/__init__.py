"""What the sections of a classification recipe may hold; nothing here imports torch."""

from .backbones import CNN, MLP, BackboneSettings, FreeFeatures
from .data import DataSettings, DigitPairs, Digits, FreeFeaturesData, ImageSettings
from .engine import EngineSettings
from .losses import CrossEntropy, MeanSquaredError
from .optimizers import AGD, SGD, Adam, AdamW
from .pipeline import Classification, TrainSettings
from .schedule import ScheduleSettings

__all__ = [
    "AGD",
    "CNN",
    "MLP",
    "SGD",
    "Adam",
    "AdamW",
    "BackboneSettings",
    "Classification",
    "CrossEntropy",
    "DataSettings",
    "DigitPairs",
    "Digits",
    "EngineSettings",
    "FreeFeatures",
    "FreeFeaturesData",
    "ImageSettings",
    "MeanSquaredError",
    "ScheduleSettings",
    "TrainSettings",
]
