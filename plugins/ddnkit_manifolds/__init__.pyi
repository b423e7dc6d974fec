from .geoopt_solvers import RiemannianAdam, RiemannianLineSearch, RiemannianSGD
from .manifolds import Sphere, Stiefel
from .procrustes import Procrustes, procrustes_adjoint, relative_curvature
from .pymanopt_derivative_free import NelderMead, ParticleSwarm
from .pymanopt_solvers import ConjugateGradient, SteepestDescent, TrustRegions

__all__ = [
    "ConjugateGradient",
    "NelderMead",
    "ParticleSwarm",
    "Procrustes",
    "RiemannianAdam",
    "RiemannianLineSearch",
    "RiemannianSGD",
    "Sphere",
    "SteepestDescent",
    "Stiefel",
    "TrustRegions",
    "procrustes_adjoint",
    "relative_curvature",
]
