from .interior_point import InteriorPoint
from .iterative import (
    Deadline,
    IterativeSolver,
    check_settings,
    choice,
    constraint_jacobian,
    lagrangian_gradient,
    lagrangian_hessian,
    least_squares_multipliers,
    number,
    whole_number,
)
from .lbfgs import LBFGS
from .newton import Newton
from .no_solution import Depth, falls_along, least_violation
from .picard import Picard
from .residual import ConstraintProducts, Scales
from .riemannian import Riemannian, reason_to_decline
from .riemannian_descent import RiemannianConjugateGradient, RiemannianLBFGS
from .scipy_minimisers import SLSQP, TrustConstr
from .scipy_root import Root
from .trust_regions import RiemannianTrustRegions

__all__ = [
    "LBFGS",
    "SLSQP",
    "ConstraintProducts",
    "Deadline",
    "Depth",
    "InteriorPoint",
    "IterativeSolver",
    "Newton",
    "Picard",
    "Riemannian",
    "RiemannianConjugateGradient",
    "RiemannianLBFGS",
    "RiemannianTrustRegions",
    "Root",
    "Scales",
    "TrustConstr",
    "check_settings",
    "choice",
    "constraint_jacobian",
    "falls_along",
    "lagrangian_gradient",
    "lagrangian_hessian",
    "least_squares_multipliers",
    "least_violation",
    "number",
    "reason_to_decline",
    "whole_number",
]
