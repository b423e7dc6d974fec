"""Gradients in float32 by the general form: right where the problem is ill-conditioned too."""

import pytest
import torch
from bounds import condition, infeasibility, rounding
from ddnkit_etf import NearestETF
from hypothesis import given, settings
from hypothesis import strategies as st

from ddnkit import DeclarativeLayer, DeclarativeNode
from ddnkit.backward import Krylov


def drawn(d, C, seed):
    generator = torch.Generator().manual_seed(seed)
    H, A, V = torch.randn(3, d, C, generator=generator)
    return H / H.norm(), torch.linalg.qr(A.double()).Q.float(), V


def kappa(d, C, seed, delta=1e-3):
    """The condition of the matrix whose polar factor the frame is."""
    H, P, _ = drawn(d, C, seed)
    A = NearestETF(delta).procrustes_target(H.double().unsqueeze(0), P.double().unsqueeze(0))
    return condition(A)


def gradients(form, dtype, d, C, seed, delta=1e-3):
    H, P, V = drawn(d, C, seed)
    H, P = H.to(dtype).requires_grad_(), P.to(dtype).requires_grad_()
    layer = DeclarativeLayer(NearestETF(delta), form, policy="raise")
    found = torch.autograd.grad(layer(H, P), (H, P), V.to(dtype))
    return [gradient.double() for gradient in found]


def errors(found, right):
    return [float((a - b).norm() / b.norm()) for a, b in zip(found, right, strict=True)]


@settings(max_examples=20, deadline=None)
@given(
    shape=st.sampled_from([(64, 10), (512, 10), (128, 32), (40, 39)]), seed=st.integers(0, 10**6)
)
def test_krylov_in_float32(shape, seed):
    """δ = 1e-3 makes a null direction of M̃ 1,000 times softer than the rest: products in float32
    leave a residual of 1e-6 there, and that was an error of 1e-3 and more in the gradient."""
    right = gradients("closed_form", torch.float64, *shape, seed)
    # Products in float64: what is left is the rounding of the point that float32 gave, at most what
    # its infeasibility may be, times the condition of A = 2HM̃ + δP: 100 to 300 for these shapes, and
    # more where H is nearly deficient.
    found = gradients("krylov", torch.float32, *shape, seed)
    assert max(errors(found, right)) < infeasibility(torch.float32, *shape) * kappa(*shape, seed)


class Mixed(DeclarativeNode):
    """min ½yᵀDy − xᵀy with D kept in float32 whatever the input."""

    input_dims = (1,)

    def __init__(self):
        self.D = torch.diag(torch.linspace(1, 30, 80))

    def objective(self, x, y):
        return y @ (self.D @ y) / 2 - x @ y

    def solve(self, x):
        return x / self.D.diagonal()


def test_krylov_where_the_problem_has_float32_of_its_own():
    layer = DeclarativeLayer(Mixed(), "krylov", policy="raise")
    x = torch.randn(3, 80, requires_grad=True)
    v = torch.randn(3, 80)
    (found,) = torch.autograd.grad(layer(x), x, v)
    # The tolerance in float32, 1e-6, or what rounding allows, times the condition of 30.
    residual = layer.certificate.adjoint_residual
    expected = v / torch.linspace(1, 30, 80)
    assert residual.dtype == torch.float32
    assert (residual < 1e-6 + rounding(residual, 80)).all()
    assert (found - expected).norm() < 30 * rounding(v, 80) * expected.norm()


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5])
def test_a_tolerance_of_ones_own_is_kept(tolerance):
    x = torch.randn(2, 60, requires_grad=True)

    class Node(DeclarativeNode):
        input_dims = (1,)

        def objective(self, x, y):
            return (torch.linspace(1, 30, 60, dtype=y.dtype) * y.square()).sum() / 2 - x @ y

        def solve(self, x):
            return x / torch.linspace(1, 30, 60)

    layer = DeclarativeLayer(Node(), Krylov(tolerance=tolerance), policy="warn", tolerance=1e-2)
    layer(x).sum().backward()
    residual = layer.certificate.adjoint_residual
    # Kept, and made use of: float64 would have gone on to 1e-12.
    assert (residual <= tolerance).all() and (residual > 1e-9).all()


class Smoothed(DeclarativeNode):
    """min Σ √(y² + e) + ½(y − x)ᵀD(y − x) with e by y's dtype: in float64 it is another problem."""

    input_dims = (1,)

    def objective(self, x, y):
        smoothing = torch.finfo(y.dtype).eps ** 0.5
        weights = torch.linspace(1, 5, 100, dtype=y.dtype)
        return (y**2 + smoothing).sqrt().sum() + (weights * (y - x) ** 2).sum() / 2

    def initial_point(self, x):
        return torch.zeros_like(x)


class Particular(Smoothed):
    """The same, which refuses float64 in its own way."""

    def objective(self, x, y):
        if y.dtype != torch.float32:
            raise TypeError("float32, please")
        return super().objective(x, y)


@pytest.mark.parametrize("node", [Smoothed, Particular])
def test_a_problem_that_float64_changes_is_differentiated_as_it_is(node):
    start = 0.3 * torch.randn(2, 100)
    found = []
    for form in ("krylov", "dense"):
        x = start.clone().requires_grad_()
        layer = DeclarativeLayer(node(), form, policy="raise")
        found += torch.autograd.grad(layer(x).sum(), x)
    assert float(found[1].norm()) > 1
    # The solver's point is good to 2e-5, eps^{2/3}, and where y is about √e = 0.02 the curvature is
    # 1/0.02 and changes with it as fast: 1e-3. In float64, e and with it the gradient are others.
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-5)
