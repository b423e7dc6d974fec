"""A solution of several parts, empty batches, warm starts."""

import pytest
import torch
from bounds import rounding
from ddnkit_manifolds import Sphere
from torch.autograd import gradcheck, gradgradcheck
from torch.func import jacrev, vmap

from ddnkit import DeclarativeLayer, DeclarativeNode, InputError


class Parts(DeclarativeNode):
    """A matrix u and a number v that depend on each other, u₀₀ fixed."""

    input_dims = (2, 0)

    def objective(self, x, a, y):
        u, v = y["u"], y["v"]
        return ((u - x) ** 2).sum() + (v - a * u.sum()) ** 2 + v**4 / 10

    def equality_constraints(self, x, a, y):
        return y["u"][0, 0] - a

    def initial_point(self, x, a):
        return {"u": x.clone(), "v": a.clone()}


class Pair(DeclarativeNode):
    input_dims = (1,)

    def objective(self, x, y):
        return ((y[0] - x) ** 2).sum() + (y[1] - x.sum()) ** 2

    def solve(self, x):
        return x.clone(), x.sum()


class BatchedPair(Pair):
    batched_solve = True

    def solve(self, x):
        return x.clone(), x.sum(-1)

    def adjoint(self, x, y, v):
        assert y[0].shape == v[0].shape == x.shape
        return (v[0] + v[1].unsqueeze(-1),)


def example(*batch):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(*batch, 2, 2, generator=generator, dtype=torch.float64)
    return x, torch.randn(batch, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    "form",
    [
        "auto",
        "krylov",
        pytest.param("dense", marks=pytest.mark.long),
        pytest.param("embedded_field", marks=pytest.mark.long),
    ],
)
def test_parts_keep_their_names_shapes_and_gradients(form):
    layer = DeclarativeLayer(Parts(), form, policy="raise")
    y = layer(*example(5))
    assert {name: tuple(part.shape) for name, part in y.items()} == {"u": (5, 2, 2), "v": (5,)}
    xs = [x.requires_grad_() for x in example()]
    nondet = rounding(torch.float64, 30)  # by where vectors lie in memory

    def parts(*xs):
        return tuple(layer(*xs).values())

    assert gradcheck(parts, xs, check_forward_ad=True, nondet_tol=nondet)
    assert gradgradcheck(parts, xs, nondet_tol=nondet)


@pytest.mark.parametrize("node", [Pair(), BatchedPair()])
def test_tuples(node):
    layer = DeclarativeLayer(node, policy="raise")
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    u, v = layer(x)
    assert u.shape == (3, 4) and v.shape == (3,)
    v.sum().backward()
    torch.testing.assert_close(x.grad, torch.ones_like(x))
    jacobian = vmap(jacrev(layer))(x.detach())
    assert jacobian[1].shape == (3, 4)
    torch.testing.assert_close(jacobian[0], torch.eye(4, dtype=torch.float64).expand(3, 4, 4))


def test_parts_on_a_manifold_are_refused():
    class OnSphere(Pair):
        manifold = Sphere()

    with pytest.raises(InputError, match="a product of manifolds takes one for each part"):
        DeclarativeLayer(OnSphere())(torch.randn(3))


def test_wrong_parts():
    class Wrong(Pair):
        def solve(self, x):
            return x, 3

    with pytest.raises(InputError, match=r"Wrong\.solve: .*\bint\b"):
        DeclarativeLayer(Wrong())(torch.randn(3))


@pytest.mark.parametrize("node", [Pair(), BatchedPair()])
def test_an_empty_batch(node):
    layer = DeclarativeLayer(node, policy="raise")
    x = torch.zeros(0, 4, requires_grad=True)
    u, v = layer(x)
    assert u.shape == (0, 4) and v.shape == (0,)
    assert layer.certificate.stationarity.shape == (0,)
    assert layer.certificate.verdicts() == []
    (u.sum() + v.sum()).backward()
    assert x.grad.shape == (0, 4)


def test_an_empty_batch_leaves_parameters_a_zero_gradient():
    class Scaled(DeclarativeNode):
        input_dims = (1,)

        def __init__(self):
            self.scale = torch.nn.Parameter(torch.tensor(2.0))

        def objective(self, x, y):
            return ((y - self.scale * x) ** 2).sum()

        def initial_point(self, x):
            return torch.zeros_like(x)

    layer = DeclarativeLayer(Scaled(), policy="raise")
    layer(torch.zeros(0, 3)).sum().backward()
    assert layer.node.scale.grad == 0


def test_an_empty_batch_of_unknown_shape_says_so():
    class Raises(Pair):
        def solve(self, x):
            raise ValueError("on purpose")

    with pytest.raises(InputError, match=r"Raises .*: on purpose"):
        DeclarativeLayer(Raises())(torch.zeros(0, 3))


def test_warm_start_needs_fewer_iterations():
    layer = DeclarativeLayer(Parts(), policy="raise")
    x, a = example(3)
    y = layer(x, a)
    cold = layer.certificate.iterations
    again = layer(x, a, start=y)
    assert (layer.certificate.iterations < cold).all()
    torch.testing.assert_close(again["u"], y["u"])


def test_warm_starts_that_make_no_sense():
    x, a = example(3)
    with pytest.raises(InputError, match=r"Pair .*`start`"):
        DeclarativeLayer(Pair())(x[0], start=x)
    with pytest.raises(InputError, match=r"Parts: .*\(2, 5\).*\(3,\)"):
        DeclarativeLayer(Parts())(x, a, start={"u": x[:2], "v": a[:2]})
