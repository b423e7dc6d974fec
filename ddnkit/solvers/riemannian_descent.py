"""Riemannian conjugate gradients and L-BFGS: first-order steps along a manifold, with a line search.

Conjugate gradients: d = −g + β T(d), T the transport to the new point, with the β of Hestenes and Stiefel
where it is between 0 and that of Dai and Yuan, else the nearer of both.

L-BFGS: d = −H g by the two-loop recursion from pairs (s, u) of steps and changes of the gradient, all
transported to the new point. A pair without positive curvature is none. Along a manifold the recursion is
the one of Euclidean space with the manifold's inner products.

The step t along the retraction of t d falls by at least 10⁻⁴ t |⟨g, d⟩| (Armijo), found by quadratic
interpolation from t = 1 (L-BFGS) or from the t with which f falls as it did before (conjugate gradients),
and then by secants until the slope along it is a tenth of what it was (conjugate gradients; 0.9 of it for
L-BFGS), a few times at most.
Near rounding, where f cannot tell, the slope has to fall instead (the approximate condition of Hager and
Zhang).

Source: Boumal, *An Introduction to Optimization on Smooth Manifolds*; Huang, Gallivan and Absil, *A Broyden
class of quasi-Newton methods for Riemannian optimization*; Hager and Zhang, *A survey of nonlinear
conjugate gradient methods*.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass

import torch
from torch import Tensor

from ..problem import Problem
from .iterative import whole_number
from .riemannian import ManifoldSolver, Point, Run, per_item

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
_ARMIJO = 1e-4
_TRIALS = 25
_FIRST_STEP = 0.1
_SHORTEST, _LONGEST = 0.1, 0.5
_FAILURES = 2
_LONGER = 10.0
#: Steps that fall enough are tried again, where the slope is still steep, by the secant, within this factor.
_REFINED, _FURTHER = 3, 10.0


@dataclass(frozen=True, kw_only=True)
class RiemannianConjugateGradient(ManifoldSolver):
    """Solves  min f(x, y) over y on a manifold  by nonlinear conjugate gradients.

    First-order: gradients alone, O(m) memory.

    Args:
        tolerance: None for 1e-9 in float64, 1e-5 in float32.
    """

    name = "riemannian_conjugate_gradient"

    max_iterations: int = 2000

    def start(self, problem: Problem, y: Tensor) -> Run:
        """See `ManifoldSolver.start`."""
        return _Conjugate(problem, y, _tolerance(self, y))


@dataclass(frozen=True, kw_only=True)
class RiemannianLBFGS(ManifoldSolver):
    """Solves  min f(x, y) over y on a manifold  by L-BFGS.

    First-order: gradients alone, O(m·history) memory.

    Args:
        tolerance: None for 1e-9 in float64, 1e-5 in float32.
        history: pairs kept an item.
    """

    name = "riemannian_lbfgs"

    max_iterations: int = 2000
    history: int = whole_number(10, least=1)

    def start(self, problem: Problem, y: Tensor) -> Run:
        """See `ManifoldSolver.start`."""
        return _QuasiNewton(problem, y, _tolerance(self, y), self.history)


def _tolerance(solver: ManifoldSolver, y: Tensor) -> float:
    # To half of it, so that what was a solution is one still when started from.
    return (_TOLERANCE[y.dtype] if solver.tolerance is None else solver.tolerance) / 2


class _Descent(Run, abc.ABC):
    """Steps along a direction of descent.

    Attributes:
        flatness: the part of the slope along the direction that a step may leave.
    """

    flatness = 0.9

    def __init__(self, problem: Problem, y: Tensor, tolerance: float) -> None:
        super().__init__(problem, y, tolerance)
        self.failures = torch.zeros_like(self.scale, dtype=torch.long)

    @abc.abstractmethod
    def direction(self) -> Tensor:
        """Where to go from the point, (B, *y)."""

    @abc.abstractmethod
    def first_length(self, direction: Tensor, slope: Tensor) -> Tensor:
        """The t to try first, (B,)."""

    def unit(self) -> Tensor:
        """The factor of −g in the direction of steepest descent, (B,)."""
        return torch.ones_like(self.scale)

    @abc.abstractmethod
    def moved(self, before: Point, step: Tensor, items: Tensor) -> None:
        """``items`` have made the tangent ``step`` (B, *y) from ``before`` to the point."""

    @abc.abstractmethod
    def restart(self, items: Tensor) -> None:
        """Forget what the direction of ``items`` is made from."""

    def step(self, active: Tensor) -> None:
        """One step along a direction of descent."""
        here, manifold = self.point, self.manifold
        direction = self.direction()
        slope = manifold.inner(here.y, here.gradient, direction)
        length = manifold.inner(here.y, direction, direction).sqrt()
        uphill = ~(slope < -self.eps * length * here.square.sqrt())
        if bool((uphill & active).any()):
            self.restart(uphill)
            steepest = -per_item(self.unit(), here.gradient) * here.gradient
            direction = torch.where(per_item(uphill, direction), steepest, direction)
            slope = manifold.inner(here.y, here.gradient, direction)
        t = self.first_length(direction, slope)
        going, accepted = active & (slope < 0), torch.zeros_like(active)
        there, chosen = here, torch.zeros_like(t)
        for trial in range(_TRIALS):
            moved = per_item(torch.where(going, t, 0.0), direction) * direction
            y = torch.where(per_item(going, there.y), manifold.retract(here.y, moved), there.y)
            new = self.at(y)
            noise = self.noise(new.value)
            enough = new.value <= here.value + _ARMIJO * t * slope
            # A step that overshoots in rounding leads to a slope that is no smaller.
            blind = (t * slope).abs() <= 4 * noise
            lower = (new.slope < here.slope) & (new.value <= here.value + noise)
            good = going & new.finite & torch.where(blind, lower, enough)
            # A longer or shorter one that was tried after a good one has to be better than that.
            good = good & (~accepted | (new.value < there.value))
            worse = going & accepted & ~good
            there = (
                new
                if bool((good | ~going).all())
                else self.at(torch.where(per_item(good, y), y, there.y))
            )
            chosen, accepted = torch.where(good, t, chosen), accepted | good
            left = manifold.inner(
                there.y, there.gradient, manifold.transport(here.y, there.y, direction)
            )
            flat_enough = left.abs() <= self.flatness * slope.abs()
            going = going & ~worse & (~good | (~flat_enough & ~blind & (trial < _REFINED)))
            if not bool(going.any()):
                break
            # Where the slope along the step vanishes, by the secant; or f, by the parabola.
            secant = (t * slope / (slope - left)).nan_to_num(0.0, 0.0, 0.0)
            secant = torch.where(secant > 0, secant, _FURTHER * t)
            secant = torch.minimum(torch.maximum(secant, t / _FURTHER), _FURTHER * t)
            fitted = -slope * t.square() / (2 * (new.value - here.value - slope * t))
            fitted = torch.where(new.finite & (fitted > 0), fitted, 0.0)
            fitted = torch.minimum(torch.maximum(fitted, _SHORTEST * t), _LONGEST * t)
            t = torch.where(going, torch.where(good, secant, fitted), t)
        self.failures = torch.where(accepted, 0, self.failures + (active & ~accepted))
        self.restart(active & ~accepted)
        self.failed = active & (self.failures >= _FAILURES)
        self.point = there
        self.moved(here, per_item(chosen, direction) * direction, accepted)

    def steepest_length(self) -> Tensor:
        """Of a first step along −g, as a factor of it, (B,)."""
        length = self.point.square.sqrt()
        return _FIRST_STEP * self.size / torch.where(length > 0, length, 1.0)


class _Conjugate(_Descent):
    flatness = 0.1

    def __init__(self, problem: Problem, y: Tensor, tolerance: float) -> None:
        super().__init__(problem, y, tolerance)
        self._direction = torch.zeros_like(y)
        self._fall: Tensor | None = None  # what the last step was expected to fall by, (B,)
        self._length = self.steepest_length()

    def direction(self) -> Tensor:
        """−g + β T(d)."""
        return self._direction - self.point.gradient

    def first_length(self, direction: Tensor, slope: Tensor) -> Tensor:
        """That with which f falls as before."""
        if self._fall is None:
            return self._length
        return torch.where(self._fall > 0, self._fall / slope.abs(), self._length)

    def moved(self, before: Point, step: Tensor, items: Tensor) -> None:
        """β from the transported direction and gradient."""
        here, manifold = self.point, self.manifold
        y, old = here.y, before.y
        last = manifold.transport(old, y, self._direction - before.gradient)
        change = here.gradient - manifold.transport(old, y, before.gradient)
        along = manifold.inner(y, last, change)
        hestenes = manifold.inner(y, here.gradient, change) / along
        yuan = here.square / along
        beta = torch.maximum(torch.zeros_like(yuan), torch.minimum(hestenes, yuan))
        beta = torch.where(items & beta.isfinite(), beta, 0.0)
        self._direction = per_item(beta, last) * last
        # t|⟨g, d⟩|, twice what a quadratic falls by, with which the next first length is its minimum.
        expected = 2 * (before.value - here.value)
        self._fall = torch.where(items, expected, 0.0)
        self._length = torch.where(items, self._length, self.steepest_length())

    def restart(self, items: Tensor) -> None:
        """Along −g."""
        self._direction = torch.where(per_item(items, self._direction), 0.0, self._direction)
        if self._fall is not None:
            self._fall = torch.where(items, 0.0, self._fall)
        self._length = torch.where(items, self.steepest_length(), self._length)


class _QuasiNewton(_Descent):
    def __init__(self, problem: Problem, y: Tensor, tolerance: float, pairs: int) -> None:
        super().__init__(problem, y, tolerance)
        self.pairs = pairs
        self.gamma = self.steepest_length()
        # The newest last; 1/⟨s, u⟩ of each item, 0 for none.
        self.s: list[Tensor] = []
        self.u: list[Tensor] = []
        self.rho: list[Tensor] = []

    def unit(self) -> Tensor:
        """γ."""
        return self.gamma

    def direction(self) -> Tensor:
        """−H g."""
        y, inner = self.point.y, self.manifold.inner
        q, coefficients = self.point.gradient, []
        for s, u, rho in zip(reversed(self.s), reversed(self.u), reversed(self.rho), strict=True):
            coefficients.append(rho * inner(y, s, q))
            q = q - per_item(coefficients[-1], u) * u
        q = per_item(self.gamma, q) * q
        for s, u, rho, a in zip(self.s, self.u, self.rho, reversed(coefficients), strict=True):
            q = q + per_item(a - rho * inner(y, u, q), s) * s
        return -q

    def first_length(self, direction: Tensor, slope: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(slope)

    def moved(self, before: Point, step: Tensor, items: Tensor) -> None:
        """The pairs, transported, and one more."""
        here, manifold = self.point, self.manifold
        old, y = before.y, here.y
        everything = torch.stack([*self.s, *self.u, step, before.gradient])
        carried = manifold.transport(old.expand_as(everything), y.expand_as(everything), everything)
        carried = torch.where(per_item(items, y), carried, everything)
        count = len(self.s)
        s, u = list(carried[:count]), list(carried[count : 2 * count])
        step, change = carried[-2], here.gradient - carried[-1]
        product = manifold.inner(y, step, change)
        square = manifold.inner(y, change, change)
        length = (square * manifold.inner(y, step, step)).sqrt()
        kept = items & (product > self.eps * length)
        rho = torch.where(kept, 1 / product, 0.0)
        # Where the slope has not bent at all, nothing says how long a step is: longer.
        self.gamma = torch.where(
            kept, product / square, torch.where(items, _LONGER * self.gamma, self.gamma)
        )
        self.s = [*s, step][-self.pairs :]
        self.u = [*u, change][-self.pairs :]
        self.rho = [*self.rho, rho][-self.pairs :]

    def restart(self, items: Tensor) -> None:
        """No pairs."""
        self.rho = [torch.where(items, 0.0, rho) for rho in self.rho]
        self.gamma = torch.where(items, self.steepest_length(), self.gamma)
