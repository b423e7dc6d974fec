"""The Krylov form: Hessian-vector products alone, O(m) memory, never an m×m matrix.

P G P z = P r is solved on the tangent space by conjugate gradients. Where they meet a direction of
negative curvature (a saddle point) or end above their tolerance, MINRES takes over for the items
concerned; it also gives the solution of least norm of a singular, consistent system. What either
leaves is reported as residual, never hidden.

The residual is that of the Hessian-vector product itself, in float64 for a float32 problem whose node
can be evaluated there. The iteration takes quicker ways to about the same product: in float32, and
replayed from a recording (`ddnkit.linalg.replay`).

A Hessian that is diagonal and positive is solved for by its Schur complement (`diagonal`), without an
iteration. Where products with G show unknowns in very different units, the iteration runs in units of
curvature 1 (`ddnkit.linalg.kkt`), D P G P D with D = |Gⱼⱼ|^-½; what is shortest there is then the
solution of least norm of a singular system. Neither is done where tolerance, iterations or preconditioner
are the user's.

Besides y-sized vectors it keeps the constraint gradients A (p×m) and their Gram matrix (p×p) of
constraints that are not a manifold's, and of a recording at most `replay.MOST_BYTES`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..linalg.kkt import HESSIAN_ROUNDINGS, NOISE_FACTOR, relative
from ..linalg.krylov import conjugate_gradient, minres
from ..linalg.lanczos import extreme_eigenvalues
from ..linalg.replay import Replayed
from ..problem import Problem, flat
from .diagonal import diagonal_solve
from .form import BackwardForm, SystemSolution, SystemSolve, TangentSolve
from .precision import SAME_OPERATOR, float64_problem, rounding_may_decide, uncertainty
from .tangent_operator import Operator, Projector, hessian_operator

#: Relative residual of a float32 problem, measured and refined in float64: below the rounding of its
#: own data, and well below what float32 products could tell from zero. An ill-conditioned system turns
#: a residual of 1e-6 into an error of 1 %, and 1e-8 into one that nobody sees.
MIXED_TOLERANCE = 1e-8
#: |G x| may range over this factor before the unknowns' own curvatures are asked for: a residual within
#: the tolerance leaves at least four digits in each unknown's own.
FAR_APART = {torch.float64: 1e8, torch.float32: 1e4}
#: Unknowns up to which they are.
MOST_UNITS = 4096

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
        G = hessian_operator(problem, y, nu)
        if self._own_choice(problem):
            unit = None
        else:
            diagonal = diagonal_solve(problem, y, nu, G)
            if diagonal is not None:
                return diagonal
            unit = _units(problem, y, nu, G)
        narrow = _Operator(problem, y, G, unit)
        # What the residual is measured with; a tolerance of one's own is for narrow numbers.
        operator = (
            self.tolerance is None and _float64_operator(narrow, problem, y, nu, unit)
        ) or narrow
        settings: dict[str, Any] = {
            "tolerance": self.tolerance if operator is narrow else MIXED_TOLERANCE,
            "max_iterations": self.max_iterations,
            "preconditioner": self._preconditioner(problem, y, narrow.P),
            "inside": Replayed(narrow.inside),
            "working": y.dtype,
        }

        def solve(given: Tensor) -> SystemSolution:
            r = operator.scale(given.to(operator.dtype))
            right = operator.P(r)
            # What rounding leaves of a right side that is normal to the constraints is not solved for.
            size = r.norm(dim=-1)
            noise = 8 * torch.finfo(given.dtype).eps * size
            right = torch.where((right.norm(dim=-1) > noise).unsqueeze(-1), right, 0.0)
            found = conjugate_gradient(operator, right, **settings)
            z, residual = operator.P(found.x), found.residual
            saddle = None
            if bool(found.negative_curvature.any()):
                saddle = _saddle(operator, y)
            again = found.negative_curvature | ~(residual <= _good_enough(given.dtype))
            if bool(again.any()):
                # Items that are done have a zero right side, which costs MINRES nothing.
                rest = torch.where(again.unsqueeze(-1), right, 0.0)
                other = minres(operator, rest, **settings)
                better = again & ~(other.residual > residual)
                z = torch.where(better.unsqueeze(-1), operator.P(other.x), z)
                residual = torch.where(better, other.residual, residual)
            if unit is not None:
                # In units of curvature 1, what the rounding of y makes of G z.
                felt = torch.finfo(given.dtype).eps * z.norm(dim=-1)
                residual = residual + torch.where(size > 0, felt / size, 0.0)
                # What a singular system leaves must not be small beside the r of other unknowns.
                left = operator.unscaled_residual(given, z)
                residual = torch.where(again, torch.maximum(residual, left), residual)
            # Before z is rounded: G z − r is at right angles to the tangent space, to the residual above.
            mu = operator.multipliers(r, z).to(given.dtype)
            z = operator.scale(z).to(given.dtype)
            return SystemSolution(z, residual.to(given.dtype), mu, saddle=saddle)

        return SystemSolve(solve)

    def _own_choice(self, problem: Problem) -> bool:
        """Whether the user has said how to iterate."""
        settings = (self.tolerance, self.max_iterations, self.preconditioner)
        return any(s is not None for s in (*settings, problem.node.precondition))

    def _preconditioner(self, problem: Problem, y: Tensor, P: Operator) -> Operator | None:
        if self.preconditioner is not None:
            given = self.preconditioner(problem, y)
        elif problem.node.precondition is not None:
            given = _of_node(problem, y)
        else:
            return None
        return lambda v: P(given(P(v)))


class _Operator:
    """P G at a solution, which keeps tangent vectors tangent; in given units D, P D G D."""

    def __init__(
        self,
        problem: Problem,
        y: Tensor,
        G: Operator,
        unit: Tensor | None,
        eps: float | None = None,
    ):
        self.dtype = y.dtype
        self.unit = None if unit is None else unit.to(y.dtype)
        self.P = Projector(problem, y, self.unit, eps)
        self._G = G

    def scale(self, v: Tensor) -> Tensor:
        """D v."""
        return v if self.unit is None else self.unit * v

    def _curvature(self, v: Tensor) -> Tensor:
        return self.scale(self._G(self.scale(v)))

    def __call__(self, v: Tensor) -> Tensor:
        """P G P v: what an iteration in float32 leaves of a normal part is no part of its solution."""
        return self.P(self._curvature(self.P(v)))

    def inside(self, v: Tensor) -> Tensor:
        """For the iteration: the right side is tangent, and with it all that is made of it."""
        return self.P.once(self._curvature(v))

    def unscaled_residual(self, given: Tensor, z: Tensor) -> Tensor:
        """‖P D⁻¹(r̃ − G̃z̃)‖/‖r‖ of D z̃, P in scaled units: of the system as it was given."""
        assert self.unit is not None
        left = self.P(self.scale(given.to(self.dtype)) - self._curvature(z)) / self.unit
        return relative(left.norm(dim=-1), given.to(self.dtype).norm(dim=-1))

    def multipliers(self, r: Tensor, z: Tensor) -> Tensor:
        """μ with G z + Aᵀμ = r, (..., B, p); nothing for a manifold's own constraints."""
        return r[..., :0] if self.P.A is None else self.P.multipliers(r - self._curvature(z))


def _saddle(operator: _Operator, y: Tensor) -> Tensor:
    """How negative the least curvature is, (B,): see `SystemSolution`. Asked where an iteration met one."""
    lowest, largest, _ = extreme_eigenvalues(
        operator, flat(y).to(operator.dtype), project=operator.P
    )
    least = lowest / torch.maximum(lowest.abs(), largest.abs())
    cutoff = HESSIAN_ROUNDINGS * torch.finfo(y.dtype).eps
    return torch.where(least < -cutoff, -least, 0.0).to(y.dtype)


def _units(problem: Problem, y: Tensor, nu: Tensor, G: Operator) -> Tensor | None:
    """Units of curvature 1 for the unknowns (B, m), where theirs are of very different size; else None.

    G = S G₀ S for units S and a G₀ of one size gives |G x|ⱼ ~ Sⱼ for any x without structure. Where that
    ranges far, the diagonal is worth its price: a product with G for each unknown, O(m) memory.
    """
    like = flat(y)
    if like.shape[-1] > MOST_UNITS or not like.numel():
        return None
    image = torch.zeros_like(like)
    for k in range(3):  # one of them may by chance cancel in an entry
        image = torch.maximum(image, G(_probe(like, k)[0]).abs())
        least, largest = image.amin(dim=-1), image.amax(dim=-1)
        apart = (largest > FAR_APART.get(y.dtype, 1e4) * least) & (least > 0) & largest.isfinite()
        if not bool(apart.any()):
            return None
    diagonal = _diagonal(G, like)
    if not bool(((diagonal > 0) & diagonal.isfinite()).all()):
        return None
    eps = torch.finfo(y.dtype).eps
    if rounding_may_decide(diagonal.amax(dim=-1) / diagonal.amin(dim=-1), eps):
        noise = uncertainty(_diagonal_of, diagonal, problem, y, nu, eps)
        if not bool((noise * NOISE_FACTOR < diagonal).all()):
            return None
    return diagonal.rsqrt()


def _diagonal_of(problem: Problem, y: Tensor, nu: Tensor | None) -> Tensor:
    assert nu is not None
    return _diagonal(hessian_operator(problem, y, nu), flat(y))


def _diagonal(G: Operator, like: Tensor) -> Tensor:
    diagonal = torch.empty_like(like)
    for j in range(like.shape[-1]):
        e = torch.zeros_like(like)
        e[:, j] = 1
        diagonal[:, j] = G(e)[:, j]
    return diagonal


def _probe(like: Tensor, k: int = 0) -> Tensor:
    """(1, B, m): any vector without structure will do."""
    index = torch.arange(1, like.shape[-1] + 1, dtype=torch.float64, device=like.device)
    probe = ((k + 1) * index).sin()
    return probe.to(like.dtype).expand(1, *like.shape)


def _float64_operator(
    narrow: _Operator, problem: Problem, y: Tensor, nu: Tensor, unit: Tensor | None
) -> _Operator | None:
    """The operator of a float32 problem in float64, where it is one and the same operator.

    None where the node is another problem in float64, as one that smooths by the rounding error of y's
    dtype.
    """
    instance = float64_problem(problem) if y.dtype == torch.float32 else None
    if instance is None:
        return None
    probe = _probe(flat(y).double())
    try:
        G = hessian_operator(instance, y.double(), nu.double())
        operator = _Operator(instance, y.double(), G, unit, torch.finfo(y.dtype).eps)
        wide = operator(probe)
    except Exception:  # whatever a node throws that is not made for float64
        return None
    image = narrow(probe.float())
    same = (wide - image).norm(dim=-1) <= SAME_OPERATOR * wide.norm(dim=-1)
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
