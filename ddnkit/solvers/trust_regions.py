"""Riemannian trust regions: steps that minimise a quadratic model of f within a radius, on a manifold.

At y the model of f at the retraction of a tangent vector η is
    m(η) = f + ⟨g, η⟩ + ½⟨η, H η⟩,
g the Riemannian gradient and H the Riemannian Hessian. Its minimum over ‖η‖ ≤ Δ is approximated by conjugate
gradients that end at the radius, or at a direction of negative curvature, which is followed to the radius
(Steihaug and Toint). Δ grows where m predicts f well, and shrinks where it does not.

Near a solution H is known to the last digit, so convergence is quadratic: at a backward error e the inner
system is solved to a part of e, and once the tolerance is reached one more step brings the error to
rounding. There f no longer tells steps apart, and the gradient does: a step along which m falls by no more
than f's rounding is taken if it shortens the gradient.

A start on which g vanishes may be a saddle point or a maximum. There conjugate gradients for a drawn right
side look for a direction of negative curvature, and f is followed along it.

Source: Absil, Baker and Gallivan, *Trust-region methods on Riemannian manifolds*; Steihaug, *The conjugate
gradient method and trust regions in large scale optimization*.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..manifold import Manifold
from ..perturbation import relative_changes
from ..problem import Problem
from .iterative import whole_number
from .riemannian import ManifoldSolver, Run, per_item

_FIRST_RADIUS = 0.5
_SHRINK, _GROW = 0.25, 2.0
_ACCEPTED, _BAD, _GOOD = 0.1, 0.25, 0.75
_LOOSEST, _TIGHTEST = 0.1, 1e-7
#: Products with the Hessian that look for negative curvature at a stationary point.
_LOOKS = 12
_ESCAPE = 0.1
#: On a GPU it is asked every so many inner iterations whether all items are done: each time is a wait.
_ASKED_EVERY = 4


@dataclass(frozen=True, kw_only=True)
class RiemannianTrustRegions(ManifoldSolver):
    """Solves  min f(x, y) over y on a manifold  by trust regions with truncated conjugate gradients.

    Matrix-free: O(m) memory. Second-order: the error of a solution is of the size of rounding. A maximum or
    saddle point that is hit exactly is left where a few products with the Hessian show a direction of
    negative curvature.

    Args:
        tolerance: backward error at which the last step is taken; None for eps^{2/3}, 4e-11 in float64.
        max_inner: products with the Hessian a step; None for the number of unknowns, 500 at most.
    """

    name = "riemannian_trust_regions"

    max_inner: int | None = whole_number(None, least=1)

    def start(self, problem: Problem, y: Tensor) -> Run:
        """See `ManifoldSolver.start`."""
        tolerance = (
            torch.finfo(y.dtype).eps ** (2 / 3) if self.tolerance is None else self.tolerance
        )
        most = min(y.shape[1:].numel(), 500) if self.max_inner is None else self.max_inner
        return _Run(problem, y, tolerance, most)


class _Run(Run):
    second = True

    def __init__(self, problem: Problem, y: Tensor, tolerance: float, most: int) -> None:
        super().__init__(problem, y, tolerance)
        self.most = most
        self.radius = _FIRST_RADIUS * self.size
        self.polished = torch.zeros_like(self.failed)
        self.looked = torch.zeros_like(self.failed)

    @property
    def good_enough(self) -> float:
        """Where a step that is lost in rounding leaves it."""
        return max(2 * self.tolerance, self.eps**0.5)

    def settled(self, passed: Tensor) -> Tensor:
        """Those that have had their last step, and that no direction leads down from."""
        done = passed & (self.polished | (self.point.slope <= 4 * self.eps * self.scale))
        fresh = done & ~self.looked
        if bool(fresh.any()):
            self.looked = self.looked | fresh
            done = done & ~self._escape(fresh)
        return done

    def step(self, active: Tensor) -> None:
        """One trust-region step."""
        here, manifold = self.point, self.manifold
        passed = here.slope <= self.tolerance * self.scale
        error = here.slope / torch.where(self.scale > 0, self.scale, 1.0)
        going = active & (here.square > 0)
        model = _Model(manifold, here.y, here.hessian())
        inner = model.minimise(
            here.gradient, self.radius, going, error.clamp(_TIGHTEST, _LOOSEST), self.most
        )
        predicted = -(
            manifold.inner(here.y, here.gradient, inner.step)
            + manifold.inner(here.y, inner.step, inner.product) / 2
        )
        y = manifold.retract(here.y, inner.step)
        there = self.at(torch.where(per_item(going, y), y, here.y))
        noise = self.noise(there.value)
        ratio = (here.value - there.value + noise) / (predicted + noise)
        # Below rounding f says nothing; the gradient does.
        blind, shorter = predicted <= 4 * noise, there.slope < here.slope
        accepted = going & there.finite & (ratio > _ACCEPTED) & (~blind | shorter)
        shrinks = going & ~(accepted & (ratio >= _BAD))
        grows = accepted & (ratio > _GOOD) & inner.at_radius
        length = manifold.inner(here.y, inner.step, inner.step).sqrt()
        self.radius = torch.where(
            shrinks, _SHRINK * torch.minimum(self.radius, length), self.radius
        )
        self.radius = torch.where(grows, _GROW * self.radius, self.radius)
        self.polished = self.polished | (active & passed)
        self.failed = active & ~accepted & (blind | ~(self.radius > self.eps * self.size))
        self.move(accepted | ~active, there)

    def _escape(self, items: Tensor) -> Tensor:
        """Leave those ``items`` from which a direction of negative curvature leads down; which they were."""
        here, manifold = self.point, self.manifold
        drawn = relative_changes(here.y, here.y.shape[1:], 1.0, 0, 7).expand_as(here.y)
        right = manifold.tangent(here.y, drawn)
        model = _Model(manifold, here.y, here.hessian())
        goal = torch.full_like(here.slope, self.eps)
        looked = model.minimise(right, torch.inf * self.size, items, goal, min(self.most, _LOOKS))
        found = items & looked.negative
        if not bool(found.any()):
            return found
        length = manifold.inner(here.y, looked.direction, looked.direction).sqrt()
        unit = looked.direction / per_item(torch.where(length > 0, length, 1.0), right)
        best, value, left = here.y, here.value, torch.zeros_like(found)
        for sign in (1.0, -1.0):
            y = manifold.retract(here.y, per_item(sign * _ESCAPE * self.size, unit) * unit)
            f = self.problem.objective(y).detach()
            lower = found & f.isfinite() & (f < value - self.noise(f))
            best = torch.where(per_item(lower, y), y, best)
            value, left = torch.where(lower, f, value), left | lower
        if bool(left.any()):
            self.point = self.at(best)
            self.polished, self.looked = self.polished & ~left, self.looked & ~left
            self.radius = torch.where(left, _FIRST_RADIUS * self.size, self.radius)
        return left


@dataclass(frozen=True)
class _Inner:
    """What conjugate gradients have found.

    Attributes:
        step: η, (B, *y). product: H η. at_radius: which ended there, (B,).
        negative: which met a direction of negative curvature, (B,). direction: that, (B, *y).
    """

    step: Tensor
    product: Tensor
    at_radius: Tensor
    negative: Tensor
    direction: Tensor


class _Model:
    """The quadratic model of f on the tangent space at y (B, *y)."""

    def __init__(self, manifold: Manifold, y: Tensor, hessian: Callable[[Tensor], Tensor]) -> None:
        self.manifold, self.y, self.hessian = manifold, y, hessian

    def inner(self, u: Tensor, v: Tensor) -> Tensor:
        """⟨u, v⟩ at y."""
        return self.manifold.inner(self.y, u, v)

    def minimise(
        self, gradient: Tensor, radius: Tensor, items: Tensor, goal: Tensor, most: int
    ) -> _Inner:
        """η with H η ≈ −gradient, or at the radius, of the ``items``; 0 of the others.

        Args:
            goal: (B,), the part of the gradient that may be left. most: products with H.
        """
        eta, product = torch.zeros_like(gradient), torch.zeros_like(gradient)
        # Beside a small gradient, what rounding has left of its normal part is not small. To carry it to
        # where it is projects it, orthogonally in the metric.
        residual = self.manifold.transport(self.y, self.y, gradient)
        direction = -residual
        square = self.inner(residual, residual)
        target = goal.square() * square
        # Of η and the direction, which need no product with the metric again.
        length, mixed, of_direction = torch.zeros_like(square), torch.zeros_like(square), square
        going, at_radius = items & (square > 0), torch.zeros_like(items)
        negative, lowest = torch.zeros_like(items), torch.zeros_like(gradient)
        asked_every = 1 if gradient.device.type == "cpu" else _ASKED_EVERY
        for k in range(most):
            if k % asked_every == 0 and not bool(going.any()):
                break
            image = self.hessian(direction)
            curvature = self.inner(direction, image)
            alpha = square / curvature
            longer = length + 2 * alpha * mixed + alpha.square() * of_direction
            down = ~(curvature > 0)
            over = going & (down | ~(longer < radius.square()))
            bent = going & down & curvature.isfinite()
            lowest = torch.where(per_item(bent & ~negative, direction), direction, lowest)
            negative = negative | bent
            # To the radius: the positive root of ‖η + τ δ‖ = Δ.
            root = (mixed.square() + of_direction * (radius.square() - length).clamp_min(0)).sqrt()
            tau = ((root - mixed) / of_direction).nan_to_num(0.0, 0.0, 0.0)
            alpha = torch.where(over, tau, torch.where(going, alpha, 0.0))
            at_radius = at_radius | over
            eta = eta + per_item(alpha, eta) * direction
            product = product + per_item(alpha, eta) * image
            going = going & ~over
            residual = torch.where(
                per_item(going, eta), residual + per_item(alpha, eta) * image, residual
            )
            before, square = square, torch.where(going, self.inner(residual, residual), square)
            going = going & (square > target)
            beta = square / before
            length = torch.where(going, longer, length)
            mixed = torch.where(going, beta * (mixed + alpha * of_direction), mixed)
            of_direction = torch.where(going, square + beta.square() * of_direction, of_direction)
            step = per_item(beta, direction) * direction - residual
            direction = torch.where(per_item(going, direction), step, direction)
        return _Inner(eta, product, at_radius, negative, lowest)
