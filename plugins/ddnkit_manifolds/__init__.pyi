from .copies import Copies
from .geoopt_solvers import RiemannianAdam, RiemannianLineSearch, RiemannianSGD
from .low_rank import FixedRank
from .open_sets import Birkhoff, Euclidean, Positive, PositiveSimplex
from .orthonormal import Grassmann, SpecialEuclidean, SpecialOrthogonal, Stiefel
from .procrustes import Procrustes, procrustes_adjoint, relative_curvature
from .product import Product
from .pymanopt_derivative_free import NelderMead, ParticleSwarm
from .pymanopt_solvers import ConjugateGradient, SteepestDescent, TrustRegions
from .spheres import Hyperbolic, Oblique, Sphere
from .stereographic import Stereographic
from .symmetric import SPD
from .wrapped import Image, from_geoopt, from_pymanopt

__all__ = [
    "SPD",
    "Birkhoff",
    "ConjugateGradient",
    "Copies",
    "Euclidean",
    "FixedRank",
    "Grassmann",
    "Hyperbolic",
    "Image",
    "NelderMead",
    "Oblique",
    "ParticleSwarm",
    "Positive",
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
    "Stereographic",
    "Stiefel",
    "TrustRegions",
    "from_geoopt",
    "from_pymanopt",
    "procrustes_adjoint",
    "relative_curvature",
]
