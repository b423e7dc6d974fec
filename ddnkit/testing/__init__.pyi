from .assertions import assert_gradients
from .averages import AnalyticCentre, PseudoHuberAverage
from .catalogue import bank
from .circle import LinearOnCircle, LinearOnScaledCircle, QuadraticOnSphere
from .degenerate import CosineDistance, RepeatedConstraint, SingularHessian
from .entropy import EntropicTransport, Softmax
from .equilibrium import Equilibrium
from .known_problem import ClosedFormProblem, KnownProblem
from .linear_algebra import Ridge, SmallestEigenvector
from .matrices import Brockett, Procrustes, ProcrustesEqualValues
from .modules import TwoInputsOptionAndModule
from .own_adjoint import AffineWithAdjoint
from .parts import TwoPartQP, joined
from .quadratic import AffineConstraint, EqualityQP, WeightedLeastSquares
from .sampling import sampled
from .scalar import CubeRoot, Polynomial
from .simplex_etf import NearestSimplexETF
from .sweep_row import SweepRow
from .sweeping import sweep

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
    "joined",
    "sampled",
    "sweep",
]
