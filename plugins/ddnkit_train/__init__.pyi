from .backbones import CNN, MLP, FreeFeatures
from .checkpoint import cannot_go_on, read_sealed, write_sealed
from .classification import train
from .data import (
    Augmentation,
    Data,
    Dataset,
    Plan,
    Share,
    Standardise,
    synthetic,
    synthetic_images,
)
from .evaluation import evaluate
from .losses import MeanSquaredError
from .model import Head, Model
from .optimizers import AGD
from .samplers import FullBatch, Sampler, Shuffled, Stratified
from .settings import BackboneSettings, Classification, DataSettings, ImageSettings

__all__ = [
    "AGD",
    "CNN",
    "MLP",
    "Augmentation",
    "BackboneSettings",
    "Classification",
    "Data",
    "DataSettings",
    "Dataset",
    "FreeFeatures",
    "FullBatch",
    "Head",
    "ImageSettings",
    "MeanSquaredError",
    "Model",
    "Plan",
    "Sampler",
    "Share",
    "Shuffled",
    "Standardise",
    "Stratified",
    "cannot_go_on",
    "evaluate",
    "read_sealed",
    "synthetic",
    "synthetic_images",
    "train",
    "write_sealed",
]
