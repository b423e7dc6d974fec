"""Multipliers as outputs: derivatives of ν and λ to second order, of one item and of a batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from bounds import rounding
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from ddnkit import DeclarativeLayer, DeclarativeNode, QPNode

FORMS = [
    "dense",
    *(pytest.param(form, marks=pytest.mark.long) for form in ("embedded_field", "krylov")),
]
WHOLE = [
    pytest.param(True, id="batch"),
    pytest.param(False, id="single", marks=pytest.mark.long),
]


class Mixed(DeclarativeNode):
    """min Σ eʸ − xᵀy  subject to  Σ y = b,  ‖y‖² ≤ r,  l ≤ y ≤ 0.8: each kind of constraint is active."""

    input_dims = (1, 0, 0, 0)

    def objective(self, x: Tensor, b: Tensor, r: Tensor, low: Tensor, y: Tensor) -> Tensor:
        return y.exp().sum() - x @ y

    def equality_constraints(
        self, x: Tensor, b: Tensor, r: Tensor, low: Tensor, y: Tensor
    ) -> Tensor:
        return y.sum() - b

    def inequality_constraints(
        self, x: Tensor, b: Tensor, r: Tensor, low: Tensor, y: Tensor
    ) -> Tensor:
        return y.square().sum() - r

    def bounds(self, x: Tensor, b: Tensor, r: Tensor, low: Tensor) -> tuple[Tensor, float]:
        return low, 0.8

    def initial_point(self, x: Tensor, b: Tensor, r: Tensor, low: Tensor) -> Tensor:
        return torch.zeros_like(x)


def mixed() -> list[Tensor]:
    numbers = {"dtype": torch.float64, "requires_grad": True}
    return [
        torch.tensor([[7.0, 0.5, -3.0, 1.0, 2.5], [2.7, 8.0, -4.0, 0.3, 0.8]], **numbers),
        torch.tensor([0.3, 0.2], **numbers),
        torch.tensor([1.2, 1.1], **numbers),
        torch.tensor(-0.5, **numbers),
    ]


def outputs(layer: DeclarativeLayer) -> Callable[..., tuple[Tensor, ...]]:
    """ν and λ of a layer, those that it has."""

    def found(*xs: Tensor) -> tuple[Tensor, ...]:
        _, multipliers = layer(*xs, return_multipliers=True)
        parts = [multipliers.equality, multipliers.inequality, multipliers.lower, multipliers.upper]
        return tuple(part for part in parts if part is not None and part.numel())

    return found


def single(xs: list[Tensor], dims: tuple[int, ...]) -> list[Tensor]:
    """The first item."""
    parts = [x if x.ndim == dim else x[0] for x, dim in zip(xs, dims, strict=True)]
    return [x.detach().clone().requires_grad_() for x in parts]


def test_the_conditions_of_optimality_hold_and_every_kind_is_active() -> None:
    xs = mixed()
    y, found = DeclarativeLayer(Mixed(), policy="raise")(*xs, return_multipliers=True)
    x, low = xs[0].detach(), xs[3]
    slope = y.exp() - x - found.equality + 2 * found.inequality * y - found.lower + found.upper
    assert slope.abs().max() < rounding(x, 256, size=float(x.abs().max()))
    for multiplier in (found.inequality, found.lower, found.upper):
        assert (multiplier >= 0).all() and (multiplier.amax(dim=1) > 0.01).all()
    assert (found.lower * (y - low)).abs().max() == 0 and (found.upper * (0.8 - y)).abs().max() == 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("whole", WHOLE)
def test_multipliers_of_equations_inequalities_and_bounds_have_their_derivatives(
    whole: bool, form: str
) -> None:
    xs = mixed() if whole else single(mixed(), Mixed.input_dims)
    of = outputs(DeclarativeLayer(Mixed(), form, policy="raise"))
    assert [part.shape[-1] for part in of(*xs)] == [1, 1, 5, 5]
    assert gradcheck(of, xs, fast_mode=True)
    assert gradgradcheck(of, xs, fast_mode=True)


def program() -> list[Tensor]:
    """Q's factor, q, A, b, G, h, lower, upper: with each kind active in each item."""
    numbers = {"dtype": torch.float64}
    factor = torch.eye(5, **numbers) + 0.1 * torch.randn(2, 5, 5, **numbers)
    xs = [
        factor,
        torch.tensor([[-4.0, 2.0, -0.5, -1.0, 0.1], [-3.0, 2.0, -1.0, -0.6, 0.1]], **numbers),
        torch.ones(1, 5, **numbers),
        torch.full((2, 1), 0.3, **numbers),
        torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.0], [0.0, 0.2, 1.0, 0.0, 0.5]], **numbers),
        torch.tensor([[0.05, 5.0], [0.1, 5.0]], **numbers),
        torch.full((5,), -0.3, **numbers),
        torch.full((5,), 0.5, **numbers),
    ]
    return [x.requires_grad_() for x in xs]


@pytest.mark.parametrize("whole", WHOLE)
def test_multipliers_of_quadratic_programs_have_their_derivatives(whole: bool) -> None:
    node = QPNode("A", "b", "G", "h", "lower", "upper")
    xs = program() if whole else single(program(), tuple(node.input_dims))
    of_layer = outputs(DeclarativeLayer(node, policy="raise"))

    def of(factor: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        return of_layer(factor @ factor.mT, *rest)

    nu, lam, lower, upper = of(*xs)
    assert (nu != 0).all() and (lam[..., 0] > 0.01).all() and (lam[..., 1] == 0).all()
    assert (lower.amax(dim=-1) > 0.01).all() and (upper.amax(dim=-1) > 0.01).all()
    assert gradcheck(of, xs, fast_mode=True)
    assert gradgradcheck(of, xs, fast_mode=True)


def test_multipliers_alone_may_be_what_a_loss_is_of() -> None:
    # min ½y² − xy, y ≤ b: λ = max(0, x − b).
    class Ramp(DeclarativeNode):
        input_dims = (0, 0)

        def objective(self, x: Tensor, b: Tensor, y: Tensor) -> Tensor:
            return 0.5 * y.square() - x * y

        def inequality_constraints(self, x: Tensor, b: Tensor, y: Tensor) -> Tensor:
            return y - b

        def initial_point(self, x: Tensor, b: Tensor) -> Tensor:
            return torch.zeros_like(x)

    x = torch.tensor([2.0, 0.3, -1.0], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([0.5, 1.0, -3.0], dtype=torch.float64, requires_grad=True)
    _, found = DeclarativeLayer(Ramp(), policy="raise")(x, b, return_multipliers=True)
    expected = (x - b).clamp(min=0)
    assert (found.inequality.flatten() - expected).abs().max() < rounding(x, 64)
    (of_x, of_b) = torch.autograd.grad(found.inequality.square().sum(), (x, b))
    assert (of_x - 2 * expected).abs().max() < rounding(x, 64)
    assert (of_b + 2 * expected).abs().max() < rounding(x, 64)
