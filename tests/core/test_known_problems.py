"""Every problem with a known answer, through every form that applies."""

import pytest
import torch
from torch.autograd import gradcheck

import ddnkit
from ddnkit import testing

BANK = testing.bank()
FORMS = ["auto", "dense"]


def jacobians(layer, xs):
    """dy/dxᵢ by one backward pass an entry of y."""
    xs = [x.clone().requires_grad_() if isinstance(x, torch.Tensor) else x for x in xs]
    tensors = [x for x in xs if isinstance(x, torch.Tensor)]
    y = layer(*xs)
    rows = [torch.autograd.grad(entry, tensors, retain_graph=True) for entry in y.reshape(-1)]
    return y.detach(), [
        torch.stack(column).reshape(y.shape + x.shape)
        for column, x in zip(zip(*rows, strict=True), tensors, strict=True)
    ]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("node", BANK, ids=lambda node: type(node).__name__)
def test_jacobian_is_the_analytic_one(node, form):
    for _ in range(3):
        xs = node.sample_inputs()
        layer = ddnkit.DeclarativeLayer(node, form, policy="raise")
        y, found = jacobians(layer, xs)
        for mine, known in zip(found, node.jacobians(*xs, y=y), strict=True):
            torch.testing.assert_close(mine, known, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("node", BANK, ids=lambda node: type(node).__name__)
def test_finite_differences(node):
    xs = [x.requires_grad_() if isinstance(x, torch.Tensor) else x for x in node.sample_inputs()]
    assert gradcheck(ddnkit.DeclarativeLayer(node), xs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("node", BANK, ids=lambda node: type(node).__name__)
def test_a_batch_is_its_items(node):
    items = [node.sample_inputs() for _ in range(3)]
    tensors = [i for i, x in enumerate(items[0]) if isinstance(x, torch.Tensor)]
    batch = [
        torch.stack([item[i] for item in items]).requires_grad_() if i in tensors else items[0][i]
        for i in range(len(items[0]))
    ]
    layer = ddnkit.DeclarativeLayer(node, policy="raise")
    y = layer(*batch)
    v = torch.randn_like(y)
    y.backward(v)
    assert layer.certificate.stationarity.shape == (3,)
    for b, item in enumerate(items):
        alone = [x.clone().requires_grad_() if isinstance(x, torch.Tensor) else x for x in item]
        y_alone = layer(*alone)
        y_alone.backward(v[b])
        torch.testing.assert_close(y[b], y_alone, rtol=1e-9, atol=1e-9)
        for i in tensors:
            torch.testing.assert_close(batch[i].grad[b], alone[i].grad, rtol=1e-7, atol=1e-9)


def test_equality_qp_has_the_published_solution():
    node = testing.EqualityQP()
    y = ddnkit.DeclarativeLayer(node)(torch.ones(2).double(), torch.tensor(1.0).double())
    torch.testing.assert_close(y, torch.tensor([0.25, 0.75]).double())


def test_assert_gradients_passes_and_fails():
    testing.assert_gradients(testing.AffineConstraint(), examples=3)

    class Wrong(testing.AffineConstraint):
        def solve(self, x):
            return x

    with pytest.raises(AssertionError, match="infeasible"):
        testing.assert_gradients(Wrong(), examples=2)
