"""The Krylov form: Hessian-vector products alone, O(m) memory, never an m×m matrix.

P G P z = P r is solved on the tangent space by conjugate gradients. Where they meet a direction of
negative curvature (a saddle point) or end above their tolerance, MINRES takes over for the items
concerned; it also gives the solution of least norm of a singular, consistent system. What either
leaves is reported as residual, never hidden.

The residual is that of the Hessian-vector product itself, in float64 for a float32 problem whose node
can be widened. The iteration takes quicker ways to about the same product: in float32, and replayed
from a recording (`ddnkit.linalg.replay`).

Besides y-sized vectors it keeps the constraint gradients A (p×m) and their Gram matrix (p×p) of
constraints that are not a manifold's, and of a recording at most `replay.MOST_BYTES`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..linalg.krylov import conjugate_gradient
from ..linalg.minimal_residuals import minres
from ..linalg.replay import Replayed
from ..problem import Problem, flat
from .form import BackwardForm, TangentSolve
from .tangent_operator import Operator, Projector, hessian_operator

#: Relative residual of a float32 problem, measured and refined in float64: below the rounding of its
#: own data, and well below what float32 products could tell from zero. An ill-conditioned system turns
#: a residual of 1e-6 into an error of 1 %, and 1e-8 into one that nobody sees.
MIXED_TOLERANCE = 1e-8
#: How far products in float32 and in float64 may be apart for the rounding of one operator.
_SAME_OPERATOR = 1e-2

#: builds, for a problem and its solution y, an approximation of G⁻¹ on vectors (..., B, m)
Preconditioner = Callable[[Problem, Tensor], Operator]


class Krylov(BackwardForm):
    """Conjugate gradients, or MINRES, on the tangent space.

    Args:
        tolerance: relative residual to stop at; None: what the dtype can reach.
        max_iterations: of each of the two methods; None: chosen by size.
        preconditioner: ``preconditioner(problem, y)`` returns a symmetric positive definite
            approximation of G⁻¹ as a function of vectors (..., B, m). None: the node's own
            ``precondition(*xs, y, v)`` of one problem, if it has one.
    """

    name = "krylov"

    def __init__(
        self,
        *,
        tolerance: float | None = None,
        max_iterations: int | None = None,
        preconditioner: Preconditioner | None = None,
    ):
        self.tolerance = tolerance
        self.max_iterations = max_iterations
        self.preconditioner = preconditioner

    def tangent_solve(self, problem: Problem, y: Tensor, nu: Tensor) -> TangentSolve:
        """See `BackwardForm.tangent_solve`."""
        narrow = _Operator(problem, y, nu)
        # What the residual is measured with; a tolerance of one's own is for narrow numbers.
        operator = (self.tolerance is None and _widened(narrow, problem, y, nu)) or narrow
        settings: dict[str, Any] = {
            "tolerance": self.tolerance if operator is narrow else MIXED_TOLERANCE,
            "max_iterations": self.max_iterations,
            "preconditioner": self._preconditioner(problem, y, narrow.P),
            "inside": Replayed(narrow.inside),
            "working": y.dtype,
        }

        def solve(given: Tensor) -> tuple[Tensor, Tensor]:
            r = given.to(operator.dtype)
            right = operator.P(r)
            # What rounding leaves of a right side that is normal to the constraints is not solved for.
            size = r.norm(dim=-1)
            noise = 8 * torch.finfo(given.dtype).eps * size
            right = torch.where((right.norm(dim=-1) > noise).unsqueeze(-1), right, 0.0)
            found = conjugate_gradient(operator, right, **settings)
            z, residual = operator.P(found.x), found.residual
            again = found.negative_curvature | ~(residual <= _good_enough(given.dtype))
            if bool(again.any()):
                # Items that are done have a zero right side, which costs MINRES nothing.
                rest = torch.where(again.unsqueeze(-1), right, 0.0)
                other = minres(operator, rest, **settings)
                better = again & ~(other.residual > residual)
                z = torch.where(better.unsqueeze(-1), operator.P(other.x), z)
                residual = torch.where(better, other.residual, residual)
            return z.to(given.dtype), residual.to(given.dtype)

        return solve

    def _preconditioner(self, problem: Problem, y: Tensor, P: Operator) -> Operator | None:
        if self.preconditioner is not None:
            given = self.preconditioner(problem, y)
        elif problem.node.precondition is not None:
            given = _of_node(problem, y)
        else:
            return None
        return lambda v: P(given(P(v)))


class _Operator:
    """P G at a solution, which keeps tangent vectors tangent."""

    def __init__(self, problem: Problem, y: Tensor, nu: Tensor):
        self.dtype = y.dtype
        self.P = Projector(problem, y)
        self._G = hessian_operator(problem, y, nu)

    def __call__(self, v: Tensor) -> Tensor:
        return self.P(self._G(v))

    def inside(self, v: Tensor) -> Tensor:
        """For the iteration: the right side is tangent, and with it all that is made of it."""
        return self.P.once(self._G(v))


def _widened(narrow: _Operator, problem: Problem, y: Tensor, nu: Tensor) -> _Operator | None:
    """The operator of a float32 problem in float64, where it is one and the same operator.

    None where the node mixes in float32 tensors of its own, or is another problem in float64, as one
    that smooths by the rounding error of y's dtype.
    """
    if y.dtype != torch.float32:
        return None
    operands = [x.double() if x.dtype == torch.float32 else x for x in problem.operands]
    # Any vector without structure will do.
    probe = torch.arange(1, flat(y).shape[-1] + 1, dtype=torch.float64, device=y.device).sin()
    probe = probe.expand(1, *flat(y).shape)
    try:
        operator = _Operator(problem.with_operands(operands), y.double(), nu.double())
        wide = operator(probe)
    except Exception:  # whatever a node throws that is not made for float64
        return None
    image = narrow(probe.float())
    same = (wide - image).norm(dim=-1) <= _SAME_OPERATOR * wide.norm(dim=-1)
    same |= ~image.isfinite().all(dim=-1)  # nothing to lose, and no matter for the others
    return operator if wide.dtype == torch.float64 and bool(same.all()) else None


def _good_enough(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps ** 0.5 / 100


def _of_node(problem: Problem, y: Tensor) -> Operator:
    def apply(v: Tensor) -> Tensor:
        columns = v.reshape(-1, *y.shape)
        solved = [problem.precondition(y, column) for column in columns]
        return flat(torch.cat(solved)).reshape(v.shape)

    return apply
