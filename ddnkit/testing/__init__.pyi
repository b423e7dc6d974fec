from .assertions import assert_gradients
from .averages import AnalyticCentre, PseudoHuberAverage
from .catalogue import bank
from .circle import LinearOnCircle, LinearOnScaledCircle, QuadraticOnSphere
from .degenerate import CosineDistance, RepeatedConstraint, SingularHessian
from .entropy import EntropicTransport, Softmax
from .equilibrium import Equilibrium
from .known_problem import ClosedFormProblem, KnownProblem, sample
from .linear_algebra import Ridge, SmallestEigenvector
from .matrices import Brockett, Procrustes, ProcrustesEqualValues
from .parts import TwoPartQP, join_parts
from .quadratic import (
    AffineConstraint,
    AffineWithAdjoint,
    EqualityQP,
    TwoInputsOptionAndModule,
    WeightedLeastSquares,
)
from .scalar import CubeRoot, Polynomial
from .simplex_etf import NearestSimplexETF
from .sweeping import sweep
from .sweeping.table import SweepRow

__all__ = [
    "AffineConstraint",
    "AffineWithAdjoint",
    "AnalyticCentre",
    "Brockett",
    "ClosedFormProblem",
    "CosineDistance",
    "CubeRoot",
    "EntropicTransport",
    "EqualityQP",
    "Equilibrium",
    "KnownProblem",
    "LinearOnCircle",
    "LinearOnScaledCircle",
    "NearestSimplexETF",
    "Polynomial",
    "Procrustes",
    "ProcrustesEqualValues",
    "PseudoHuberAverage",
    "QuadraticOnSphere",
    "RepeatedConstraint",
    "Ridge",
    "SingularHessian",
    "SmallestEigenvector",
    "Softmax",
    "SweepRow",
    "TwoInputsOptionAndModule",
    "TwoPartQP",
    "WeightedLeastSquares",
    "assert_gradients",
    "bank",
    "join_parts",
    "sample",
    "sweep",
]
