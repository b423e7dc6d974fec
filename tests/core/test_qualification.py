"""Dependent constraints: those that stay dependent are harmless, those that only meet are told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bounds import rounding
from torch import Tensor

import ddnkit
from ddnkit import DeclarativeLayer, DeclarativeNode, UntrustedGradientError

numbers = {"dtype": torch.float64}


class Nearest(DeclarativeNode):
    input_dims = (1,)

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (y - x).square().sum()

    def initial_point(self, x: Tensor) -> Tensor:
        return x.clone()


class Parabolas(Nearest):
    """Both hold at the origin alone, where they touch: y = 0 whatever x is."""

    def equality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[1] - y[0] ** 2, y[1] + y[0] ** 2])

    def solve(self, x: Tensor) -> Tensor:
        return 0 * x


class Square(Nearest):
    """y₂² = 0: the gradient vanishes where it holds."""

    def equality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        return y[1] ** 2

    def solve(self, x: Tensor) -> Tensor:
        return torch.stack([x[0], 0 * x[1]])


class SquareBelow(Square):
    def equality_constraints(self, x: Tensor, y: Tensor) -> None:
        return None

    def inequality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        return y[1] ** 2


class Discs(Nearest):
    """Of radius 1 about (1, 0) and (−1, 0), which have the origin in common."""

    def inequality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        centre = torch.tensor([1.0, 0.0], **numbers)
        return torch.stack([(y - centre).square().sum() - 1, (y + centre).square().sum() - 1])

    def solve(self, x: Tensor) -> Tensor:
        return 0 * x


@pytest.mark.parametrize("kind", [Parabolas, Square, SquareBelow, Discs])
def test_constraints_that_touch_are_told_where_all_else_is_well(kind: type[Nearest]) -> None:
    # x is such that y is stationary, so that nothing else speaks against it.
    x = torch.tensor({Parabolas: [0.0, 0.5], Discs: [0.3, 0.0]}.get(kind, [0.2, 0.0]), **numbers)
    layer = DeclarativeLayer(kind(), policy="raise")
    tracked = x.requires_grad_()
    with pytest.raises(UntrustedGradientError, match="the constraints touch"):
        layer(tracked).sum().backward()
    report = ddnkit.check(kind(), x.detach())
    # At x = y = 0 a check cannot tell whether the answer is kept from before.
    assert not report.ok
    assert kind in (Parabolas, Discs) or "the constraints touch" in report.diagnosis[0]


def test_a_solver_that_ends_near_where_they_touch_is_told_of_that() -> None:
    class Solved(Discs):
        solve = DeclarativeNode.solve

    report = ddnkit.check(Solved(), torch.tensor([0.3, 0.2], **numbers))
    assert report.kinds[0].value == "degenerate_constraints", str(report)
    assert "the constraints touch" in report.diagnosis[0]


class Written(Nearest):
    """On a circle that is stated again, otherwise: off it, the gradients are not parallel."""

    def equality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        h = y.square().sum() - 4
        return torch.stack([h, h * (y[0] + 3)])

    def solve(self, x: Tensor) -> Tensor:
        return 2 * x / x.norm()


class WrittenBelow(Nearest):
    def inequality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        g = y.square().sum() - 4
        return torch.stack([g, g * (y[0] + 3)])

    def solve(self, x: Tensor) -> Tensor:
        return 2 * x / x.norm()


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("kind", [Written, WrittenBelow])
@pytest.mark.covering
def test_one_constraint_in_two_forms_is_harmless(kind: type[Nearest], offset: float) -> None:
    class Moved(kind):  # type: ignore[misc, valid-type]
        """The circle's centre is far from the origin, beside its radius."""

        def equality_constraints(self, x: Tensor, y: Tensor) -> Any:
            return super().equality_constraints(x, y - offset)

        def inequality_constraints(self, x: Tensor, y: Tensor) -> Any:
            return super().inequality_constraints(x, y - offset)

        def solve(self, x: Tensor) -> Tensor:
            return offset + super().solve(x - offset)

    if kind is Written:
        Moved.inequality_constraints = DeclarativeNode.inequality_constraints
    else:
        Moved.equality_constraints = DeclarativeNode.equality_constraints
    x = torch.tensor([3.0, 1.0], **numbers) + offset
    layer, tracked = DeclarativeLayer(Moved(), policy="raise"), x.requires_grad_()
    J = torch.func.jacrev(layer)(tracked.detach())
    layer(tracked).sum().backward()
    u = torch.tensor([3.0, 1.0], **numbers)
    length = u.norm()
    expected = 2 * (torch.eye(2) - torch.outer(u, u) / length**2) / length
    # y − c loses as many digits as c is larger than it.
    assert (J - expected).abs().max() < rounding(torch.float64, 1e3, size=1 + offset)
    assert layer.certificate.verdicts() == ["trusted"]
    assert ddnkit.check(Moved(), x.detach()).ok


class Below(DeclarativeNode):
    """y ≤ a and y ≤ b: y = min(x, a, b)."""

    input_dims = (0, 0, 0)

    def objective(self, x: Tensor, a: Tensor, b: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (y - x).square()

    def inequality_constraints(self, x: Tensor, a: Tensor, b: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y - a, y - b])

    def solve(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.minimum(x, torch.minimum(a, b))


@pytest.mark.parametrize("at", [1.0, 0.0])
def test_two_active_constraints_that_meet_for_these_inputs_alone_are_a_kink(at: float) -> None:
    layer = DeclarativeLayer(Below(), policy="raise")
    x = torch.tensor([at + 1, at + 1], **numbers)
    a = torch.tensor([at, at], **numbers)
    b = torch.tensor([at, at + 0.5], **numbers)
    tracked = a.clone().requires_grad_()
    with pytest.raises(UntrustedGradientError, match=r"1 of 2 .*weakly active"):
        layer(x, tracked, b).sum().backward()
    assert layer.certificate.active_margin[0] == 0 < layer.certificate.active_margin[1]
    layer(x[1:], tracked[1:], b[1:]).sum().backward()
    assert not ddnkit.check(Below(), x[0], a[0], b[0]).ok


def test_where_nobody_asks_for_what_would_part_them_they_are_harmless() -> None:
    layer = DeclarativeLayer(Below(), policy="raise")
    x = torch.tensor(2.0, **numbers).requires_grad_()
    layer(x, torch.ones((), **numbers), torch.ones((), **numbers)).backward()
    assert x.grad == 0
    assert layer.certificate.verdicts() == ["trusted"]


def test_an_entry_may_be_fixed_by_equal_bounds() -> None:
    class Fixed(Nearest):
        bounds = (torch.tensor([1.0, -9.0], **numbers), torch.tensor([1.0, 9.0], **numbers))

    layer = DeclarativeLayer(Fixed(), policy="raise")
    x = torch.tensor([3.0, 0.5], **numbers).requires_grad_()
    layer(x).sum().backward()
    assert (x.grad - torch.tensor([0.0, 1.0], **numbers)).abs().max() < rounding(torch.float64, 16)


class Clamped(DeclarativeNode):
    input_dims = (1, 1, 1)

    def objective(self, x: Tensor, lower: Tensor, upper: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (y - x).square().sum()

    def bounds(self, x: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        return lower, upper

    def solve(self, x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(x, lower), upper)


@pytest.mark.parametrize("degenerate", ["warn", "one_sided"])
@pytest.mark.parametrize("x", [3.0, 1.0, 1 + 1e-13, 1 - 1e-7, -1.0])
def test_a_fixed_entry_has_no_kink_where_it_would_be_there_anyway(
    x: float, degenerate: str
) -> None:
    class Chosen(Clamped):
        pass

    Chosen.degenerate = degenerate
    layer = DeclarativeLayer(Chosen(), policy="raise")
    tracked = torch.tensor([x, 0.5, -7.0], **numbers).requires_grad_()
    ends = torch.tensor([[1.0, 0.0, -5.0], [1.0, 9.0, -5.0]], **numbers)
    (gradient,) = torch.autograd.grad(layer(tracked, *ends).sum(), tracked)
    expected = torch.tensor([0.0, 1.0, 0.0], **numbers)
    assert (gradient - expected).abs().max() < rounding(torch.float64, 16)
    assert layer.certificate.verdicts() == ["trusted"]
    assert layer.certificate.active_margin > 1e-3


@pytest.mark.parametrize("x", [3.0, 1.0, -1.0])
@pytest.mark.parametrize("asked", [0, 1])
def test_what_moves_one_of_two_equal_bounds_moves_y_to_one_side_alone(x: float, asked: int) -> None:
    ends = [torch.ones(1, **numbers), torch.ones(1, **numbers)]
    ends[asked].requires_grad_()
    layer = DeclarativeLayer(Clamped(), policy="raise")
    with pytest.raises(UntrustedGradientError, match="do not for other inputs"):
        layer(torch.tensor([x], **numbers), *ends).sum().backward()


class Turning(DeclarativeNode):
    """y₁ ≤ 0 and y₁ + t y₂ ≤ 0: parallel at t = 0, and y = (0, 0) at x = (1, 0) for all t."""

    input_dims = (1, 0)

    def objective(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (y - x).square().sum()

    def inequality_constraints(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[0], y[0] + t * y[1]])

    def solve(self, x: Tensor, t: Tensor) -> Tensor:
        return x * torch.tensor([0.0, 1.0], **numbers)


def test_two_parallel_constraints_that_an_input_turns_are_a_kink() -> None:
    layer = DeclarativeLayer(Turning(), policy="raise")
    x, t = torch.tensor([1.0, 0.0], **numbers), torch.zeros((), **numbers)
    tracked = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(layer(tracked, t).sum(), tracked)
    expected = torch.tensor([0.0, 1.0], **numbers)
    assert (gradient - expected).abs().max() < rounding(torch.float64, 16)
    with pytest.raises(UntrustedGradientError, match="do not for other inputs"):
        layer(x, t.requires_grad_()).sum().backward()


@pytest.mark.parametrize("apart", [1e-7, 1e-8, 1e-9])
def test_three_lines_that_all_but_meet_are_no_vertex(apart: float) -> None:
    class Wedge(Nearest):
        """The third cuts off the tip; y is on it, and off by as much as the tip is away."""

        def inequality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
            C = torch.tensor([[1.0, 1.0], [1.0, -1.0], [1.0, 0.0]], **numbers)
            return C @ y - torch.tensor([1.0, 1.0, 1.0 - apart], **numbers)

        def solve(self, x: Tensor) -> Tensor:
            return torch.tensor([1.0 - 2 * apart, 0.0], **numbers) + 0 * x

    def gradient(x: list[float], policy: str) -> Tensor:
        tracked = torch.tensor(x, **numbers).requires_grad_()
        found = DeclarativeLayer(Wedge(), policy=policy)(tracked)
        return torch.autograd.grad(found.sum(), tracked)[0]

    # That of the vertex would be zero; y₂ follows x₂.
    with pytest.raises(UntrustedGradientError, match="weakly active"):
        gradient([3.0, 0.0], "raise")
    assert gradient([3.0, 0.0], "nan").isnan().all()


@pytest.mark.parametrize("beyond", [[0.5, 1.0], [0.1, 1.0], [1.0, 1.0]])
def test_a_third_constraint_through_a_corner_is_harmless_and_multipliers_are_not_negative(
    beyond: list[float],
) -> None:
    # λᵢ + λ₃ = xᵢ − hᵢ: the least of all such λ has λ₁ = 0, < 0 and > 0 in these cases.
    layer = DeclarativeLayer(ddnkit.testing.ProjectionOnCorner(), policy="raise")
    h = torch.tensor([0.3, -0.2], **numbers).requires_grad_()
    x = torch.cat([h.detach() + torch.tensor(beyond, **numbers), torch.zeros(1, **numbers)])
    y, multipliers = layer(x, h, return_multipliers=True)
    y.sum().backward()
    assert (h.grad - 1).abs().max() < rounding(torch.float64, 64)
    assert (multipliers.inequality >= 0).all()
    total = multipliers.inequality[:2] + multipliers.inequality[2]
    assert (total - (x - y)[:2]).abs().max() < rounding(torch.float64, 64)
