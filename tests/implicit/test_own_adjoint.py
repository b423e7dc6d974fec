"""An own adjoint is held against an answer known without a solve: wrong ones fail, right ones pass."""

import copy

import pytest
import torch
from ddnkit_manifolds import Sphere, Stiefel
from hypothesis import given, settings
from hypothesis import strategies as st
from work import Work

import ddnkit
from ddnkit import DeclarativeLayer, DeclarativeNode, UntrustedGradientError, testing

DTYPES = (torch.float32, torch.float64)


class Own(DeclarativeNode):
    """A node with its gradient in closed form, times ``factor``; and how often that was asked for."""

    def __init__(self, factor=1.0):
        self.factor, self.asked = factor, 0

    def adjoint(self, *xs, y, v):
        self.asked += 1
        return tuple(g * self.factor for g in self.right(*xs, y=y, v=v))


class Quadratic(Own):
    """min ½yᵀQy − bᵀy with Q = R + Rᵀ: y = Q⁻¹b, dy = Q⁻¹(db − dQ y)."""

    input_dims = (2, 1)

    def objective(self, R, b, y):
        return y @ (R @ y) - b @ y

    def solve(self, R, b):
        return torch.linalg.solve(R + R.mT, b)

    def right(self, R, b, y, v):
        u = torch.linalg.solve(R + R.mT, v)
        return -torch.outer(u, y) - torch.outer(y, u), u


class Plane(Own):
    """min ½‖y − x‖² with a·y = c: the constraint depends on two inputs."""

    input_dims = (1, 1, 0)

    def objective(self, x, a, c, y):
        return ((y - x) ** 2).sum() / 2

    def equality_constraints(self, x, a, c, y):
        return a @ y - c

    def solve(self, x, a, c):
        return x - a * (a @ x - c) / (a @ a)

    def right(self, x, a, c, y, v):
        nu = (a @ x - c) / (a @ a)
        along = (a @ v) / (a @ a)
        tangent = v - a * along
        # G = I and ν as the multiplier: z = −tangent, μ = −along.
        return tangent, -nu * tangent - along * y, along


class PlaneWithoutNormal(Plane):
    """Right for all that moves within the plane, and blind to the plane's own motion."""

    def right(self, x, a, c, y, v):
        tangent = v - a * (a @ v) / (a @ a)
        return tangent, -(a @ x - c) / (a @ a) * tangent, torch.zeros_like(c)


class Direction(Own):
    """The point of the sphere nearest to x."""

    input_dims = (1,)
    manifold = Sphere()

    def objective(self, x, y):
        return ((y - x) ** 2).sum()

    def solve(self, x):
        return x / x.norm()

    def right(self, x, y, v):
        return ((v - y * (y @ v)) / x.norm(),)


class DirectionWithNormal(Direction):
    """Forgets that y cannot move along itself."""

    def right(self, x, y, v):
        return (v / x.norm(),)


class Polar(Own):
    """The orthonormal frame nearest to X, whose adjoint goes through torch's own singular values."""

    input_dims = (2,)
    manifold = Stiefel()

    def objective(self, X, y):
        return ((y - X) ** 2).sum()

    def solve(self, X):
        U, _, V = torch.linalg.svd(X, full_matrices=False)
        return U @ V

    def right(self, X, y, v):
        with torch.enable_grad():
            moved = X.detach().requires_grad_()
            U, _, V = torch.linalg.svd(moved, full_matrices=False)
            return torch.autograd.grad((U @ V * v).sum(), moved)


def inputs(kind, seed, batch, m, dtype):
    g = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn((*batch, *shape), generator=g, dtype=torch.float64)

    if issubclass(kind, Quadratic):
        # Curvatures of 2 at least.
        L = randn(m, m)
        return (L @ L.mT + torch.eye(m)).to(dtype), randn(m).to(dtype)
    if issubclass(kind, Plane):
        return randn(m).to(dtype), (randn(m) + 3).to(dtype), randn().to(dtype)
    if issubclass(kind, Polar):
        return ((randn(m + 2, m) + 4 * torch.eye(m + 2, m)).to(dtype),)
    return ((randn(m) + 3).to(dtype),)


def pulled(layer, xs):
    xs = [x.clone().requires_grad_() for x in xs]
    layer(*xs).sum().backward()
    return xs


drawn = given(
    st.integers(0, 2**31 - 1), st.sampled_from([(), (1,), (3,)]), st.integers(2, 6), st.sampled_from(DTYPES)
)  # fmt: skip


@pytest.mark.parametrize("certify", ["fast", "full"])
@pytest.mark.parametrize("kind", [Quadratic, Plane, Direction, Polar])
@drawn
@settings(max_examples=8, deadline=None)
def test_a_right_adjoint_is_trusted(kind, certify, seed, batch, m, dtype):
    layer = DeclarativeLayer(kind(), policy="raise", certify=certify)
    pulled(layer, inputs(kind, seed, batch, m, dtype))
    assert bool((layer.certificate.adjoint_difference <= layer.certificate.tolerance).all())


@pytest.mark.parametrize("kind", [Quadratic, Plane, Direction, Polar])
@drawn
@settings(max_examples=8, deadline=None)
def test_a_factor_is_told_and_the_policy_acts(kind, seed, batch, m, dtype):
    factor = (3.0, -1.0, 0.0, 1.01)[seed % 4]
    xs = inputs(kind, seed, batch, m, dtype)
    with pytest.raises(UntrustedGradientError, match="own `adjoint` differs"):
        pulled(DeclarativeLayer(kind(factor), policy="raise"), xs)
    layer = DeclarativeLayer(kind(factor), policy="nan")
    assert all(x.grad.isnan().all() for x in pulled(layer, xs))
    assert "trusted" not in layer.certificate.verdicts()
    assert any("adjoint" in cause for cause in layer.certificate.causes())
    with pytest.warns(ddnkit.DdnkitWarning, match="own `adjoint` differs"):
        pulled(DeclarativeLayer(kind(factor)), xs)


@pytest.mark.parametrize("kind", [PlaneWithoutNormal, DirectionWithNormal])
@drawn
@settings(max_examples=8, deadline=None)
def test_so_is_what_it_leaves_out_of_the_constraints(kind, seed, batch, m, dtype):
    with pytest.raises(UntrustedGradientError, match="own `adjoint` differs"):
        pulled(DeclarativeLayer(kind(), policy="raise"), inputs(kind, seed, batch, m, dtype))


@given(st.integers(0, 2**31 - 1), st.floats(-12, 12), st.floats(-12, 12), st.integers(0, 8))
@settings(max_examples=30, deadline=None)
def test_units_and_condition_make_no_alarm_and_hide_no_factor(seed, of_y, of_f, condition):
    m = 5
    R, b = inputs(Quadratic, seed, (), m, torch.float64)
    Q, _ = torch.linalg.qr(R)
    R = Q @ torch.diag(torch.logspace(0, condition, m, dtype=torch.float64)) @ Q.mT / 2
    R, b = R * 10**of_f / 100**of_y, b * 10**of_f / 10**of_y
    pulled(DeclarativeLayer(Quadratic(), policy="raise"), (R, b))
    with pytest.raises(UntrustedGradientError, match="own `adjoint` differs"):
        pulled(DeclarativeLayer(Quadratic(3.0), policy="raise"), (R, b))


@given(st.integers(0, 2**31 - 1), st.lists(st.floats(-6, 6), min_size=4, max_size=4))
@settings(max_examples=30, deadline=None)
def test_nor_do_units_that_differ_from_one_unknown_to_the_next(seed, powers):
    g = torch.Generator().manual_seed(seed)
    unit = 10 ** torch.tensor(powers, dtype=torch.float64)
    weight = (torch.rand(4, generator=g, dtype=torch.float64) + 0.5) / unit.square()

    class Weighted(Own):
        """min ½Σ wᵢ(yᵢ − xᵢ)²: y = x."""

        input_dims = (1,)

        def objective(self, x, y):
            return (weight * (y - x) ** 2).sum() / 2

        def solve(self, x):
            return x.clone()

        def right(self, x, y, v):
            return (v,)

    x = torch.randn(4, generator=g, dtype=torch.float64) * unit
    pulled(DeclarativeLayer(Weighted(), policy="raise"), (x,))
    with pytest.raises(UntrustedGradientError, match="own `adjoint` differs"):
        pulled(DeclarativeLayer(Weighted(3.0), policy="raise"), (x,))


def test_it_costs_nothing_in_most_calls():
    node = Quadratic()
    layer = DeclarativeLayer(node, policy="raise")
    xs = inputs(Quadratic, 0, (), 4, torch.float64)

    def asked():
        node.asked = 0
        pulled(layer, xs)
        return node.asked

    first = asked()
    assert first > 1
    counts = [asked() for _ in range(100)]
    assert counts[:99] == [1] * 99
    assert counts[99] == first
    # Another signature is another matter, and `full` is always.
    xs = inputs(Quadratic, 0, (2,), 4, torch.float64)
    assert asked() == 2 * first
    assert asked() == 2
    layer = DeclarativeLayer(node, policy="raise", certify="full")
    xs = inputs(Quadratic, 0, (), 4, torch.float64)
    assert asked() == asked() > 1


def test_a_difference_is_told_at_each_call():
    layer = DeclarativeLayer(Quadratic(3.0), policy="raise")
    for again in (layer, copy.deepcopy(layer)):
        for _ in range(3):
            with pytest.raises(UntrustedGradientError):
                pulled(again, inputs(Quadratic, 0, (), 4, torch.float64))
    layer.node.factor = 1.0
    pulled(layer, inputs(Quadratic, 0, (), 4, torch.float64))
    layer.node.factor = 3.0  # up to the next comparison nobody looks
    pulled(layer, inputs(Quadratic, 0, (), 4, torch.float64))


def test_only_what_is_wrong_is_masked():
    class WrongBelowZero(Direction):
        def right(self, x, y, v):
            (g,) = super().right(x, y, v)
            return (g if x[0] > 0 else 2 * g,)

    x = torch.tensor([[1.0, 2.0], [-1.0, 2.0], [3.0, 1.0]])
    layer = DeclarativeLayer(WrongBelowZero(), policy="mask")
    (x,) = pulled(layer, (x,))
    assert x.grad[1].eq(0).all()
    assert x.grad[[0, 2]].ne(0).any(dim=1).all()
    assert layer.certificate.verdicts() == ["trusted", "invalid", "trusted"]


def test_inside_transforms_of_torch():
    xs = inputs(Direction, 0, (3,), 4, torch.float64)
    layer = DeclarativeLayer(Direction(3.0), policy="raise")
    for transform in (torch.func.grad, lambda f: torch.func.vmap(torch.func.grad(f))):
        with pytest.raises(UntrustedGradientError):
            transform(lambda x: layer(x).sum())(*xs)
    layer = DeclarativeLayer(Direction(), policy="raise")
    rows = torch.func.jacrev(layer)(xs[0][0])
    by_torch = torch.func.jacrev(lambda x: x / x.norm())(xs[0][0])
    torch.testing.assert_close(rows, by_torch)


def test_an_objective_without_second_derivatives_is_left_to_its_author():
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, r):
            ctx.save_for_backward(r)
            return r.square().sum() / 2

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, g):
            (r,) = ctx.saved_tensors
            return g * r

    class Once(Own):
        input_dims = (1,)

        def objective(self, x, y):
            return Square.apply(y - x)

        def solve(self, x):
            return x.clone()

        def right(self, x, y, v):
            return (v,)

    layer = DeclarativeLayer(Once(), policy="raise")
    (x,) = pulled(layer, (torch.randn(3),))
    assert x.grad.eq(1).all()
    assert layer.certificate.adjoint_difference is None


def test_a_map_that_is_not_the_objectives():
    class Halved(DeclarativeNode):
        """min ½‖y − x‖²; the map has the fixed point x/factor."""

        input_dims = (1,)

        def __init__(self, factor):
            self.factor = factor

        def objective(self, x, y):
            return ((y - x) ** 2).sum() / 2

        def solve(self, x):
            return x.clone()

        def fixed_point(self, x, y):
            return (y + self.factor * x) / 2 + (1 - self.factor) * x.detach() / 2

    x = torch.randn(2, 3, dtype=torch.float64)
    pulled(DeclarativeLayer(Halved(1.0), "fixed_point", policy="raise"), (x,))
    with pytest.raises(UntrustedGradientError, match="own `fixed_point` differs"):
        pulled(DeclarativeLayer(Halved(2.0), "fixed_point", policy="raise"), (x,))


def test_what_solve_keeps_is_left_as_it_is_and_asked_for_by_name():
    class Keeps(DeclarativeNode):
        input_dims = (1,)

        def objective(self, x, y):
            return ((y - 2 * x) ** 2).sum()

        def solve(self, x):
            return ddnkit.Solution(2 * x, aux={"two": torch.full_like(x, 2.0)})

        def adjoint(self, x, y, v, aux):
            return (aux["two"].mul_(v),)

    class Unnamed(Keeps):
        def adjoint(self, x, y, v):
            return (2 * v,)

    (x,) = pulled(DeclarativeLayer(Keeps(), policy="raise"), (torch.randn(2, 3),))
    assert x.grad.eq(2).all()
    with pytest.raises(ddnkit.InputError, match=r"Unnamed\.adjoint.*`aux`"):
        pulled(DeclarativeLayer(Unnamed()), (torch.randn(2, 3),))


@pytest.mark.parametrize("size", [1e-30, 0.0, 1e30])
def test_at_the_ends_of_the_range(size):
    x = size * torch.randn(2, 3)

    class Copy(Own):
        input_dims = (1,)

        def objective(self, x, y):
            return ((y - x) ** 2).sum()

        def solve(self, x):
            return x.clone()

        def right(self, x, y, v):
            return (v,)

    pulled(DeclarativeLayer(Copy(), policy="raise"), (x,))
    with pytest.raises(UntrustedGradientError):
        pulled(DeclarativeLayer(Copy(3.0), policy="raise"), (x,))


def test_products_alone_and_few():
    # Of 400 unknowns the matrix G would take 400² numbers.
    xs = inputs(Direction, 0, (), 400, torch.float64)
    layer = DeclarativeLayer(Direction(), policy="raise")
    with Work() as first:
        pulled(layer, xs)
    with Work() as later:
        pulled(layer, xs)
    assert first.bytes - later.bytes <= 400 * 8 * 400 / 2


def test_the_banks_own_adjoint_passes():
    node = testing.AffineWithAdjoint()
    layer = DeclarativeLayer(node, policy="raise")
    pulled(layer, [x.double() for x in node.sample_inputs()])


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("written", ["x", "y"])
@pytest.mark.parametrize("certify", ["off", "fast", "full"])
def test_an_adjoint_that_writes_on_what_the_caller_holds_is_refused(written, batch, certify):
    class Writes(DeclarativeNode):
        input_dims = (1,)

        def objective(self, x, y):
            return ((y - x) ** 2).sum() / 2

        def solve(self, x):
            return x.clone()

        def adjoint(self, x, y, v):
            (x if written == "x" else y).mul_(3)
            return (v.clone(),)

    x = torch.ones(*batch, 3, dtype=torch.float64, requires_grad=True)
    y = DeclarativeLayer(Writes(), certify=certify)(x)
    with pytest.raises(ddnkit.InputError, match=r"adjoint .*in place"):
        y.sum().backward()
