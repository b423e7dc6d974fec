"""The bank: one node of each known problem, in the order of the project's list."""

from __future__ import annotations

from .averages import AnalyticCentre, PseudoHuberAverage
from .circle import LinearOnCircle, LinearOnScaledCircle, QuadraticOnSphere
from .degenerate import CosineDistance, RepeatedConstraint, SingularHessian
from .entropy import EntropicTransport, Softmax
from .equilibrium import Equilibrium
from .known_problem import KnownProblem
from .linear_algebra import Ridge, SmallestEigenvector
from .matrices import Brockett, Procrustes, ProcrustesEqualValues
from .parts import TwoPartQP
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
    """One node of each known problem, the nearest simplex ETF in each of its cases.

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
    ]
