from .class_means import ClassMeans
from .directions import safe_scale, unit_rows
from .functional import nearest_etf
from .heads.base import ClassifierHead
from .heads.fixed import FixedETFClassifier
from .heads.nearest import NearestETFClassifier
from .heads.standard import StandardClassifier
from .node import NearestETF
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
