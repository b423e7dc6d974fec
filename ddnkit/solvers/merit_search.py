"""The length of a Newton step of an equality-constrained problem.

A step d = d_n + d_t (see `kkt_step`) is shortened until the augmented Lagrangian with the multipliers ν⁺
of the step,
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

Source: Nocedal and Wright, *Numerical Optimization*, chapters 15 and 17.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..problem import Problem
from .kkt_step import LocalModel, Step
from .residual import norm

#: A step is no longer than this many times the size of y, and is lengthened by this factor.
LONGEST_STEP = 10.0

_ARMIJO = 1e-4
_HALVINGS = 50
_ROUNDINGS = 16
_LENGTHENINGS = 15
_STRAIGHT = 1e-3


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
        length, merit = _shortened(line, slope.clamp_max(0), curvature, searching)
        whole = searching & (length == 1) & (-slope > line.noise)
        bent = torch.finfo(y.dtype).eps ** 0.5 * torch.linalg.matrix_norm(model.jacobian)
        return _lengthened(line, slope, length, merit, whole, bent)

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
            h = self.problem.all_constraints(trial)
        h = self.constraints if h is None else h
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


def _shortened(
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


def _lengthened(
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
