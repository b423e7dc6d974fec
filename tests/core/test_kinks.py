"""Solutions at a kink of the objective or of a constraint: the derivative along it, or none, told."""

import warnings

import pytest
import torch
from bounds import eps
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import hessian, jacfwd, jacrev, vmap

import ddnkit
from ddnkit import DeclarativeLayer, DeclarativeNode, UntrustedGradientError


class SoftThreshold(DeclarativeNode):
    input_dims = (1,)

    def objective(self, x, y):
        return (y - x).square().sum() / 2 + y.abs().sum()

    def solve(self, x):
        return torch.nn.functional.softshrink(x, 1.0)


class ByFormula(DeclarativeNode):
    """A term in y with kinks, beside a square; y is given in closed form."""

    input_dims = (1,)

    def __init__(self, term, solution):
        self.term, self.solution = term, solution

    def objective(self, x, y):
        return (y - x).square().sum() / 2 + self.term(y)

    def solve(self, x):
        return self.solution(x)


def shrink(x, below, above):
    """The minimum of (y − x)²/2 with slopes ``below`` left and ``above`` right of 0."""
    return torch.where(x > above, x - above, torch.where(x < below, x - below, 0.0))


def tied(x):
    """x with its two largest entries lowered to where they tie, for a weight of 1 on the largest."""
    order = x.argsort(descending=True)
    level = (x[order[:2]].sum() - 1) / 2
    return x.scatter(0, order[:2], level.expand(2))


F = torch.nn.functional
EXACT = {
    "abs": (lambda y: y.abs().sum(), lambda x: shrink(x, -1, 1)),
    "relu": (lambda y: torch.relu(y).sum(), lambda x: shrink(x, 0, 1)),
    "leaky_relu": (lambda y: F.leaky_relu(y, 0.25).sum(), lambda x: shrink(x, 0.25, 1)),
    "clamp": (lambda y: y.clamp(min=0).sum(), lambda x: shrink(x, 0, 1)),
    "clamp from both sides": (lambda y: 2 * y.clamp(0, 50).sum(), lambda x: shrink(x, 0, 2)),
    "maximum": (lambda y: torch.maximum(y, -2 * y).sum(), lambda x: shrink(x, -2, 1)),
    "minimum": (lambda y: -torch.minimum(y, 3 * y).sum() + 3 * y.sum(),
                lambda x: shrink(x, 0, 2)),
    "l1_loss": (lambda y: F.l1_loss(y, torch.zeros_like(y), reduction="sum"),
                lambda x: shrink(x, -1, 1)),
    "a mean": (lambda y: y.numel() * F.l1_loss(y, torch.zeros_like(y)),
               lambda x: shrink(x, -1, 1)),
    "a norm": (lambda y: torch.linalg.vector_norm(y, 1), lambda x: shrink(x, -1, 1)),
    "written twice": (lambda y: (y.abs() + torch.relu(y)).sum(), lambda x: shrink(x, -1, 2)),
    "amax": (lambda y: y.amax(), tied),
    "max along a dimension": (lambda y: y.max(dim=0).values, tied),
    "max": (lambda y: y.max(), tied),
    "min": (lambda y: -y.neg().min(), tied),
}  # fmt: skip

#: Away from where a kink begins and ends to bind; of "max" the two largest tie.
INPUTS = torch.tensor([[-3.0, 0.4, 3.5, 3.8], [0.6, -0.5, 2.5, 2.2], [1.5, 1.7, 0.1, -4.0]])


FORMS = ("auto", "dense", "krylov", "embedded_field")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", EXACT)
@pytest.mark.covering
def test_the_derivative_at_a_kink_is_that_along_it(name, form, dtype):
    term, solution = EXACT[name]
    layer = DeclarativeLayer(ByFormula(term, solution), form, policy="raise")
    X = INPUTS.to(dtype)
    for x in X:
        found = jacrev(layer)(x)
        expected = jacrev(solution)(x)
        # The projection on the kinks is of condition 1.
        assert torch.allclose(found, expected, atol=64 * eps(dtype))
        assert torch.allclose(jacfwd(layer)(x), expected, atol=64 * eps(dtype))
    x = X.clone().requires_grad_()
    y = layer(x)
    assert torch.equal(y, torch.stack([solution(one) for one in X]))
    assert layer.certificate.verdicts() == ["trusted"] * 3
    (together,) = torch.autograd.grad(y, x, torch.ones_like(y))
    alone = torch.stack([jacrev(solution)(one).sum(dim=0) for one in X])
    assert torch.allclose(together, alone, atol=64 * eps(dtype))
    assert torch.allclose(vmap(jacrev(layer))(X)[0], jacrev(solution)(X[0]), atol=64 * eps(dtype))


def one_of_two(x, y):
    return y.abs().sum() if x[0] > 0 else y.sum()


def another_of_two(x, y):
    return y.abs().sum() if x[0] > 0 else 2 * torch.relu(y).sum()


def more_of_one(x, y):
    return sum(y[k].abs() for k in range(len(y) if x[0] > 0 else 1))


@pytest.mark.parametrize(
    ("term", "other"),
    [
        (one_of_two, lambda x: x - 1),
        (another_of_two, lambda x: shrink(x, 0, 2)),
        (more_of_one, lambda x: torch.cat([shrink(x[:1], -1, 1), x[1:]])),
    ],
)
def test_items_that_take_other_branches_have_their_own_kinks(term, other):
    class Branching(DeclarativeNode):
        input_dims = (1,)

        def objective(self, x, y):
            return (y - x).square().sum() / 2 + term(x, y)

        def solve(self, x):
            return shrink(x, -1, 1) if x[0] > 0 else other(x)

    X = torch.tensor(
        [[2.0, 0.5, -3], [-2.0, 0.5, -0.5], [0.4, -0.2, 3.0], [-0.5, 3.0, 0.2]],
        dtype=torch.float64,
        requires_grad=True,
    )
    for items in ([0, 1, 2, 3], [1, 0], [3, 2, 1]):
        layer = DeclarativeLayer(Branching(), policy="raise")
        v = torch.linspace(1, 2, 3, dtype=torch.float64).expand(len(items), 3)
        (found,) = torch.autograd.grad(layer(X[items]), X, v)
        y = torch.stack([Branching().solve(X[i]) for i in items])
        (right,) = torch.autograd.grad(y, X, v)
        assert torch.allclose(found, right, atol=64 * eps(torch.float64))
        assert layer.certificate.verdicts() == ["trusted"] * len(items)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("weight", [1e2, 1e4, 1e6, 1e8])
@pytest.mark.parametrize("kind", ["relu", "clamp"])
def test_a_steep_penalty_is_as_far_from_its_end_as_a_flat_one(dtype, weight, kind):
    """Of min (y − x)²/2 + w·relu(y − 1) at x > 1 the slope is (x − 1)/w: small, but known by its digits."""

    def term(y):
        return weight * (torch.relu(y - 1) if kind == "relu" else (y - 1).clamp(min=0)).sum()

    x = torch.tensor([[0.5, 1.1], [0.9, 3.0]], dtype=dtype, requires_grad=True)
    layer = DeclarativeLayer(ByFormula(term, lambda x: x.clamp(max=1)), policy="raise")
    if kind == "clamp" and weight * eps(dtype) > 1e-4:
        return  # torch takes 1 at the end of a clamp in some versions: w + (y − x) − w has lost x
    (found,) = torch.autograd.grad(layer(x).sum(), x)
    assert torch.allclose(found, (x < 1).to(dtype), atol=64 * eps(dtype))
    assert layer.certificate.verdicts() == ["trusted"] * 2


def ranking(y):
    return F.margin_ranking_loss(y, -y, -torch.ones_like(y), reduction="sum")


def similar(y):
    pairs = torch.stack([torch.ones_like(y), y], dim=1), torch.stack([0 * y, 1 + 0 * y], dim=1)
    return 2 * F.cosine_embedding_loss(*pairs, -torch.ones_like(y), reduction="sum")


def triplets(y, swap=False):
    far = 11 + y.unsqueeze(1)  # 5 + y from 0, and 6 from 5 + y
    return F.triplet_margin_loss(
        5 + y.unsqueeze(1), 0 * far, far, eps=0.0, swap=swap, reduction="sum"
    )


#: Their kinks, and the solutions for x; those of the second part torch does not batch by itself.
POOLS_AND_LOSSES = {
    "max_pool1d": (lambda y: F.max_pool1d(y.unsqueeze(0), 4).sum(), tied),
    "max_pool2d": (lambda y: F.max_pool2d(y.reshape(1, 2, 2), 2).sum(), tied),
    "max_pool3d": (lambda y: F.max_pool3d(y.reshape(1, 1, 2, 2), (1, 2, 2)).sum(), tied),
    "padded max_pool1d": (
        lambda y: F.max_pool1d(y.reshape(1, 1, -1), 5, padding=1, ceil_mode=True)[..., 0].sum(), tied,
    ),
    "hinge_embedding_loss": (
        lambda y: F.hinge_embedding_loss(y, -torch.ones_like(y), 0.0, reduction="sum"),
        lambda x: shrink(x, -1, 0),
    ),
    "a mean of hinge_embedding_loss": (
        lambda y: y.numel() * F.hinge_embedding_loss(1 - y, -torch.ones_like(y)),
        lambda x: shrink(x, 0, 1),
    ),
    "margin_ranking_loss": (ranking, lambda x: shrink(x, 0, 2)),
    "triplet_margin_loss": (triplets, lambda x: shrink(x, 0, 1)),
    "swapped triplet_margin_loss": (lambda y: triplets(y, True), lambda x: shrink(x, 0, 1)),
    "cosine_embedding_loss": (similar, lambda x: x.clamp(max=0)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", POOLS_AND_LOSSES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.covering
def test_pools_and_losses_have_the_derivative_along_their_kinks(name, dtype):
    term, solution = POOLS_AND_LOSSES[name]
    X = INPUTS.to(dtype)
    if term is similar:  # whose other side is curved
        X = torch.tensor([[-3.0, 0.4], [-1, 0.2]], dtype=dtype)
    X.requires_grad_()
    layer = DeclarativeLayer(ByFormula(term, solution), policy="raise")
    v = torch.linspace(1, 2, X.numel(), dtype=dtype).reshape(X.shape)
    (found,) = torch.autograd.grad(layer(X), X, v)
    (right,) = torch.autograd.grad(torch.stack([solution(x) for x in X]), X, v)
    assert torch.allclose(found, right, atol=64 * eps(dtype))
    assert layer.certificate.verdicts() == ["trusted"] * len(X)


@pytest.mark.parametrize(
    "term", [lambda y: -F.max_pool1d(y.unsqueeze(0), 2).sum(), lambda y: -3 * triplets(y)]
)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_a_point_at_a_concave_kink_of_them_is_no_solution(term):
    x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    layer = DeclarativeLayer(ByFormula(term, lambda x: x.clone()), policy="nan")
    layer(x)
    assert layer.certificate.verdicts() == ["invalid"]


def test_derivatives_of_higher_order_are_those_along_it():
    layer = DeclarativeLayer(SoftThreshold(), policy="raise")
    x = torch.tensor([-3.0, 0.4, 1.5], dtype=torch.float64)
    assert not hessian(lambda x: layer(x).sum())(x).any()
    assert torch.allclose(
        hessian(lambda x: layer(x).square().sum() / 2)(x),
        torch.diag(torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)),
        atol=64 * eps(torch.float64),
    )


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.floats(-40, 40), min_size=1, max_size=6),
    st.floats(0.01, 100),
    st.sampled_from([torch.float64, torch.float32]),
)
def test_soft_thresholds_of_any_size(entries, scale, dtype):
    class Scaled(DeclarativeNode):
        input_dims = (1,)

        def objective(self, x, y):
            return scale * ((y - x).square().sum() / 2 + scale * y.abs().sum())

        def solve(self, x):
            return F.softshrink(x, scale)

    x = scale * torch.tensor(entries, dtype=dtype)
    inside = (x.abs() / scale < 0.98).to(dtype)
    outside = (x.abs() / scale > 1.02).to(dtype)
    x = torch.where(inside + outside > 0, x, 0.0)
    inside = 1 - outside
    layer = DeclarativeLayer(Scaled(), policy="raise")
    x.requires_grad_()
    layer(x).sum().backward()
    assert layer.certificate.verdicts() == ["trusted"]
    assert torch.allclose(x.grad, outside, atol=64 * eps(dtype))


class L1Sphere(DeclarativeNode):
    """The nearest point with Σ|yᵢ| = 1 of an x beyond it: its kinks are in the constraint."""

    input_dims = (1,)

    def objective(self, x, y):
        return (y - x).square().sum() / 2

    def equality_constraints(self, x, y):
        return y.abs().sum() - 1

    def solve(self, x):
        size = x.abs().sort(descending=True).values
        sums = (size.cumsum(0) - 1) / torch.arange(1, len(x) + 1, dtype=x.dtype)
        level = sums[(size > sums).sum() - 1]
        return x.sign() * (x.abs() - level).clamp(min=0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 8))
def test_kinks_of_a_constraint(seed, m):
    x = torch.randn(m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = 2 * x / x.abs().sum()
    node = L1Sphere()
    y = node.solve(x)
    # How far the entries at zero are from leaving it.
    level = (x - y).abs().max()
    if bool(((x.abs() - level).abs() < 1e-3).any()):
        return
    layer = DeclarativeLayer(node, policy="raise")
    found = jacrev(layer)(x)
    active = (y != 0).to(x.dtype)
    sign = y.sign()
    expected = torch.diag(active) - torch.outer(sign, sign) / active.sum()
    assert torch.allclose(found, expected, atol=64 * m * eps(torch.float64))


@pytest.mark.parametrize("policy", ["mask", "nan"])
def test_a_vmap_of_a_derivative_keeps_no_tensor_of_it(policy):
    layer = DeclarativeLayer(SoftThreshold(), policy=policy)
    X = INPUTS.double()
    found = vmap(jacrev(layer))(X)
    expected = torch.diag_embed((X.abs() > 1).double())
    assert torch.allclose(found, expected, atol=64 * eps(torch.float64))
    assert torch.allclose(jacrev(layer)(X[0]), expected[0], atol=64 * eps(torch.float64))


def test_newton_stops_at_kinks_it_steps_on():
    class TotalVariation(DeclarativeNode):
        input_dims = (1,)

        def objective(self, x, y):
            return (y - x).square().sum() / 2 + (y[1] - y[0]).abs()

        def initial_point(self, x):
            return x

    x = torch.tensor([1.0, 1.5], dtype=torch.float64)
    layer = DeclarativeLayer(TotalVariation(), policy="raise")
    half = torch.full((2, 2), 0.5, dtype=torch.float64)
    assert torch.allclose(jacrev(layer)(x), half)


class Beyond(DeclarativeNode):
    """(y − x)²/2 + |y − 1|, with a `solve` that returns 1 whatever x is."""

    input_dims = (0,)

    def objective(self, x, y):
        return (y - x).square() / 2 + (y - 1).abs()

    def solve(self, x):
        return torch.ones_like(x)


def test_a_kink_is_no_excuse_for_a_wrong_point():
    x = torch.tensor([1.5, 10.0, 50.0, -1000.0], dtype=torch.float64, requires_grad=True)
    layer = DeclarativeLayer(Beyond(), policy="mask")
    layer(x).sum().backward()
    assert layer.certificate.verdicts() == ["trusted", "invalid", "invalid", "invalid"]
    assert layer.certificate.solved.tolist() == [True, False, False, False]
    assert "test_kinks.py" in " ".join(layer.certificate.causes())
    assert torch.allclose(x.grad, torch.zeros(4, dtype=torch.float64), atol=64 * eps(torch.float64))


@pytest.mark.parametrize("policy", ddnkit.certificate.POLICIES)
def test_where_a_kink_begins_to_bind_there_is_no_derivative(policy):
    layer = DeclarativeLayer(SoftThreshold(), policy=policy)
    x = torch.tensor([[1.0, 3.0], [0.5, 3.0]], dtype=torch.float64, requires_grad=True)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        y = layer(x)
        assert layer.certificate.solved.all()
        if policy == "raise":
            with pytest.raises(UntrustedGradientError, match=r"abs.*test_kinks\.py"):
                y.sum().backward()
            return
        y.sum().backward()
    assert layer.certificate.verdicts() == ["invalid", "trusted"]
    assert len(heard) == (policy == "warn")
    if policy == "nan":
        assert x.grad[0].isnan().all()
    if policy == "mask":
        assert not x.grad[0].any()
    assert torch.allclose(x.grad[1], torch.tensor([0.0, 1.0], dtype=torch.float64))


def test_a_concave_kink_holds_no_minimum():
    node = ByFormula(lambda y: -y.abs().sum(), lambda x: x - x)
    layer = DeclarativeLayer(node, policy="mask")
    layer(torch.tensor([0.0, 0.5], dtype=torch.float64))
    assert layer.certificate.verdicts() == ["invalid"]


@pytest.mark.parametrize("distance", [1e-3, 1e-6, 1e-9])
def test_beside_a_kink_the_solution_is_smooth(distance):
    x = torch.tensor([1 + distance, -1 - distance, 0.2], dtype=torch.float64, requires_grad=True)
    layer = DeclarativeLayer(SoftThreshold(), policy="raise")
    layer(x).sum().backward()
    assert torch.allclose(x.grad, torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))


JUMPS = {
    "median": lambda y: y.sort().values.median(),
    "quantile": lambda y: torch.quantile(y, 0.5),
    "sort": lambda y: (y.sort().values * torch.tensor([1.0, 2.0, 3.0], dtype=y.dtype)).sum(),
    "topk": lambda y: y.topk(2).values.sum(),
    "a branch": lambda y: (y if bool(y[0] > y[1]) else 2 * y).sum(),
    "where": lambda y: torch.where(y > y.flip(0), y, 2 * y).sum(),
}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", JUMPS)
def test_ties_without_a_rule_are_told(name):
    node = ByFormula(JUMPS[name], lambda x: torch.ones_like(x))
    layer = DeclarativeLayer(node, policy="mask")
    layer(torch.tensor([[1.0, 1.1, 1.2], [0.3, 0.4, 0.5]], dtype=torch.float64))
    assert layer.certificate.verdicts() == ["invalid", "invalid"]
    assert layer.certificate.kink_margin.tolist() == [0, 0]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([torch.float64, torch.float32]))
def test_a_network_with_kinks_elsewhere_raises_no_alarm(seed, dtype):
    made = torch.Generator().manual_seed(seed)
    W = torch.randn(30, 4, generator=made, dtype=dtype) / 10

    class Energy(DeclarativeNode):
        input_dims = (1,)

        def objective(self, x, y):
            return (y - x).square().sum() + torch.relu(W @ y + 0.05).square().sum()

        def initial_point(self, x):
            return x

    layer = DeclarativeLayer(Energy())
    x = torch.randn(8, 4, generator=made, dtype=dtype, requires_grad=True)
    layer(x).sum().backward()
    assert layer.certificate.verdicts() == ["trusted"] * 8


def off_by_rounding(x, y):
    """0 but for the rounding of 0.3 in x's type."""
    tenth = torch.full_like(x, 0.1)
    return y + (tenth + 2 * tenth - 3 * tenth) + (0.1 + 0.2 - 0.3)


@pytest.mark.parametrize("certify", ["fast", "full"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("held", [1, 3], ids=["one entry", "all of y"])
@pytest.mark.parametrize("left", [0.0, 1e-20])
@pytest.mark.covering(2)
def test_an_argument_that_is_off_by_rounding_where_y_is_zero(certify, dtype, held, left):
    """y is what a solver or rounding has left of 0, which moves by no part of itself."""

    class Held(DeclarativeNode):
        input_dims = (1,)

        def objective(self, x, y):
            return (y - x).square().sum() / 2 + off_by_rounding(x, y)[:held].abs().sum()

        def solve(self, x):
            return torch.cat([torch.full_like(x[:held], left), x[held:]])

    x = torch.tensor([[0.3, 0.2, 0.1], [-0.4, 0.5, 0.9]], dtype=dtype, requires_grad=True)
    layer = DeclarativeLayer(Held(), policy="raise", certify=certify)
    (found,) = torch.autograd.grad(layer(x).sum(), x)
    expected = torch.tensor([[0.0] * held + [1.0] * (3 - held)] * 2, dtype=dtype)
    torch.testing.assert_close(found, expected)
    assert layer.certificate.verdicts() == ["trusted"] * 2


def test_a_y_of_zero_that_is_no_solution_is_still_told():
    x = torch.tensor([1.3, 1.2, -1.1], dtype=torch.float64)
    node = ByFormula(lambda y: y.abs().sum(), lambda x: torch.full_like(x, 1e-20))
    with pytest.raises(UntrustedGradientError):
        DeclarativeLayer(node, policy="raise")(x)


def branch(y):
    return sum(v if bool(v > 0) else -v for v in y)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("term", [branch, lambda y: torch.where(y > 0, y, -y).sum()])
def test_beside_a_kink_without_a_rule_a_solution_is_smooth(term, dtype):
    """Near to it beside an offset of the data, and stationary on that side; or there and not stationary."""
    far = 1e-3 / torch.finfo(dtype).eps ** 0.5
    kink = torch.full((3,), far, dtype=dtype)

    class Beside(DeclarativeNode):
        input_dims = (1,)
        at = 0.25

        def objective(self, x, y):
            return (y - x).square().sum() / 2 + term(y - kink)

        def solve(self, x):
            return kink + self.at

    x = (kink + 1.25).requires_grad_()
    layer = DeclarativeLayer(Beside(), policy="raise")
    (found,) = torch.autograd.grad(layer(x).sum(), x)
    torch.testing.assert_close(found, torch.ones_like(x))
    # Inside of the dead zone, an unknown at some distance from 0 is no solution.
    node = ByFormula(term, lambda x: torch.full_like(x, 1e-9))
    layer = DeclarativeLayer(node, policy="mask")
    layer(torch.tensor([0.3, 0.2, 0.1], dtype=dtype))
    assert layer.certificate.verdicts() == ["invalid"]


class Level(DeclarativeNode):
    """min ½‖y − x‖² + p max y, whose two largest entries tie; y may be off by a number."""

    input_dims = (1,)

    def __init__(self, p, off=0.0):
        self.p, self.off = p, off

    def objective(self, x, y):
        return (y - x).square().sum() / 2 + self.p * y.max()

    def solve(self, x):
        y = x - self.off
        y[:2] -= self.p / 2
        return torch.cat([y[:2].mean().expand(2), y[2:]])


@pytest.mark.parametrize(
    ("form", "certify"), [("auto", "fast"), ("krylov", "fast"), ("embedded_field", "full")]
)
@pytest.mark.parametrize("places", [6, 10])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.covering(2)
def test_a_tie_beside_an_offset_of_the_data(form, certify, places, dtype):
    """The kink changes ∇f by a small part of the terms that meet there, and decides dy/dx all the same."""
    places = places if dtype is torch.float64 else places / 2
    x = torch.tensor([2.0, 2.0, -9.0], dtype=dtype) + 10**places
    x.requires_grad_()
    layer = DeclarativeLayer(Level(2.75), form, policy="raise", certify=certify)
    (found,) = torch.autograd.grad(layer(x)[0], x)
    torch.testing.assert_close(found, torch.tensor([0.5, 0.5, 0.0], dtype=dtype))


@pytest.mark.parametrize(
    ("form", "certify"), [("auto", "fast"), ("krylov", "fast"), ("embedded_field", "full")]
)
@pytest.mark.parametrize("off", [0.05, 0.7])
@pytest.mark.covering
def test_what_ties_beside_an_offset_alone_is_no_tie(form, certify, off):
    """The third entry is 0.1 below the other two, which is nothing beside what they have in common. Where y
    is off by as much, its slope may be as if it were one of them: right or told."""
    for third in (0.5, 0.3):
        x = torch.tensor([2.0, 2.0, third], dtype=torch.float64) + 1e6
        x.requires_grad_()
        layer = DeclarativeLayer(Level(2.8, off), form, policy="nan", certify=certify)
        (found,) = torch.autograd.grad(layer(x)[0], x)
        right = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
        told = layer.certificate.verdicts() != ["trusted"]
        assert told or (found - right).norm() < eps(found) ** 0.5


class Pulled(DeclarativeNode):
    """min ½‖y − x‖² + t ‖y − c‖₁, with an offset c that is large beside t."""

    input_dims = (1,)

    def __init__(self, t, c, power=1):
        self.t, self.c, self.power = t, c, power

    def objective(self, x, y):
        return (y - x).square().sum() / 2 + self.t * ((y - self.c).abs() ** self.power).sum()

    def solve(self, x):
        if self.power == 1:
            return self.c + torch.nn.functional.softshrink(x - self.c, self.t)
        return self.c + (x - self.c) / (1 + 2 * self.t)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("roundings", [4, 8, 64])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.covering(2)
def test_a_kink_that_is_few_roundings_of_an_offset_is_one(dtype, roundings, batch):
    """x − c is exact there, so that a y at c is in the dead zone whatever the terms are rounded to."""
    c = 1024.0
    t = roundings * c * torch.finfo(dtype).eps
    x = torch.tensor([c, c + t / 2, c - t / 4, c + 2.0], dtype=dtype).repeat(batch, 1)
    x.requires_grad_()
    for certify in ("fast", "full"):
        layer = DeclarativeLayer(Pulled(t, c), policy="raise", certify=certify)
        (found,) = torch.autograd.grad(layer(x).sum(), x)
        right = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=dtype)
        torch.testing.assert_close(found, right.expand_as(found))


SQUARED = {
    "abs": (lambda a: a.abs().square().sum() / 2, 0.5),
    "both sides": (lambda a: (a.relu() ** 2 + (-a).relu() ** 2).sum() / 2, 0.5),
    "product": (lambda a: (a.abs() * torch.maximum(a, -a)).sum() / 2, 0.5),
    "one side": (lambda a: a.relu().square().sum() / 2, None),
    "beside a kink": (lambda a: a[:1].abs().sum() / 4 + a[1:].relu().square().sum() / 2, None),
    "no weight": (lambda a: a.square().sum() / 2 + 0 * a.abs().sum(), 0.5),
    "cube": (lambda a: a.square().sum() / 2 + a.abs().pow(3).sum(), 0.5),
}


@pytest.mark.parametrize("c", [0.0, 1024.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", SQUARED)
@pytest.mark.covering
def test_a_kink_of_the_slope_alone_is_right_or_told(kind, dtype, c):
    """|a|² has a second derivative at a = 0, where torch says 0; relu(a)² has none."""
    term, slope = SQUARED[kind]

    class Squared(DeclarativeNode):
        input_dims = (1,)

        def objective(self, x, y):
            return (y - x).square().sum() / 2 + term(y - c)

        def solve(self, x):
            return torch.full_like(x, c)

    x = torch.full((2, 3), c, dtype=dtype, requires_grad=True)
    for certify in ("fast", "full"):
        layer = DeclarativeLayer(Squared(), policy="mask", certify=certify)
        (found,) = torch.autograd.grad(layer(x).sum(), x)
        if kind in ("no weight", "cube") and certify == "fast":
            assert layer.certificate.verdicts() == ["trusted"] * 2
        if layer.certificate.verdicts() == ["trusted"] * 2:
            torch.testing.assert_close(found, torch.full_like(x, slope))
        else:
            assert "trusted" not in layer.certificate.verdicts()


@pytest.mark.parametrize("form", ["auto", "krylov", "embedded_field"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.covering
def test_a_bound_is_of_the_problem_in_which_ties_are_held(form, dtype):
    node = ByFormula(
        lambda y: torch.stack([y, -y]).amax(dim=0).sum(),
        lambda x: torch.nn.functional.softshrink(x, 1.0),
    )
    x = torch.tensor([[0.3, -0.2, 2.1], [1.3, 0.1, -0.9]], dtype=dtype, requires_grad=True)
    layer = DeclarativeLayer(node, form, policy="raise", certify="full")
    (found,) = torch.autograd.grad(layer(x).sum(), x)
    torch.testing.assert_close(found, (x.abs() > 1).to(dtype))
    assert layer.certificate.verdicts() == ["trusted"] * 2


def test_kinks_go_through_nested_transforms():
    class Shrunk(DeclarativeNode):
        """Another item at a kink than beside it."""

        input_dims = (1,)

        def objective(self, x, y):
            return 0.5 * (y - x).square().sum() + 0.5 * y.abs().sum()

        def solve(self, x):
            return x.sign() * (x.abs() - 0.5).clamp(min=0)

    layer = DeclarativeLayer(Shrunk(), policy="raise")
    x = torch.tensor([[0.2, 1.0, -2.0], [3.0, 0.1, 0.3]], dtype=torch.float64)
    expected = torch.diag_embed((x.abs() > 0.5).double())
    for derivative in (torch.func.jacrev, torch.func.jacfwd):
        found = torch.func.vmap(derivative(layer))(x)
        assert (found - expected).abs().max() < 8 * torch.finfo(torch.float64).eps
