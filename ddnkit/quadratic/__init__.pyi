from .node import QPNode
from .program import QuadraticProgram, figures_at
from .solve import solve

__all__ = ["QPNode", "QuadraticProgram", "figures_at", "solve"]
