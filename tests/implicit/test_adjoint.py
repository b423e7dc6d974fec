"""What a closed form may return for its gradient, and in what memory and precision it is computed."""

import pytest
import torch

import ddnkit
from ddnkit import Adjoint, DeclarativeLayer, DeclarativeNode, UntrustedGradientError


class Doubled(DeclarativeNode):
    """min ½‖y − 2x‖²: y = 2x; the residual of its adjoint is an input."""

    input_dims = (1, 0)
    batched_solve = True

    def objective(self, x, residual, y):
        return ((y - 2 * x) ** 2).sum() / 2

    def solve(self, x, residual):
        return 2 * x

    def adjoint(self, x, residual, y, v):
        return Adjoint((2 * v, torch.zeros_like(residual)), residual)


class OneByOne(Doubled):
    batched_solve = False


@pytest.mark.parametrize("node", [Doubled(), OneByOne()])
def test_a_residual_goes_into_the_certificate_and_the_policy(node):
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    residual = torch.tensor([0.0, 1e-9, 1e-2], dtype=torch.float64)
    layer = DeclarativeLayer(node, "closed_form", policy="nan")
    layer(x, residual).sum().backward()
    assert torch.equal(layer.certificate.adjoint_residual, residual)
    assert layer.certificate.differentiable.tolist() == [True, True, False]
    assert x.grad[:2].eq(2).all()
    assert x.grad[2].isnan().all()
    layer = DeclarativeLayer(node, "closed_form", policy="raise")
    with pytest.raises(UntrustedGradientError, match=r"residual 1\.0e-02"):
        layer(x, residual).sum().backward()
    layer(x[:2], residual[:2]).sum().backward()


@pytest.mark.parametrize("node", [Doubled(), OneByOne()])
def test_without_a_residual_nothing_is_judged(node, monkeypatch):
    def adjoint(self, x, residual, y, v):
        return Adjoint((2 * v, torch.zeros_like(residual)))

    monkeypatch.setattr(type(node), "adjoint", adjoint)
    layer = DeclarativeLayer(node, "closed_form", policy="raise")
    x = torch.randn(3, 4, requires_grad=True)
    layer(x, torch.ones(3)).sum().backward()
    assert layer.certificate.adjoint_residual is None
    assert x.grad.eq(2).all()


class Identity(DeclarativeNode):
    """min ½‖2y − a − b‖²: y = (a + b)/2; its adjoint hands one tensor to both inputs, or v itself."""

    input_dims = (1, 1)
    batched_solve = True

    def objective(self, a, b, y):
        return ((2 * y - a - b) ** 2).sum() / 2

    def solve(self, a, b):
        return (a + b) / 2

    def adjoint(self, a, b, y, v):
        return v.mul_(0.5), v


def test_gradients_share_no_memory():
    a, b = (torch.randn(2, 3, requires_grad=True) for _ in range(2))
    v = torch.ones(2, 3)
    y = DeclarativeLayer(Identity(), "closed_form", policy="raise")(a, b)
    y.backward(v)
    pointers = {x.untyped_storage().data_ptr() for x in (a.grad, b.grad, v, y)}
    assert len(pointers) == 4


def test_reduced_precision_that_was_asked_for_elsewhere_is_not_used_inside():
    seen = []

    class Watching(Doubled):
        def objective(self, x, residual, y):
            seen.append(torch.get_float32_matmul_precision())
            return super().objective(x, residual, y)

        def adjoint(self, x, residual, y, v):
            seen.append(torch.get_float32_matmul_precision())
            return super().adjoint(x, residual, y, v)

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        x = torch.randn(1, 4, requires_grad=True)
        y = DeclarativeLayer(Watching(), "closed_form")(x, torch.zeros(1))
        assert torch.get_float32_matmul_precision() == "high"
        y.sum().backward()
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    assert set(seen) == {"highest"}


def test_one_evaluation_tells_of_captured_tensors_and_gives_the_gradient():
    calls = []

    class Counting(Doubled):
        def objective(self, x, residual, y):
            calls.append(1)
            return super().objective(x, residual, y)

    x = torch.randn(100)
    layer = DeclarativeLayer(Counting(), policy="raise")
    layer(x, torch.zeros(()))
    # At the solution, and at the point of the probe; a layer's first call sees whether it gives the
    # same once more.
    assert len(calls) == 3
    layer(x, torch.zeros(()))
    assert len(calls) == 3 + 2


def test_captured_tensors_are_found_in_the_graph_of_the_objective():
    weight = torch.full((4,), 3.0, requires_grad=True)
    deep = (weight * 2).exp().log()

    class Captured(DeclarativeNode):
        def objective(self, x, y):
            return ((y - deep * x) ** 2).sum() / 2

        def solve(self, x):
            return (deep * x).detach()

    x = torch.randn(4)
    y = ddnkit.DeclarativeLayer(Captured(), policy="raise")(x)
    y.sum().backward()
    torch.testing.assert_close(weight.grad, 2 * x)
