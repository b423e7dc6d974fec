from .arnoldi import gmres
from .kkt import KKTInverse, KKTSolution, TangentInverse, solve_kkt, solve_tangent
from .krylov import KrylovSolution, conjugate_gradient
from .lanczos import ExtremeEigenvalues, extreme_eigenvalues
from .minimal_residuals import minres
from .polar import PolarFactors, polar, polar_adjoint, symmetric_factors
from .vectorisation import commutation_matrix, elimination_matrix

__all__ = [
    "ExtremeEigenvalues",
    "KKTInverse",
    "KKTSolution",
    "KrylovSolution",
    "PolarFactors",
    "TangentInverse",
    "commutation_matrix",
    "conjugate_gradient",
    "elimination_matrix",
    "extreme_eigenvalues",
    "gmres",
    "minres",
    "polar",
    "polar_adjoint",
    "solve_kkt",
    "solve_tangent",
    "symmetric_factors",
]
