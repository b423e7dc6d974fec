"""Short calls of nodes with inequality constraints and bounds: what the eager way gives, or left to it."""

import shutil

import pytest
import torch
from layers import eager, short

import ddnkit
from ddnkit import DeclarativeLayer, DeclarativeNode
from ddnkit.solvers.interior_point import InteriorPoint
from ddnkit.testing import bank

pytestmark = pytest.mark.programs


class Simplex(DeclarativeNode):
    """The point of the simplex nearest to x."""

    input_dims = (1,)
    bounds = (0.0, None)

    def objective(self, x, y):
        return (y - x).square().sum() / 2

    def equality_constraints(self, x, y):
        return y.sum() - 1

    def initial_point(self, x):
        return torch.full_like(x, 1 / len(x))


class Budget(DeclarativeNode):
    """The y ≥ 0 nearest to x with Σ y ≤ b."""

    input_dims = (1, 0)
    bounds = (0.0, None)

    def objective(self, x, b, y):
        return (y - x).square().sum() / 2

    def inequality_constraints(self, x, b, y):
        return y.sum() - b

    def initial_point(self, x, b):
        return torch.zeros_like(x)


class Box(DeclarativeNode):
    """The y nearest to x within bounds that are inputs, some of them infinite; the entries are coupled."""

    input_dims = (1, 1, 1)

    def bounds(self, x, lower, upper):
        return lower, upper

    def objective(self, x, lower, upper, y):
        return (y - x).square().sum() / 2 + 0.1 * y.sum() ** 2

    def initial_point(self, x, lower, upper):
        return torch.zeros_like(x)


class Mixed(DeclarativeNode):
    """A quadratic program with constraints of all kinds; along e, which is held, it may bend down."""

    input_dims = (2, 1, 2, 1, 1)
    bounds = (-0.5, 1.0)

    def __init__(self, down=0.0):
        self.down = down

    def objective(self, Q, q, G, h, e, y):
        return y @ Q @ y / 2 + q @ y - self.down * (e @ y) ** 2 / (e @ e)

    def equality_constraints(self, Q, q, G, h, e, y):
        return e @ y - 0.1

    def inequality_constraints(self, Q, q, G, h, e, y):
        return G @ y - h

    def initial_point(self, Q, q, G, h, e):
        return torch.zeros_like(q)


def drawn(node, batch, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(batch, *shape, generator=generator, dtype=torch.float64)

    if isinstance(node, Simplex):
        inputs = [2 * normal(6)]
    elif isinstance(node, Budget):
        inputs = [normal(3), 0.5 + normal().abs()]
    elif isinstance(node, Box):
        lower, upper = -normal(4).abs(), normal(4).abs()
        lower[:, 0], upper[:, 1] = -torch.inf, torch.inf
        inputs = [2 * normal(4), lower, upper]
    else:
        root = normal(5, 5)
        Q = root @ root.mT / 5 + torch.eye(5, dtype=torch.float64) / 5
        inputs = [Q, 2 * normal(5), normal(3, 5), 0.1 + normal(3).abs(), normal(5)]
    return [x.to(dtype).requires_grad_() for x in inputs]


def assert_same(layer, other, xs, scale=1.0):
    """y and the gradients to half of the digits or more, and the same certificate."""
    close = scale * torch.finfo(xs[0].dtype).eps ** 0.5
    found = []
    for each in (layer, other):
        y = each(*xs)
        v = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)
        gradients = torch.autograd.grad(y, xs, v, allow_unused=True)
        zero = (torch.zeros_like(x) if g is None else g for x, g in zip(xs, gradients, strict=True))
        found.append([y.detach(), *zero])
    for a, b in zip(*found, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert float((a - b).norm()) <= close * float(b.norm() + 1)
    one, two = layer.certificate, other.certificate
    assert one.verdicts() == two.verdicts()
    assert one.form == two.form and one.solver == two.solver
    # Of differences over √ε.
    assert torch.allclose(one.active_margin, two.active_margin, rtol=100 * close)
    # 0, where a row of another item's stands among its own, says nothing.
    there = two.licq > 0
    assert torch.allclose(one.licq[there], two.licq[there], rtol=100 * close)


NODES = [Simplex(), Budget(), Box(), Mixed(), Mixed(down=0.1)]


@pytest.mark.parametrize(
    "node", [*NODES[:3], *(pytest.param(n, marks=pytest.mark.long) for n in NODES[3:])]
)
@pytest.mark.parametrize(
    ("batch", "dtype"),
    [
        (3, torch.float64),
        pytest.param(1, torch.float64, marks=pytest.mark.long),
        pytest.param(3, torch.float32, marks=pytest.mark.long),
    ],
)
def test_a_short_call_gives_what_an_eager_one_gives(node, batch, dtype):
    layer, other = short(node), eager(node)
    for seed in range(4):
        assert_same(layer, other, drawn(node, batch, seed, dtype))
    assert layer.short.reasons() == []
    assert layer.short.taken >= 3


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_bank_gives_the_same(dtype):
    taken = {}
    for node in bank():
        if not node.has_inequalities:
            continue
        name = type(node).__name__
        layer, other = short(node), eager(node)
        for seed in range(4):
            torch.manual_seed(seed)
            items = zip(*[node.sample_inputs() for _ in range(2)], strict=True)
            xs = [torch.stack(parts).to(dtype).requires_grad_() for parts in items]
            if not isinstance(other(*xs), torch.Tensor):
                break
            # Those with a condition above 1e4 are none of them.
            assert_same(layer, other, xs, scale=100)
        taken[name] = layer.short.taken
    assert {name for name, count in taken.items() if count} >= {
        "ProjectionOnBox", "ProjectionOnMaxNormBall", "ProjectionOnHalfSpace", "ProjectionOnBall",
        "ProjectionOutOfBall", "ProjectionOnSimplex", "ProjectionOnCappedSimplex", "IsotonicRegression",
        "WaterFilling", "CappedSoftmax", "TrustRegion", "SeparableDoubleWell", "MixedQP",
    }  # fmt: skip
    # Dependent rows, and what is at an edge, are the eager way's.
    assert not any(taken[name] for name in ("RepeatedHalfSpace", "ProjectionOnCorner", "AtTheEdge"))


def test_small_programs_are_solved_by_a_program(monkeypatch):
    """Their solver is not asked any more once there is one."""
    layer = short(Simplex())
    layer(*drawn(layer.node, 3, 0))

    def refuse(*_):
        raise AssertionError("the solver was asked")

    monkeypatch.setattr(InteriorPoint, "solve", refuse)
    for seed in range(1, 8):
        layer(*drawn(layer.node, 3, seed))
    assert layer.short.taken == 8


@pytest.mark.parametrize("what", ["weakly active", "negative multiplier", "zero"])
def test_what_is_not_clear_is_left_to_the_eager_way(what):
    class Clamp(DeclarativeNode):
        input_dims = (1,)
        bounds = (0.0, None)
        batched_solve = True

        def objective(self, x, y):
            return (y - x).square().sum()

        def solve(self, x):
            return x.clamp(min=0) if what != "negative multiplier" else 0 * x

    layer, other = (make(Clamp(), policy="nan") for make in (short, eager))
    with_margin = torch.tensor([[0.5, -0.5], [1.0, -2.0]], dtype=torch.float64)
    plain = with_margin if what != "negative multiplier" else -with_margin.abs()
    layer(plain.clone().requires_grad_())
    assert layer.short.taken == 1
    at = {"weakly active": 0.0, "negative multiplier": 0.5, "zero": 1e-13}[what]
    x = plain.clone()
    x[0, 0] = at
    found = []
    for each in (layer, other):
        leaf = x.clone().requires_grad_()
        y = each(leaf)
        found.append((y.detach(), *torch.autograd.grad(y.sum(), leaf)))
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, equal_nan=True)
    assert layer.short.taken == 1
    assert layer.certificate.verdicts() == other.certificate.verdicts()


def test_a_solution_of_zero_has_a_size():
    layer, other = short(Budget()), eager(Budget())
    x = -0.1 - torch.rand(3, 3, dtype=torch.float64)
    for _ in range(2):
        xs = [x.clone().requires_grad_(), torch.ones(3, dtype=torch.float64, requires_grad=True)]
        assert_same(layer, other, xs)
    assert layer.short.taken == 2


def test_bounds_that_change_are_seen():
    class Clamp(DeclarativeNode):
        input_dims = (1,)
        solver = "interior_point"

        def __init__(self, top):
            self.bounds = (None, top)

        def objective(self, x, y):
            return (y - x).square().sum()

        def initial_point(self, x):
            return torch.zeros_like(x)

    node = Clamp(1.0)
    layer = short(node)
    x = torch.tensor([[0.5, 3.0]], dtype=torch.float64)
    assert layer(x).tolist() == [[0.5, 1.0]]
    assert layer.short.taken == 1
    node.bounds = (None, 2.0)
    assert layer(x).tolist() == [[0.5, 2.0]]
    # A tensor that the node holds moves the solution, and has a gradient.
    top = torch.nn.Parameter(torch.tensor([4.0, 2.5], dtype=torch.float64))
    layer = short(Clamp(top))
    for _ in range(2):
        (gradient,) = torch.autograd.grad(layer(x).sum(), top)
        assert gradient.tolist() == [0.0, 1.0]
    assert layer.short.taken == 2
    with torch.no_grad():
        top.fill_(2.0)
    assert layer(x).tolist() == [[0.5, 2.0]]
    assert layer.short.taken == 3


@pytest.mark.long
def test_every_derivative_and_the_multipliers_are_there():
    node = Mixed()
    layer = short(node)
    xs = drawn(node, 1, 0)
    layer(*xs)
    assert layer.short.taken == 1

    def of_q(q):
        return layer(xs[0], q, *xs[2:])

    assert torch.autograd.gradcheck(of_q, (xs[1],))
    assert torch.autograd.gradgradcheck(of_q, (xs[1],))
    plain = [x.detach() for x in xs]
    forward = torch.func.jacfwd(lambda q: layer(plain[0], q, *plain[2:]))(plain[1])
    backward = torch.func.jacrev(lambda q: eager(node)(plain[0], q, *plain[2:]))(plain[1])
    assert torch.allclose(forward, backward)
    y, multipliers = layer(*plain, return_multipliers=True)
    assert torch.allclose(y, layer(*plain))
    assert multipliers.inequality.shape == (1, 3)


def test_a_problem_that_is_not_convex_is_solved_by_its_solver():
    """f bends down between two minima: which is found is for the solver, and its start, to say."""

    class Well(DeclarativeNode):
        input_dims = (1,)
        bounds = (-2.0, 2.0)

        def __init__(self, sign):
            self.sign = sign

        def objective(self, x, y):
            return ((y.square() - 1).square() + x * y / 10).sum()

        def initial_point(self, x):
            return self.sign * torch.ones_like(x) / 2

    x = torch.tensor([[0.3, -0.4]], dtype=torch.float64, requires_grad=True)
    for sign in (-1.0, 1.0):
        layer, other = short(Well(sign)), eager(Well(sign))
        for _ in range(2):
            assert_same(layer, other, [x])
            assert torch.equal(layer(x).sign(), torch.full_like(x, sign))
        assert layer.short.taken >= 2


def test_contradictions_and_bad_items_are_told_as_before():
    layer = short(Box(), policy="nan")
    xs = drawn(layer.node, 2, 0)
    layer(*xs)
    assert layer.short.taken == 1
    lower = xs[1].detach().clone()
    lower[0, 2] = xs[2][0, 2] + 1
    y = layer(xs[0], lower, xs[2])
    assert layer.certificate.status[0] == ddnkit.Status.INFEASIBLE
    assert y[0].isnan().all() and y[1].isfinite().all()
    x = xs[0].detach().clone()
    x[1, 0] = torch.nan
    assert layer(x, xs[1], xs[2])[0].isfinite().all()
    assert layer.short.taken == 1


@pytest.mark.long
@pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="there is no C++ compiler"
)
def test_compiled_programs_give_the_same():
    layer = DeclarativeLayer(Budget(), compile=True)
    other = eager(Budget())
    for seed in range(3):
        assert_same(layer, other, drawn(layer.node, 2, seed))
    assert layer.short.compiled and layer.short.taken >= 1
