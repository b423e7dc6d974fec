"""Projections written as nodes with inequality constraints: right at every scale, and kinks are told.

No node has a `solve`: what is tested is the statement alone, with the solver that the library takes for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from bounds import rounding
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from ddnkit import DeclarativeLayer, DeclarativeNode, Problem, UntrustedGradientError
from ddnkit.solvers.interior_point import InteriorPoint

#: What the projections promise, relative to the size r of the set.
PROMISED = 1e-8
SCALES = (1e-9, 1.0, 1e9)


class Projection(DeclarativeNode):
    """The point that is nearest to x, of a set of size r."""

    input_dims = (1, 0)

    def objective(self, x: Tensor, r: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (y - x).square().sum()

    def initial_point(self, x: Tensor, r: Tensor) -> Tensor:
        return x.clone()


class Box(Projection):
    def bounds(self, x: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        return -r, 2 * r


class Orthant(Projection):
    bounds = (0.0, None)


class Simplex(Projection):
    bounds = (0.0, None)

    def equality_constraints(self, x: Tensor, r: Tensor, y: Tensor) -> Tensor:
        return y.sum() - r


class L1Ball(Projection):
    def inequality_constraints(self, x: Tensor, r: Tensor, y: Tensor) -> Tensor:
        return torch.cartesian_prod(*[x.new_tensor([-1.0, 1.0])] * len(x)) @ y - r


class L2Ball(Projection):
    def inequality_constraints(self, x: Tensor, r: Tensor, y: Tensor) -> Tensor:
        return y.square().sum() - r**2


class LInfBall(Projection):
    def inequality_constraints(self, x: Tensor, r: Tensor, y: Tensor) -> Tensor:
        return torch.cat([y, -y]) - r


class HalfSpace(Projection):
    def inequality_constraints(self, x: Tensor, r: Tensor, y: Tensor) -> Tensor:
        return NORMAL.to(y) @ y - r


NORMAL = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def onto_simplex(x: Tensor, r: Tensor) -> Tensor:
    """By sorting (Held, Wolfe and Crowder, 1974)."""
    shifts = (x.sort(descending=True).values.cumsum(0) - r) / torch.arange(1, len(x) + 1)
    return (x - shifts.max()).clamp(min=0)


def onto_l1_ball(x: Tensor, r: Tensor) -> Tensor:
    return x if x.abs().sum() <= r else x.sign() * onto_simplex(x.abs(), r)


@dataclass
class Case:
    """A set, the projection on it in closed form, and points at r = 1: where it is smooth, and kinks."""

    node: type[Projection]
    exact: Callable[[Tensor, Tensor], Tensor]
    inside: list[list[float]]
    outside: list[list[float]]
    ties: list[list[float]]
    on: list[list[float]]

    def project(self, x: Tensor, r: Tensor) -> Tensor:
        return torch.stack([self.exact(one, r) for one in x])

    @property
    def smooth(self) -> list[list[float]]:
        return [*self.inside, *self.outside, *self.ties]


CASES = {
    case.node.__name__: case
    for case in (
        Case(
            Box,
            lambda x, r: torch.maximum(torch.minimum(x, 2 * r), -r),
            inside=[[0.2, -0.3, 1.5], [0.0, 0.0, 0.0]],
            outside=[[-1.7, 0.3, 5.0], [300.0, -40.0, 0.1]],
            ties=[[3.0, 3.0, 3.0], [-2.0, -2.0, 0.5]],
            on=[[-1.0, 0.3, 0.5], [2.0, 2.0, -7.0], [0.1, 2.0, 0.1]],
        ),
        Case(
            Orthant,
            lambda x, r: x.clamp(min=0),
            inside=[[0.2, 0.3, 1.5]],
            outside=[[-1.7, 0.3, 5.0], [300.0, -40.0, 0.1]],
            ties=[[-3.0, -3.0, -3.0], [2.0, 2.0, -2.0]],
            on=[[0.0, 0.3, 0.5], [1.0, -2.0, 0.0], [0.0, 0.0, 0.0]],
        ),
        Case(
            Simplex,
            onto_simplex,
            inside=[[0.2, 0.3, 0.5]],
            outside=[[1.7, 0.3, -5.0], [300.0, -40.0, 0.1], [0.1, 0.2, 0.3]],
            ties=[[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [2.0, 2.0, -2.0], [0.4, 0.4, 0.2]],
            on=[[0.6, 0.4, 0.0], [1.0, 0.0, 0.0], [2.0, -0.3, 1.0]],
        ),
        Case(
            L1Ball,
            onto_l1_ball,
            inside=[[0.2, -0.3, 0.1], [0.0, 0.0, 0.0]],
            outside=[[1.7, 0.9, -5.0], [300.0, -40.0, 0.1], [0.9, -0.8, 0.6]],
            ties=[[1.0, 1.0, 1.0], [1.0, -1.0, 0.3], [2.0, 2.0, 0.0]],
            on=[[0.6, -0.4, 0.0], [1.0, 0.0, 0.0], [0.5, 0.3, 0.2], [2.0, 1.0, 0.3]],
        ),
        Case(
            L2Ball,
            lambda x, r: x / (x.norm() / r).clamp(min=1),
            inside=[[0.2, -0.3, 0.5], [0.0, 0.0, 0.0]],
            outside=[[1.7, 0.3, -5.0], [300.0, -40.0, 0.1]],
            ties=[[1.0, 1.0, 1.0], [2.0, 2.0, 0.0]],
            on=[[0.6, 0.8, 0.0], [1.0, 0.0, 0.0]],
        ),
        Case(
            LInfBall,
            lambda x, r: torch.maximum(torch.minimum(x, r), -r),
            inside=[[0.2, -0.3, 0.5], [0.0, 0.0, 0.0]],
            outside=[[1.7, 0.3, -5.0], [300.0, -40.0, 0.1]],
            ties=[[2.0, 2.0, 2.0], [2.0, -2.0, 0.5]],
            on=[[1.0, 0.3, 0.5], [1.0, -1.0, 3.0]],
        ),
        Case(
            HalfSpace,
            lambda x, r: x - NORMAL * ((NORMAL @ x - r) / NORMAL.square().sum()).clamp(min=0),
            inside=[[0.2, 0.3, 0.5], [0.0, 0.0, 0.0]],
            outside=[[1.7, 0.3, 5.0], [300.0, -40.0, 0.1]],
            ties=[[2.0, 2.0, 2.0], [-3.0, -3.0, -3.0]],
            on=[[1.0, 0.0, 0.0], [2.0, 0.75, 1.0]],
        ),
    )
}


def at(points: list[Any], scale: float) -> tuple[Tensor, Tensor]:
    x = scale * torch.tensor(points, dtype=torch.float64)
    return x.requires_grad_(), torch.tensor(scale, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.covering
def test_projections_are_right_inside_outside_and_with_ties(case: Case, scale: float) -> None:
    x, r = at(case.smooth, scale)
    layer = DeclarativeLayer(case.node(), policy="raise")
    y, expected = layer(x, r), case.project(x, r)
    assert (y - expected).abs().max() <= PROMISED * scale
    weights = torch.linspace(1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)
    found = torch.autograd.grad((weights * y).sum(), (x, r), materialize_grads=True)
    exact = torch.autograd.grad((weights * expected).sum(), (x, r), materialize_grads=True)
    for one, other in zip(found, exact, strict=True):
        assert (one - other).abs().max() <= PROMISED * (1 + other.abs().max())
    assert set(layer.certificate.verdicts()) == {"trusted"}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.covering
def test_projections_are_right_on_the_boundary_and_its_kinks_are_told(
    case: Case, scale: float
) -> None:
    x, r = at([*case.on, *case.inside], scale)
    layer = DeclarativeLayer(case.node(), policy="nan")
    y = layer(x, r)
    assert (y - case.project(x, r)).abs().max() <= PROMISED * scale
    y.sum().backward()
    kinks = len(case.on)
    assert layer.certificate.verdicts()[:kinks] == ["invalid"] * kinks
    assert (layer.certificate.active_margin[:kinks] == 0).all()
    assert x.grad is not None and x.grad[:kinks].isnan().all() and x.grad[kinks:].isfinite().all()
    for one in x.detach()[:kinks]:
        with pytest.raises(UntrustedGradientError, match="weakly active"):
            DeclarativeLayer(case.node(), policy="raise")(one.requires_grad_(), r).sum().backward()


@pytest.mark.long  # `test_inequalities.py` has the same of nodes with a `solve`, in no time
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_projections_have_their_derivatives_away_from_kinks(case: Case) -> None:
    layer = DeclarativeLayer(case.node(), policy="raise")
    # Of coordinates of 300 finite differences keep too few digits.
    for points in ([*case.inside, case.outside[0], *case.ties], case.ties[-1]):
        assert gradcheck(layer, at(points, 1.0), fast_mode=True)
        assert gradgradcheck(layer, at(points, 1.0), fast_mode=True)


def at_a_kink(name: str, n: int, count: int) -> Tensor:
    """Points whose projection leaves one constraint weakly active, at r = 1."""
    numbers = {"dtype": torch.float64}
    y, mu = torch.rand(count, n, **numbers), torch.rand(count, n, **numbers)
    zero = torch.rand(count, n) < 0.5
    zero[:, 0], zero[:, 1], mu[:, 1] = False, True, 0.0
    if name == "Orthant":
        return torch.where(zero, -mu, y)
    y = y.masked_fill(zero, 0.0)
    y = y / y.sum(dim=1, keepdim=True)
    if name == "Simplex":
        return torch.where(zero, -mu, y) + torch.randn(count, 1, **numbers)
    if name == "L1Ball":
        threshold = 0.1 + torch.rand(count, 1, **numbers)
        sizes = torch.where(zero, threshold * (1 - mu), y + threshold)
        return torch.where(torch.rand(count, n) < 0.5, -sizes, sizes)
    x = torch.randn(count, n, **numbers)
    if name == "L2Ball":
        return x / x.norm(dim=1, keepdim=True)
    x[:, 1] = 2.0 if name == "Box" else 1.0
    return x


@pytest.mark.parametrize("scale", [*SCALES, 3.7])
@pytest.mark.parametrize("name", [name for name in CASES if name != "HalfSpace"])
@pytest.mark.covering
def test_no_kink_of_drawn_points_is_missed(name: str, scale: float) -> None:
    layer = DeclarativeLayer(CASES[name].node(), policy="nan")
    r = torch.tensor(scale, dtype=torch.float64)
    for n in (2, 5):
        x = (scale * at_a_kink(name, n, 12)).requires_grad_()
        layer(x, r).sum().backward()
        assert layer.certificate.verdicts() == ["invalid"] * len(x)
        # A hundredth to the side there is none.
        aside = torch.zeros_like(x)
        aside[:, 1] = 0.01 * scale
        aside = 0.01 * x.detach() if name == "L2Ball" else aside
        layer((x.detach() + aside).requires_grad_(), r).sum().backward()
        assert layer.certificate.verdicts() == ["trusted"] * len(x)


@pytest.mark.parametrize("x", [[0.034, 0.0], [1.0, -2.0, 0.0, 0.3]])
def test_the_kink_of_a_ramp_is_told_where_the_solver_stops_short_of_it(x: list[float]) -> None:
    class Short(Orthant):
        """As an interior point, which is left of 0 by what rounding allows."""

        def solve(self, x: Tensor, r: Tensor) -> Tensor:
            return torch.where(x == 0, 1e-32, x.clamp(min=0))

    (found,), r = at([x], 1.0)
    for node in (Short(), Orthant()):
        layer, tracked = DeclarativeLayer(node), found.detach().requires_grad_()
        with pytest.warns(UserWarning, match="weakly active"):
            layer(tracked, r).sum().backward()
        assert layer.certificate.active_margin == 0


def test_what_is_small_in_its_own_unit_is_no_kink() -> None:
    units = 10.0 ** torch.arange(-9, 10, 3, dtype=torch.float64)
    x = (units * torch.where(torch.arange(7) % 3 == 1, -0.7, 0.4)).requires_grad_()

    class Own(Orthant):
        def solve(self, x: Tensor, r: Tensor) -> Tensor:
            return x.clamp(min=0)

    class Softmax(Simplex):
        def objective(self, x: Tensor, r: Tensor, y: Tensor) -> Tensor:
            return (y * y.log()).sum() - x @ y

        def solve(self, x: Tensor, r: Tensor) -> Tensor:
            return x.softmax(dim=0)

    layer = DeclarativeLayer(Own(), policy="raise")
    (gradient,) = torch.autograd.grad(layer(x, units.new_tensor(1.0)).sum(), x)
    assert torch.equal(gradient, (x > 0).double())
    scores = torch.tensor([0.0, -30.0, -60.0, 1.0], dtype=torch.float64, requires_grad=True)
    layer = DeclarativeLayer(Softmax(), policy="raise")
    (gradient,) = torch.autograd.grad(layer(scores, units.new_tensor(1.0))[1], scores)
    p = scores.detach().softmax(dim=0)
    expected = p[1] * (torch.eye(4, dtype=p.dtype)[1] - p)
    assert (gradient - expected).abs().max() < rounding(p, 64) * p[1]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_start_at_the_least_of_f_takes_as_many_steps_at_every_scale(case: Case) -> None:
    # Where ∇f = 0 it tells nothing of the size of f, by which the first multipliers are chosen.
    steps = []
    for scale in SCALES:
        x, r = (z.detach() for z in at(case.smooth, scale))
        found = InteriorPoint().solve(Problem(case.node(), [x, r.expand(len(x))], len(x)))
        assert (found.status == 0).all()
        steps.append(int(found.iterations.max()))
    assert max(steps) <= 2 * min(steps) + 6


class InCircleAndEllipse(Projection):
    """Both have (r, 0) for their vertex on the right; the ellipse bends eight times as much there."""

    def inequality_constraints(self, x: Tensor, r: Tensor, y: Tensor) -> Tensor:
        ellipse = (y[0] + r) ** 2 / 4 + 4 * y[1] ** 2 - r**2
        return torch.stack([y.square().sum() - r**2, ellipse])


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("beside", [0.0, *(10.0**-k for k in range(12))])
@pytest.mark.covering
def test_constraints_that_touch_are_told_or_the_gradient_is_right(
    beside: float, scale: float
) -> None:
    (x,), r = at([[2.0, beside]], scale)
    x = x.detach().requires_grad_()
    layer = DeclarativeLayer(InCircleAndEllipse(), policy="nan")
    (gradient,) = torch.autograd.grad(layer(x, r)[1], x)
    if layer.certificate.verdicts() == ["trusted"]:
        # On the ellipse, of radius of curvature ⅛ at its vertex and nearly so beside it: ⅛/(⅛ + 1).
        assert beside > 0 and (abs(gradient[1] - 1 / 9) < 0.05 + 0.1 * beside)
    else:
        assert gradient.isnan().all()
        causes = "; ".join(layer.certificate.causes())
        # Of two that are a thousandth of the way apart, the multiplier of one is as good as zero.
        assert beside > 1e-6 or ("constraints touch" in causes and "weakly active" not in causes)
    # Far enough beside there is one that holds; too near nothing tells which.
    assert beside < 0.05 or layer.certificate.verdicts() == ["trusted"]


def test_a_vertex_that_more_constraints_hold_than_it_takes_is_regular() -> None:
    class Vertex(Projection):
        """Of a circle and two half-planes that meet on it; without a tangent nothing bends."""

        def inequality_constraints(self, x: Tensor, r: Tensor, y: Tensor) -> Tensor:
            return torch.stack([y @ y - r**2, y[0] - y[1] - r, y[0] + y[1] - r])

    x, r = at([[2.0, 0.3], [2.0, 0.0]], 1.0)
    y = DeclarativeLayer(Vertex(), policy="raise")(x, r)
    assert (y - torch.tensor([1.0, 0.0], dtype=y.dtype)).abs().max() <= PROMISED
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.abs().max() <= PROMISED


def test_constraints_that_bend_alike_are_no_two() -> None:
    class Twice(L2Ball):
        def inequality_constraints(self, x: Tensor, r: Tensor, y: Tensor) -> Tensor:
            g = super().inequality_constraints(x, r, y)
            return torch.stack([g, 2 * g, g])

    x, r = at(CASES["L2Ball"].outside[:1], 1.0)
    y, once = DeclarativeLayer(Twice(), policy="raise")(x, r), DeclarativeLayer(L2Ball())(x, r)
    (found,), (expected,) = (torch.autograd.grad(one.sum(), x) for one in (y, once))
    assert (found - expected).abs().max() <= PROMISED
