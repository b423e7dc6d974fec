"""The manifolds Stiefel and Sphere; solvers on manifolds: Procrustes, pymanopt's and geoopt's methods."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
