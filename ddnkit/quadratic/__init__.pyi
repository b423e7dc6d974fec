from .node import QPNode
from .program import QuadraticProgram, figures_at
from .solver import solve

__all__ = ["QPNode", "QuadraticProgram", "figures_at", "solve"]
