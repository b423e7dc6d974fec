from .assertions import assert_gradients
from .averages import AnalyticCentre, PseudoHuberAverage
from .catalogue import bank
from .circle import LinearOnCircle, LinearOnScaledCircle, QuadraticOnSphere
from .degenerate import CosineDistance, RepeatedConstraint, SingularHessian
from .entropy import EntropicTransport, Softmax
from .equilibrium import Equilibrium
from .inequalities import (
    CappedSoftmax,
    GeometricProgram,
    MixedQP,
    NonnegativeLeastSquares,
    SeparableDoubleWell,
    TrustRegion,
    VertexOfLinearProgram,
    WaterFilling,
)
from .known_problem import ClosedFormProblem, KnownProblem, sample
from .linear_algebra import Ridge, SmallestEigenvector
from .matrices import Brockett, Procrustes, ProcrustesEqualValues
from .parts import TwoPartQP, join_parts
from .projections import (
    AtTheEdge,
    IsotonicRegression,
    ProjectionOnBall,
    ProjectionOnBox,
    ProjectionOnCappedSimplex,
    ProjectionOnCorner,
    ProjectionOnHalfSpace,
    ProjectionOnMaxNormBall,
    ProjectionOnSecondOrderCone,
    ProjectionOnSimplex,
    ProjectionOnSumBall,
    ProjectionOutOfBall,
    RepeatedHalfSpace,
)
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
    "AtTheEdge",
    "Brockett",
    "CappedSoftmax",
    "ClosedFormProblem",
    "CosineDistance",
    "CubeRoot",
    "EntropicTransport",
    "EqualityQP",
    "Equilibrium",
    "GeometricProgram",
    "IsotonicRegression",
    "KnownProblem",
    "LinearOnCircle",
    "LinearOnScaledCircle",
    "MixedQP",
    "NearestSimplexETF",
    "NonnegativeLeastSquares",
    "Polynomial",
    "Procrustes",
    "ProcrustesEqualValues",
    "ProjectionOnBall",
    "ProjectionOnBox",
    "ProjectionOnCappedSimplex",
    "ProjectionOnCorner",
    "ProjectionOnHalfSpace",
    "ProjectionOnMaxNormBall",
    "ProjectionOnSecondOrderCone",
    "ProjectionOnSimplex",
    "ProjectionOnSumBall",
    "ProjectionOutOfBall",
    "PseudoHuberAverage",
    "QuadraticOnSphere",
    "RepeatedConstraint",
    "RepeatedHalfSpace",
    "Ridge",
    "SeparableDoubleWell",
    "SingularHessian",
    "SmallestEigenvector",
    "Softmax",
    "SweepRow",
    "TrustRegion",
    "TwoInputsOptionAndModule",
    "TwoPartQP",
    "VertexOfLinearProgram",
    "WaterFilling",
    "WeightedLeastSquares",
    "assert_gradients",
    "bank",
    "join_parts",
    "sample",
    "sweep",
]
