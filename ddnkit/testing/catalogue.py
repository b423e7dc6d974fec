"""The bank: one node of each known problem, in the order of the project's list."""

from __future__ import annotations

from .averages import AnalyticCentre, PseudoHuberAverage
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
from .known_problem import KnownProblem
from .linear_algebra import Ridge, SmallestEigenvector
from .matrices import Brockett, Procrustes, ProcrustesEqualValues
from .parts import TwoPartQP
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
from .simplex_etf import CASES, NearestSimplexETF


def bank() -> list[KnownProblem]:
    """One node of each known problem, the nearest simplex ETF and a kink in each of their cases.

    Select by what each says of itself: ``[p for p in bank() if p.unique and p.analytic]``.
    """
    return [
        Polynomial(),
        LinearOnCircle(),
        LinearOnScaledCircle(),
        QuadraticOnSphere(),
        CosineDistance(),
        PseudoHuberAverage(),
        EntropicTransport(),
        AnalyticCentre(),
        Ridge(),
        EqualityQP(),
        AffineConstraint(),
        SingularHessian(),
        RepeatedConstraint(),
        Procrustes(),
        ProcrustesEqualValues(),
        *(NearestSimplexETF(case) for case in CASES),
        TwoInputsOptionAndModule(),
        CubeRoot(),
        Softmax(),
        WeightedLeastSquares(),
        SmallestEigenvector(),
        Brockett(),
        Equilibrium(),
        AffineWithAdjoint(),
        TwoPartQP(),
        ProjectionOnBox(),
        ProjectionOnMaxNormBall(),
        ProjectionOnHalfSpace(),
        RepeatedHalfSpace(),
        ProjectionOnCorner(),
        ProjectionOnBall(),
        ProjectionOutOfBall(),
        ProjectionOnSumBall(),
        ProjectionOnSimplex(),
        ProjectionOnCappedSimplex(),
        ProjectionOnSecondOrderCone(),
        IsotonicRegression(),
        AtTheEdge("least_norm"),
        AtTheEdge("one_sided"),
        NonnegativeLeastSquares(),
        MixedQP(),
        VertexOfLinearProgram(),
        WaterFilling(),
        CappedSoftmax(),
        TrustRegion(),
        GeometricProgram(),
        SeparableDoubleWell(),
    ]
