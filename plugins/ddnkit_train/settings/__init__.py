"""What the sections of a classification recipe may hold; nothing here imports torch."""

from .backbones import CNN, MLP, FreeFeatures
from .data import DataSettings, DigitPairs, Digits, FashionMNIST, FreeFeaturesData
from .losses import CrossEntropy
from .optimizers import AGD, SGD, Adam, AdamW
from .pipeline import Classification, TrainSettings

__all__ = [
    "AGD",
    "CNN",
    "MLP",
    "SGD",
    "Adam",
    "AdamW",
    "Classification",
    "CrossEntropy",
    "DataSettings",
    "DigitPairs",
    "Digits",
    "FashionMNIST",
    "FreeFeatures",
    "FreeFeaturesData",
    "TrainSettings",
]
