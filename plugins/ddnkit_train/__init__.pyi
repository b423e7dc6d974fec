from .agd import AGD
from .backbones import CNN, MLP, FreeFeatures
from .classification import Model, train
from .data import Dataset, standardise
from .evaluate import evaluate
from .idx import read_idx
from .samplers import FullBatch, Sampler, Shuffled, Stratified
from .settings.pipeline import Classification

__all__ = [
    "AGD",
    "CNN",
    "MLP",
    "Classification",
    "Dataset",
    "FreeFeatures",
    "FullBatch",
    "Model",
    "Sampler",
    "Shuffled",
    "Stratified",
    "evaluate",
    "read_idx",
    "standardise",
    "train",
]
