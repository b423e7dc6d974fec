from .lbfgs import LBFGS
from .newton import Newton
from .picard import Picard
from .scipy_minimisers import SLSQP, TrustConstr
from .scipy_root import Root

__all__ = ["LBFGS", "SLSQP", "Newton", "Picard", "Root", "TrustConstr"]
