"""Inequality constraints and bounds: the active set, its gradient, multipliers, and what is said of kinks."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from bounds import rounding
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import ddnkit
from ddnkit import DeclarativeLayer, DeclarativeNode, InputError, UntrustedGradientError

FORMS = ["dense", "embedded_field", "krylov"]


class Projection(DeclarativeNode):
    """The point of a set that is nearest to x."""

    input_dims = (1,)

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (y - x).square().sum()

    def sample_inputs(self) -> tuple[Tensor]:
        return (torch.randn(3, dtype=torch.float64),)


class Box(Projection):
    bounds = (-0.5, 0.5)

    def solve(self, x: Tensor) -> Tensor:
        return x.clamp(-0.5, 0.5)


class Simplex(Projection):
    def equality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        return y.sum() - 1

    def bounds(self, x: Tensor) -> tuple[float, None]:
        return 0.0, None

    def solve(self, x: Tensor) -> Tensor:
        ordered = x.sort(descending=True).values
        shift = (ordered.cumsum(0) - 1) / torch.arange(1, len(x) + 1)
        return (x - shift[(ordered > shift).sum() - 1]).clamp(min=0)


class Ball(Projection):
    def inequality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (y.square().sum() - 1)

    def solve(self, x: Tensor) -> Tensor:
        return x / x.norm().clamp(min=1)


class L1Ball(Projection):
    def inequality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cartesian_prod(*[x.new_tensor([-1.0, 1.0])] * len(x)) @ y - 1

    def solve(self, x: Tensor) -> Tensor:
        outer = Simplex().solve(x.abs()) * x.sign()
        return torch.where(x.abs().sum() > 1, outer, x)


class LInfBall(Projection):
    def inequality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([y, -y]) - 1

    def solve(self, x: Tensor) -> Tensor:
        return x.clamp(-1, 1)


class HalfSpace(Projection):
    input_dims = (1, 1, 0)

    def objective(self, x: Tensor, a: Tensor, b: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (y - x).square().sum()

    def inequality_constraints(self, x: Tensor, a: Tensor, b: Tensor, y: Tensor) -> Tensor:
        return a @ y - b

    def solve(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return x - a * (a @ x - b).clamp(min=0) / a.square().sum()

    def sample_inputs(self) -> tuple[Tensor, ...]:
        numbers = {"dtype": torch.float64}
        return torch.randn(3, **numbers), torch.randn(3, **numbers), torch.tensor(0.2, **numbers)


SETS = [Box, Simplex, Ball, L1Ball, LInfBall, HalfSpace]


def inputs(kind: type[Projection], batch: int = 2) -> list[Tensor]:
    found = [kind().sample_inputs() for _ in range(batch)]
    return [torch.stack(xs).requires_grad_() for xs in zip(*found, strict=True)]


@pytest.mark.parametrize(
    "form", ["dense", *(pytest.param(name, marks=pytest.mark.long) for name in FORMS[1:])]
)
@pytest.mark.parametrize("kind", SETS)
def test_projections_have_their_derivatives_to_second_order(
    kind: type[Projection], form: str
) -> None:
    layer = DeclarativeLayer(kind(), form, policy="raise")
    xs = inputs(kind)
    assert gradcheck(layer, xs)
    assert gradgradcheck(layer, xs, fast_mode=True)
    assert set(layer.certificate.verdicts()) == {"trusted"}


@pytest.mark.parametrize("kind", SETS)
def test_they_pass_a_check(kind: type[Projection]) -> None:
    assert ddnkit.check(kind(), examples=2).ok


@pytest.mark.parametrize("kind", SETS)
def test_transforms_agree_with_the_gradient(kind: type[Projection]) -> None:
    layer, xs = DeclarativeLayer(kind(), policy="raise"), [x.detach() for x in inputs(kind)]
    J = torch.func.vmap(torch.func.jacrev(layer))(*xs)
    forward = torch.func.vmap(torch.func.jacfwd(layer))(*xs)
    tracked = xs[0].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(layer(tracked, *xs[1:]).sum(), tracked)
    # Projections do not stretch: entries of at most 1, sums of 3 of them.
    bound = rounding(torch.float64, 64)
    assert (J - forward).abs().max() < bound
    assert (J.sum(dim=1) - gradient).abs().max() < bound


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_units_make_no_difference(scale: float) -> None:
    class Scaled(Box):
        def bounds(self, x: Tensor) -> tuple[float, float]:
            return -0.5 * scale, 0.5 * scale

        def solve(self, x: Tensor) -> Tensor:
            return x.clamp(-0.5 * scale, 0.5 * scale)

    x = torch.tensor([-2.0, -0.3, 0.0, 0.4, 7.0], dtype=torch.float64)
    layer = DeclarativeLayer(Scaled(), policy="raise")
    tracked = (scale * x).requires_grad_()
    (gradient,) = torch.autograd.grad(layer(tracked).sum(), tracked)
    inside = (x.abs() < 0.5).double()
    assert (gradient - inside).abs().max() < rounding(torch.float64, 5)
    assert layer.certificate.verdicts() == ["trusted"]


def at_the_edge() -> Tensor:
    return torch.tensor([[-0.5, 0.1, 2.0], [0.2, 0.3, 0.1]], dtype=torch.float64)


def test_a_weakly_active_constraint_is_told_for_its_item_alone() -> None:
    layer = DeclarativeLayer(Box(), policy="raise")
    x = at_the_edge().requires_grad_()
    with pytest.raises(UntrustedGradientError, match="weakly active"):
        layer(x).sum().backward()
    layer = DeclarativeLayer(Box(), policy="nan")
    layer(x).sum().backward()
    assert x.grad is not None and x.grad[0].isnan().all()
    assert (x.grad[1] - 1).abs().max() < rounding(torch.float64, 16)
    assert layer.certificate.active_margin[0] == 0 < layer.certificate.active_margin[1]


@pytest.mark.parametrize(("degenerate", "first"), [("least_norm", 0.0), ("one_sided", 1.0)])
def test_a_node_may_choose_what_a_kink_gives(degenerate: str, first: float) -> None:
    class Chosen(Box):
        pass

    Chosen.degenerate = degenerate
    layer, x = DeclarativeLayer(Chosen(), policy="raise"), at_the_edge().requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x).sum(), x)
    expected = torch.tensor([first, 1.0, 0.0], dtype=torch.float64)
    assert (gradient[0] - expected).abs().max() < rounding(torch.float64, 16)


@pytest.mark.parametrize("policy", ["warn", "nan", "mask"])
def test_a_node_may_ask_for_an_error_at_a_kink_whatever_the_policy(policy: str) -> None:
    class Strict(Box):
        degenerate = "raise"

    layer, x = DeclarativeLayer(Strict(), policy=policy), at_the_edge().requires_grad_()
    with pytest.raises(UntrustedGradientError, match="weakly active"):
        layer(x).sum().backward()
    layer(x[1:]).sum().backward()


def test_multipliers_come_with_y_and_differentiate_like_it() -> None:
    class Priced(Simplex):
        """Of a budget b."""

        input_dims = (1, 0)

        def objective(self, x: Tensor, b: Tensor, y: Tensor) -> Tensor:
            return 0.5 * (y - x).square().sum()

        def equality_constraints(self, x: Tensor, b: Tensor, y: Tensor) -> Tensor:
            return y.sum() - b

        def bounds(self, x: Tensor, b: Tensor) -> tuple[float, None]:
            return 0.0, None

        def solve(self, x: Tensor, b: Tensor) -> Tensor:
            return b * Simplex().solve(x / b)

    layer = DeclarativeLayer(Priced(), policy="raise")
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    b = torch.tensor([1.0, 0.5], dtype=torch.float64, requires_grad=True)

    def of_all(x: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        y, multipliers = layer(x, b, return_multipliers=True)
        return y, multipliers.equality, multipliers.lower

    y, nu, lower = of_all(x, b)
    # ∇f − ν − λ = 0, λ ≥ 0, λ y = 0.
    left = (y - x - nu - lower).abs().max()
    assert left < rounding(torch.float64, 64) * (1 + x.abs().max())
    assert (lower >= 0).all() and (lower * y).abs().max() == 0
    assert gradcheck(of_all, (x, b)) and gradgradcheck(of_all, (x, b), fast_mode=True)
    # The price is what the optimal value gains for each unit of the budget.
    value = 0.5 * (y - x).square().sum(dim=1)
    (gain,) = torch.autograd.grad(value.sum(), b)
    assert (gain - nu.squeeze(1)).abs().max() < rounding(torch.float64, 256)
    mapped = torch.func.vmap(lambda x, b: layer(x, b, return_multipliers=True)[1].equality)
    assert (mapped(x.detach(), b.detach()) - nu).abs().max() < rounding(torch.float64, 256)


@pytest.mark.parametrize(("policy", "fill"), [("nan", torch.nan), ("mask", 0.0)])
def test_a_failed_item_has_no_multipliers_and_spoils_no_other(policy: str, fill: float) -> None:
    layer = DeclarativeLayer(Box(), policy=policy)
    x = torch.tensor([[torch.nan, 1.0], [0.2, 2.0]], dtype=torch.float64, requires_grad=True)
    y, multipliers = layer(x, return_multipliers=True)
    assert multipliers.upper[0].isnan().all() if fill else (multipliers.upper[0] == 0).all()
    (gradient,) = torch.autograd.grad((y + multipliers.upper).sum(), x)
    assert gradient[0].isnan().all() if fill else (gradient[0] == 0).all()
    # Inside y moves with x, outside the multiplier does.
    assert (gradient[1] - 1).abs().max() < rounding(torch.float64, 16)


def test_an_empty_batch_has_empty_multipliers() -> None:
    y, multipliers = DeclarativeLayer(Box())(torch.zeros(0, 3), return_multipliers=True)
    assert y.shape == multipliers.lower.shape == multipliers.upper.shape == (0, 3)
    assert len(multipliers.equality) == len(multipliers.inequality) == 0


@pytest.mark.parametrize("bound", [torch.zeros(4), "0"])
def test_a_bound_that_does_not_fit_y_is_told(bound: Any) -> None:
    class Other(Box):
        bounds = (bound, None)

    with pytest.raises(InputError, match=r"Other\.bounds.*\(3,\)"):
        DeclarativeLayer(Other())(torch.zeros(2, 3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_check_near_a_kink_does_not_step_over_it(dtype: torch.dtype) -> None:
    # Twice what counts as weakly active (ten tolerances, of 1e-6 and 3e-4) beside the bound.
    beside = 0.5 * (1 + 2 * 10 * {torch.float64: 1e-6, torch.float32: 3e-4}[dtype])
    report = ddnkit.check(Box(), torch.tensor([beside, 0.1, -2.0], dtype=dtype))
    assert report.ok, str(report)


def test_the_node_may_have_several_parts() -> None:
    class Parts(DeclarativeNode):
        input_dims = (1, 1)

        def objective(self, a: Tensor, b: Tensor, y: Any) -> Tensor:
            return 0.5 * ((y["a"] - a).square().sum() + (y["b"] - b).square().sum())

        def bounds(self, a: Tensor, b: Tensor) -> tuple[Any, None]:
            return {"a": torch.zeros(2, dtype=a.dtype), "b": None}, None

        def solve(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
            return {"a": a.clamp(min=0), "b": b.clone()}

    layer = DeclarativeLayer(Parts(), policy="raise")
    a = torch.tensor([[-1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([[-3.0, 0.5, 1.0]], dtype=torch.float64, requires_grad=True)
    y, multipliers = layer(a, b, return_multipliers=True)
    gradients = torch.autograd.grad(y["a"].sum() + y["b"].sum(), (a, b))
    expected = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    assert (torch.cat(gradients, dim=1) - expected).abs().max() < rounding(torch.float64, 16)
    expected = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    assert (multipliers.lower - expected).abs().max() < rounding(torch.float64, 16)


def test_a_point_outside_is_infeasible_and_one_short_of_the_boundary_no_solution() -> None:
    class Outside(Box):
        def solve(self, x: Tensor) -> Tensor:
            return x.clamp(-0.5, 0.6)

    class Short(Box):
        """As an interior point that stops early."""

        def solve(self, x: Tensor) -> Tensor:
            return x.clamp(-0.5, 0.499)

    x = torch.tensor([0.1, 2.0], dtype=torch.float64)
    for kind, word in ((Outside, "infeasible"), (Short, "not stationary")):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            layer = DeclarativeLayer(kind(), policy="warn")
            layer(x)
        assert any(word in str(w.message) for w in caught)
        assert layer.certificate.verdicts() == ["invalid"]


@pytest.mark.parametrize("count", [1, 3])
def test_constraints_that_turn_out_to_be_none_are_no_other_problem(count: int) -> None:
    class Free(Box):
        def equality_constraints(self, x: Tensor, y: Tensor) -> None:
            return None

    layer = DeclarativeLayer(Free(), policy="raise")
    for _ in range(count):
        x = torch.full((2, 3), 0.1, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(layer(x).sum(), x)
        assert (gradient - 1).abs().max() < rounding(torch.float64, 16)


@pytest.mark.parametrize("second", [-2.0, 2.0], ids=["one bound holds", "none does"])
def test_entries_without_a_bound_do_not_spoil_the_estimate_of_the_error(second: float) -> None:
    class Root(DeclarativeNode):
        """¼ y⁴ − x y with y ≥ lower, solved to seven digits: the cube root of x."""

        input_dims = (1, 1)
        policy = "raise"

        def objective(self, x: Tensor, lower: Tensor, y: Tensor) -> Tensor:
            return (0.25 * y**4 - x * y).sum()

        def bounds(self, x: Tensor, lower: Tensor) -> tuple[Tensor, None]:
            return lower, None

        def solve(self, x: Tensor, lower: Tensor) -> Tensor:
            return torch.where(x > 0, x.clamp(min=0) ** (1 / 3) * (1 + 1e-7), lower)

    x = torch.tensor([0.5, second, 3.0], dtype=torch.float64, requires_grad=True)
    lower = torch.tensor([-torch.inf, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
    layer = DeclarativeLayer(Root())
    layer(x, lower).sum().backward()
    assert x.grad is not None
    expected = torch.where(x > 0, x.detach().abs() ** (-2 / 3) / 3, 0.0)
    assert bool(((x.grad - expected).abs() <= 1e-6 * (1 + expected)).all())
    assert layer.certificate is not None and layer.certificate.solution_error is not None
    # dy/dx changes by twice as much as y, which is off by 1e-7; it is doubled.
    assert 1e-7 < float(layer.certificate.solution_error) < 1e-6


class OffBound(Projection):
    """y = max(x, 0) + off: what a solver leaves."""

    bounds = (0.0, None)
    batched_solve = True

    def __init__(self, off: Tensor):
        self.off = off

    def solve(self, x: Tensor) -> Tensor:
        return x.clamp(min=0) + self.off


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("largest", [1.0, 1e3])
@pytest.mark.parametrize("share", [0.75, 1.0, 2.0])
def test_a_multiplier_that_is_the_error_of_y_makes_no_constraint_active(
    share: float, largest: float, dtype: torch.dtype
) -> None:
    # From a rounding of the other entries to a part of the tolerance of them.
    low, high = {torch.float64: (-15, -7), torch.float32: (-7, -4)}[dtype]
    small = torch.logspace(low, high, 9, dtype=dtype)
    x = torch.stack([small, *(torch.full_like(small, a * largest) for a in (1, -1))], dim=1)
    off = torch.stack([share * small, 0 * small, 0 * small], dim=1)
    layer, tracked = DeclarativeLayer(OffBound(off), policy="nan"), x.requires_grad_()
    layer(tracked).sum().backward()
    assert layer.certificate.verdicts() == ["invalid"] * len(x)
    assert tracked.grad is not None and tracked.grad.isnan().all()


@pytest.mark.parametrize(("at", "slope"), [(10.0, 1.0), (-10.0, 0.0), (-2.0, 0.0)])
def test_an_error_that_is_smaller_than_the_slack_or_the_multiplier_tells_which(
    at: float, slope: float
) -> None:
    off = torch.tensor([1e-13, 1e-12, 1e-11], dtype=torch.float64).unsqueeze(1) * torch.eye(3)[0]
    x = at * off + torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)
    layer, tracked = DeclarativeLayer(OffBound(off), policy="raise"), x.requires_grad_()
    layer(tracked).sum().backward()
    assert tracked.grad is not None
    expected = torch.tensor([slope, 1.0, 0.0], dtype=torch.float64)
    assert (tracked.grad - expected).abs().max() < rounding(torch.float64, 16)


class Cone(Projection):
    """‖y‖ ≤ 1, which has a kink where it is far from active."""

    def inequality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        return y.norm() - 1

    def solve(self, x: Tensor) -> Tensor:
        return x / x.norm().clamp(min=1)


def test_a_kink_of_a_constraint_that_is_not_active_is_none_of_the_solution() -> None:
    x = torch.tensor([[0.0, 0.0], [1e-12, 0.0], [0.1, 0.2]], dtype=torch.float64)
    layer, tracked = DeclarativeLayer(Cone(), policy="raise"), x.requires_grad_()
    J = torch.func.vmap(torch.func.jacrev(layer))(tracked.detach())
    layer(tracked).sum().backward()
    assert layer.certificate.verdicts() == ["trusted"] * 3
    assert (J - torch.eye(2)).abs().max() < rounding(torch.float64, 16)


def test_one_in_an_active_constraint_still_is() -> None:
    class Tip(Cone):
        """The tip of a cone, at the origin."""

        def inequality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.stack([y.norm() - 1, y.norm() + y[0]])

        def solve(self, x: Tensor) -> Tensor:
            return 0 * x

    layer = DeclarativeLayer(Tip(), policy="raise")
    x = torch.tensor([1.0, 0.5], dtype=torch.float64, requires_grad=True)
    with pytest.raises(UntrustedGradientError):
        layer(x).sum().backward()
