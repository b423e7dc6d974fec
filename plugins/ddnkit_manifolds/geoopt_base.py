"""geoopt behind the Solver contract: what its SGD, Adam and line search have in common.

They run in torch, on the device and in the dtype of the problem (half precision in float32). Each
step takes the embedded gradient g = ∇f − Σᵢ σᵢ ∇jᵢ (see `ddnkit.Manifold`) and a retraction R; what
is left to choose, and what the solvers differ in, is the direction and the step size.

Source: Kochurov, Karimov and Kozlukov, *Geoopt*.
"""

from __future__ import annotations

import abc
import warnings
from typing import Any

import torch
from torch import Tensor

from ddnkit import Problem, Solution, Solver, Status

from .riemannian_progress import Progress
from .sphere import Sphere
from .stiefel import Stiefel
from .support import in_dtype, lapack_dtype, manifold_reason

with warnings.catch_warnings():
    # Importing geoopt compiles a few functions with torch.jit.script, which newer torch deprecates.
    warnings.filterwarnings("ignore", message=".*torch.jit")
    import geoopt

_MANIFOLDS: dict[type, Any] = {Sphere: geoopt.Sphere, Stiefel: geoopt.EuclideanStiefel}
# Largest tangent gradient by default, relative to its scale: what each dtype reaches with ease.
_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-7}


class GeooptSolver(Solver):
    """Solves  min f(x, y) over y on the Stiefel manifold or the sphere,  with a geoopt optimiser.

    Runs on the device of the problem and, unless it says otherwise, in its dtype (float32 for half
    precision).

    Args:
        max_iterations: iterations allowed.
        gradient_tolerance: largest norm of the embedded gradient, relative to
            ‖∇f(y₀)‖ + ‖∇²f(y₀) y₀‖; None for 1e-7 where it iterates in float64, 1e-5 in float32.
        max_time: seconds; None for no limit. For one call, the whole batch, where the batch is
            iterated together; for one item where the items go one by one. Looked at between
            iterations.

    Status per item: CONVERGED, where the gradient is within the tolerance; MAX_ITERATIONS;
    TIME_LIMIT; STALLED, where no step decreases the objective; NON_FINITE, where objective or
    gradient are so (the solution is then the best point at which they were checked to be finite, or
    the start). On these compact manifolds no problem is infeasible, nor unbounded but through the
    edge of its domain.
    """

    #: True: iterate in float64 whatever the dtype of the problem.
    _float64 = False

    def __init__(
        self,
        *,
        max_iterations: int,
        gradient_tolerance: float | None = None,
        max_time: float | None = None,
    ) -> None:
        self.max_iterations = max_iterations
        self.gradient_tolerance = gradient_tolerance
        self.max_time = max_time

    def unsupported(self, problem: Problem) -> str | None:
        """Needs a Stiefel manifold or a sphere and no further constraints."""
        return manifold_reason(problem, _MANIFOLDS)

    def solve(self, problem: Problem, start: Tensor | None = None) -> Solution:
        """Solve every item from the projection of ``start``."""
        start = problem.start() if start is None else start
        dtype = torch.float64 if self._float64 else lapack_dtype(start.dtype)
        exact = in_dtype(problem, dtype)
        y = problem.manifold.project(start.detach().to(dtype))
        relative = self.gradient_tolerance
        progress = self._descend(exact, y, _TOLERANCE[dtype] if relative is None else relative)
        progress.end(progress.active, Status.MAX_ITERATIONS, self.max_iterations)
        # The iterates leave the manifold by a rounding a step; the solution must not.
        solution = problem.manifold.project(progress.y).to(start.dtype)
        return Solution(solution, progress.status, progress.iterations, self.name)

    @abc.abstractmethod
    def _descend(self, problem: Problem, start: Tensor, tolerance: float) -> Progress:
        """Iterate until every item has ended or the iterations are used up."""


def plain_point(parameter: geoopt.ManifoldParameter) -> Tensor:
    """The point itself, as a plain tensor without a graph."""
    plain: Tensor = parameter.detach().as_subclass(Tensor)
    return plain


def manifold_parameter(problem: Problem, start: Tensor) -> geoopt.ManifoldParameter:
    """A copy of the start on geoopt's counterpart of the problem's manifold."""
    manifold = next(
        build for kind, build in _MANIFOLDS.items() if isinstance(problem.manifold, kind)
    )
    return geoopt.ManifoldParameter(start.clone(), manifold=manifold())
