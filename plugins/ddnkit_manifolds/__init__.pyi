from .geoopt_line_search import RiemannianLineSearch
from .geoopt_solvers import RiemannianAdam, RiemannianSGD
from .procrustes import Procrustes, procrustes_adjoint, relative_curvature
from .pymanopt_derivative_free import NelderMead, ParticleSwarm
from .pymanopt_solvers import ConjugateGradient, SteepestDescent, TrustRegions
from .sphere import Sphere
from .stiefel import Stiefel

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
