from .kkt import KKTSolution, solve_kkt, solve_tangent
from .polar import PolarFactors, polar, polar_adjoint, symmetric_factors
from .vectorisation import commutation_matrix, elimination_matrix

__all__ = [
    "KKTSolution",
    "PolarFactors",
    "commutation_matrix",
    "elimination_matrix",
    "polar",
    "polar_adjoint",
    "solve_kkt",
    "solve_tangent",
    "symmetric_factors",
]
