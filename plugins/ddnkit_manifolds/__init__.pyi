from .geoopt_solvers import RiemannianAdam, RiemannianLineSearch, RiemannianSGD
from .low_rank import FixedRank
from .open_sets import Euclidean, PositiveSimplex
from .orthonormal import Grassmann, SpecialEuclidean, SpecialOrthogonal, Stiefel
from .procrustes import Procrustes, procrustes_adjoint, relative_curvature
from .product import Product
from .pymanopt_derivative_free import NelderMead, ParticleSwarm
from .pymanopt_solvers import ConjugateGradient, SteepestDescent, TrustRegions
from .spheres import Hyperbolic, Oblique, Sphere
from .symmetric import SPD

__all__ = [
    "SPD",
    "ConjugateGradient",
    "Euclidean",
    "FixedRank",
    "Grassmann",
    "Hyperbolic",
    "NelderMead",
    "Oblique",
    "ParticleSwarm",
    "PositiveSimplex",
    "Procrustes",
    "Product",
    "RiemannianAdam",
    "RiemannianLineSearch",
    "RiemannianSGD",
    "SpecialEuclidean",
    "SpecialOrthogonal",
    "Sphere",
    "SteepestDescent",
    "Stiefel",
    "TrustRegions",
    "procrustes_adjoint",
    "relative_curvature",
]
