"""One Newton step of an equality-constrained problem: a direction of descent, and how long it is.

    minimise f(y)  subject to  h(y) = 0,      L(y, ν) = f − νᵀh,   g = ∇f,  A = Dh,  H = ∇²_yy L.

The Newton step of the KKT conditions solves  [H Aᵀ; A 0][d; −ν⁺] = [−g; −h].  With V_r an
orthonormal basis of the row space of A (its right singular vectors, r the numerical rank) and W one
of its null space, the tangent space, it falls apart into
    normal step      d_n = −A⁺ h,
    tangent step     d_t = −W (WᵀHW)⁻¹ Wᵀ(g + H d_n),
    multipliers      ν⁺ = (Aᵀ)⁺ (g + H d),      d = d_n + d_t.
Nothing here asks for a nonsingular H or for independent constraints. Replacing the eigenvalues λ of
WᵀHW by max(|λ|, floor) keeps d_t a direction of descent for L on the tangent space, so that the
iteration is not drawn to saddle points and maxima, where the plain step would go. A batch of mixed
ranks is treated with masks: W has all m columns, those of the row space set to zero, and ones take
their place on the diagonal of WᵀHW.

Length (`MeritSearch`). A step d = d_n + d_t is shortened until the augmented Lagrangian with the
multipliers ν⁺ of the step,
    M(y) = f(y) − ν⁺ᵀh(y) + (ρ/2)‖h(y)‖²,
has decreased enough. It is smooth, so that near the solution the whole step passes (an ℓ1 merit
function may refuse it, the Maratos effect). Its slope along d is
    (g − Aᵀν⁺)ᵀd + ρ hᵀA d,     hᵀA d = −‖P_A h‖² ≤ 0,
and ρ is raised, per problem, until the slope is negative; a slope that rounding alone may have made
asks for no ρ, which at a stationary point would grow beyond all bounds and hold the iterate there.
Along an escape from a stationary point (a direction of negative curvature λ) the slope is zero, and
M has to fall by a part of ½ λ t²‖d‖². A trial point outside the domain (M infinite or NaN) counts as
no decrease.

A whole step along which M keeps its slope, as if it were linear, comes from a direction without
curvature, for which a Newton step has no length of its own. It is lengthened tenfold as long as that
goes on and h is hardly violated: either to where curvature sets in, or to where an objective without
a bound shows.

Source: Nocedal and Wright, *Numerical Optimization*, chapters 3, 15, 17 and 18.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..lagrangian import lagrangian_hessian
from ..problem import Problem, flat
from .residual import LocalModel, constraint_values, norm

#: A step is no longer than this many times the size of y, and is lengthened by this factor.
LONGEST_STEP = 10.0

_ARMIJO = 1e-4
_HALVINGS = 50
_ROUNDINGS = 16
_LENGTHENINGS = 15
_STRAIGHT = 1e-3


@dataclass(frozen=True)
class Step:
    """A step and what is needed to judge it.

    Attributes:
        direction: (B, m), normal and tangent step together.
        tangent: (B, m), the tangent step alone.
        escape: (B, m), unit direction of the most negative curvature, downhill; zero without one.
        lowest: (B,), the eigenvalue along ``escape``, at most 0.
        multipliers: (B, p).
        stationarity: (B,), ‖Wᵀg‖. hessian_norm: (B,), Frobenius norm of the full H.
        change: (B,), ‖|H||y|‖, what may have cancelled in the gradient.
    """

    direction: Tensor
    tangent: Tensor
    escape: Tensor
    lowest: Tensor
    multipliers: Tensor
    stationarity: Tensor
    hessian_norm: Tensor
    change: Tensor


def newton_step(problem: Problem, y: Tensor, model: LocalModel) -> Step:
    """The step at y for the model there; every entry of the model must be finite."""
    g, h, A = model.gradient, model.constraints, model.jacobian
    eps = torch.finfo(g.dtype).eps
    left, s, right = _svd(A)
    inverse = torch.where(s > eps * max(A.shape[1:]) * s.amax(dim=-1, keepdim=True), 1 / s, 0.0)
    rank = inverse.count_nonzero(dim=-1).unsqueeze(-1)
    in_row_space = torch.arange(g.shape[1], device=g.device) < rank
    W = right.mT * ~in_row_space.unsqueeze(1)

    def transposed_pinv(vector: Tensor) -> Tensor:
        coefficients = _apply(right[:, : s.shape[1]], vector) * inverse
        return _apply(left, coefficients)

    # Multipliers by least squares give H, and H the multipliers of the step.
    H = lagrangian_hessian(problem, y, transposed_pinv(g)).nan_to_num(nan=0, posinf=0, neginf=0)
    normal = -_apply(right[:, : s.shape[1]].mT, _apply(left.mT, h) * inverse)
    reduced = W.mT @ H @ W + torch.diag_embed(in_row_space.to(g.dtype))
    eigenvalues, Q = torch.linalg.eigh(reduced)
    basis = W @ Q
    # Columns that belong to the row space are zero; their unit eigenvalues are no curvature.
    curvature = torch.where(basis.square().sum(dim=1) > 0.5, eigenvalues, 0.0)
    hessian_norm = torch.linalg.matrix_norm(H)
    floor = (eps**0.75 * hessian_norm).clamp_min(torch.finfo(g.dtype).tiny ** 0.5).unsqueeze(-1)
    slope = _apply(basis.mT, g + _apply(H, normal))
    tangent = -_apply(basis, slope / torch.maximum(curvature.abs(), floor))
    direction = normal + tangent

    lowest, at = curvature.min(dim=-1)
    # Below the floor the steps do not tell a curvature from none.
    lowest = torch.where(lowest < -floor.squeeze(-1), lowest, 0.0)
    escape = basis.gather(2, at.reshape(-1, 1, 1).expand(-1, g.shape[1], 1)).squeeze(-1)
    uphill = _uphill(escape, g)
    escape = torch.where(uphill.unsqueeze(-1), -escape, escape) * (lowest < 0).unsqueeze(-1)
    return Step(
        direction=direction,
        tangent=tangent,
        escape=escape,
        lowest=lowest,
        multipliers=transposed_pinv(g + _apply(H, direction)),
        stationarity=torch.linalg.vector_norm(_apply(W.mT, g), dim=-1),
        hessian_norm=hessian_norm,
        change=torch.linalg.vector_norm(_apply(H.abs(), flat(y).abs()), dim=-1),
    )


def _uphill(direction: Tensor, gradient: Tensor) -> Tensor:
    """Whether a unit direction (B, m) leads up; where ∇f does not say, if its largest entry is negative.

    An eigenvector has no sign of its own: without a rule it would be that of this processor's library.
    """
    slope = (direction * gradient).sum(dim=-1)
    rounding = torch.finfo(gradient.dtype).eps * torch.linalg.vector_norm(gradient, dim=-1)
    largest = direction.gather(1, direction.abs().argmax(dim=-1, keepdim=True)).squeeze(-1)
    said = slope.abs() > _ROUNDINGS * rounding
    return torch.where(said, slope > 0, largest < 0)


def _svd(A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Left (B, p, k), s (B, k) and the full right factor (B, m, m), with a zero row for p = 0."""
    batch, p, m = A.shape
    if p == 0:
        identity = torch.eye(m, dtype=A.dtype, device=A.device).expand(batch, m, m)
        return A.new_zeros(batch, 0, 1), A.new_zeros(batch, 1), identity
    left, s, right = torch.linalg.svd(A, full_matrices=True)
    return left[..., : s.shape[-1]], s, right


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


class MeritSearch:
    """Step lengths for a batch; ρ of each item never falls during a solve.

    Args:
        like: (B,), for dtype and device.
    """

    def __init__(self, problem: Problem, like: Tensor) -> None:
        self.problem = problem
        self.penalty = torch.zeros_like(like)

    def length(
        self,
        y: Tensor,
        model: LocalModel,
        step: Step,
        direction: Tensor,
        searching: Tensor,
        escaping: Tensor,
    ) -> Tensor:
        """The largest of 1, ½, ¼, … that decreases M enough, or more than 1, or 0; shape (B,).

        Args:
            y: (B, *y), where the ``model`` and the ``step`` were taken.
            direction: (B, m), of the step or an escape.
            searching: (B,), the items to search for; 0 for the others.
            escaping: (B,), those whose direction is ``step.escape``.
        """
        h, nu = model.constraints, step.multipliers
        adjoint = model.gradient - (nu.unsqueeze(1) @ model.jacobian).squeeze(1)
        slope = (adjoint * direction).sum(dim=-1)
        change = (h * (model.jacobian @ direction.unsqueeze(-1)).squeeze(-1)).sum(dim=-1)
        # Twice what makes the slope zero, and never less than before.
        rounding = _ROUNDINGS * torch.finfo(y.dtype).eps
        terms = norm(model.gradient) + norm((nu.unsqueeze(1) @ model.jacobian).squeeze(1))
        uphill = slope > rounding * terms * norm(direction)
        needed = torch.where(uphill & (change < 0), -2 * slope / change, 0.0)
        self.penalty = torch.maximum(self.penalty, needed)
        line = _Line(self.problem, y, direction, nu, self.penalty, model.value, h)

        slope = slope + self.penalty * change
        curvature = torch.where(escaping, step.lowest * direction.square().sum(dim=-1), 0.0)
        length, merit = _shorten(line, slope.clamp_max(0), curvature, searching)
        whole = searching & (length == 1) & (-slope > line.noise)
        bent = torch.finfo(y.dtype).eps ** 0.5 * torch.linalg.matrix_norm(model.jacobian)
        return _lengthen(line, slope, length, merit, whole, bent)

    def falls(self, y: Tensor, model: LocalModel, step: Step, escape: Tensor) -> Tensor:
        """Whether M is lower at the end of an escape (B, m) by more than rounding, (B,).

        Rounding of M, and of the products of y and ∇f with the escape, which cancel in it.
        """
        nu = step.multipliers
        line = _Line(self.problem, y, escape, nu, self.penalty, model.value, model.constraints)
        merit, _ = line.at(torch.ones_like(model.value))
        expected = step.lowest / 2 * escape.square().sum(dim=-1)
        products = (step.change + norm(model.gradient)) * norm(escape)
        rounding = line.noise + _ROUNDINGS * torch.finfo(y.dtype).eps * products
        return merit.isfinite() & (merit < line.before + _ARMIJO * expected - rounding)


@dataclass(frozen=True)
class _Line:
    """M along y + t·direction, t (B,)."""

    problem: Problem
    y: Tensor
    direction: Tensor
    multipliers: Tensor
    penalty: Tensor
    value: Tensor
    constraints: Tensor

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """M and ‖h‖, (B,) each."""
        trial = self.y + (t.unsqueeze(-1) * self.direction).reshape(self.y.shape)
        with torch.no_grad():
            value = self.problem.objective(trial)
            h = constraint_values(self.problem, trial)
        return self._merit(value, h), norm(h)

    @property
    def before(self) -> Tensor:
        """M at y."""
        return self._merit(self.value, self.constraints)

    @property
    def noise(self) -> Tensor:
        """What rounding may add to M."""
        linear = (self.multipliers * self.constraints).sum(dim=-1).abs()
        eps = torch.finfo(linear.dtype).eps
        return _ROUNDINGS * eps * (self.value.abs() + linear + self.before.abs())

    def _merit(self, value: Tensor, h: Tensor) -> Tensor:
        linear = (self.multipliers * h).sum(dim=-1)
        return value - linear + self.penalty / 2 * h.square().sum(dim=-1)


def _shorten(
    line: _Line, slope: Tensor, curvature: Tensor, searching: Tensor
) -> tuple[Tensor, Tensor]:
    """The length, 0 where none is accepted, and M at the last trial."""
    length = searching.to(slope.dtype)
    accepted, merit = ~searching, line.before
    for _ in range(_HALVINGS):
        merit, _ = line.at(length)
        expected = length * slope + length.square() / 2 * curvature
        decreased = merit <= line.before + _ARMIJO * expected + line.noise
        accepted = accepted | (decreased & merit.isfinite())
        if bool(accepted.all()):
            break
        length = torch.where(accepted, length, length / 2)
    return torch.where(accepted, length, 0.0), merit


def _lengthen(
    line: _Line, slope: Tensor, length: Tensor, merit: Tensor, items: Tensor, rounding: Tensor
) -> Tensor:
    """Longer lengths for those of ``items`` along which M falls in a straight line."""
    for _ in range(_LENGTHENINGS):
        bend = merit - line.before - length * slope
        items = items & (bend.abs() <= _STRAIGHT * length * slope.abs())
        if not bool(items.any()):
            break
        longer, violation = line.at(LONGEST_STEP * length)
        allowed = torch.maximum(norm(line.constraints), rounding * length * norm(line.direction))
        items = items & (longer < merit) & (violation <= allowed)
        length = torch.where(items, LONGEST_STEP * length, length)
        merit = longer
    return length
