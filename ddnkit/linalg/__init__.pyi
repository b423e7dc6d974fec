from .arnoldi import gmres
from .gram_matrix import departure_from_orthonormal, gram
from .inverse_root import inverse_square_root, largest_eigenvalue_bounds, odd_quintics
from .items import lu_factor, product
from .kkt import KKTInverse, KKTSolution, TangentInverse, solve_kkt, solve_tangent
from .krylov import KrylovSolution, conjugate_gradient, minres
from .lanczos import ExtremeEigenvalues, extreme_eigenvalues
from .polar_factor import (
    PolarFactors,
    polar,
    polar_adjoint,
    polar_adjoint_by_products,
    polar_adjoint_by_vectors,
    precision,
    symmetric_factors,
)
from .sylvester import positive_inverse, skew_sylvester
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
    "departure_from_orthonormal",
    "elimination_matrix",
    "extreme_eigenvalues",
    "gmres",
    "gram",
    "inverse_square_root",
    "largest_eigenvalue_bounds",
    "lu_factor",
    "minres",
    "odd_quintics",
    "polar",
    "polar_adjoint",
    "polar_adjoint_by_products",
    "polar_adjoint_by_vectors",
    "positive_inverse",
    "precision",
    "product",
    "skew_sylvester",
    "solve_kkt",
    "solve_tangent",
    "symmetric_factors",
]
