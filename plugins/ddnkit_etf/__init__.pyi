from .class_means import ClassMeans
from .directions import safe_scale, unit_rows
from .heads import ClassifierHead, FixedETFClassifier, StandardClassifier
from .nearest_head import NearestETFClassifier
from .node import NearestETF, nearest_etf
from .simplex import canonical_frame, etf_of_frame, haar_frame, simplex_etf

__all__ = [
    "ClassMeans",
    "ClassifierHead",
    "FixedETFClassifier",
    "NearestETF",
    "NearestETFClassifier",
    "StandardClassifier",
    "canonical_frame",
    "etf_of_frame",
    "haar_frame",
    "nearest_etf",
    "safe_scale",
    "simplex_etf",
    "unit_rows",
]
