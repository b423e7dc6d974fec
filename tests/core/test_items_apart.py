"""NaN or infinity in one item of a batch stays there: every node, input, solver, form and policy."""

import copy
import warnings

import pytest
import torch
from ddnkit_etf import NearestETF
from ddnkit_manifolds import Procrustes, Sphere

import ddnkit
from ddnkit import (
    DdnkitWarning,
    DeclarativeLayer,
    DeclarativeNode,
    Status,
    UntrustedGradientError,
    testing,
)
from ddnkit.testing.sweeping.forms import reason_against

BAD = 1  # of items 0, 1, 2
NEVER = {"nan": torch.nan, "warn": torch.nan, "mask": 0.0}


def solved_by(node, solver):
    """A copy of the node that leaves solving to ``solver``."""
    kind = type(f"{type(node).__name__}By", (type(node),), {"solve": DeclarativeNode.solve})
    other = copy.copy(node)
    other.__class__ = kind
    other.solver = solver
    return other


def nearest(reduced, method, solver=None):
    node = NearestETF(0.1, reduced=reduced, solver=solver or Procrustes(method))
    if method == "products":
        node.sample_inputs = lambda: tuple(x.float() for x in NearestETF().sample_inputs())
    return node


def draw(node):
    """A batch of three, its tensors with one batch dimension."""
    torch.manual_seed(3)
    items = [node.sample_inputs() for _ in range(3)]
    return [torch.stack(xs) if torch.is_tensor(xs[0]) else xs[0] for xs in zip(*items, strict=True)]


def parts(y):
    if torch.is_tensor(y):
        return [y]
    return list(y.values()) if isinstance(y, dict) else list(y)


def run(layer, xs, wrt):
    """y joined, (3, m), and the gradient for each input, with the certificate of the solve."""
    xs = [x.clone().requires_grad_(i in wrt) if torch.is_tensor(x) else x for i, x in enumerate(xs)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DdnkitWarning)
        found = layer(*xs)
        certificate = layer.certificate
        y = torch.cat([part.reshape(3, -1) for part in parts(found)], dim=1)
        v = torch.cos(torch.arange(y.numel(), dtype=y.dtype)).reshape(y.shape)
        torch.autograd.backward(y, v)
    return y.detach(), [xs[i].grad for i in wrt], certificate


def assert_kept_apart(node, form="auto", policies=("nan", "mask", "warn", "raise"), bad=torch.nan):
    xs = draw(node)
    floating = [i for i, x in enumerate(xs) if torch.is_tensor(x) and x.is_floating_point()]
    others = torch.arange(3) != BAD
    wanted = {}
    for k in floating:
        poisoned = [x.clone() if torch.is_tensor(x) else x for x in xs]
        poisoned[k][BAD].view(-1)[0] = bad
        for policy in policies:
            layer = DeclarativeLayer(node, form, batch_dims=1, policy=policy)
            if policy == "raise":
                with pytest.raises(UntrustedGradientError) as error:
                    layer(*poisoned)
                assert f"item {BAD}" in str(error.value)
                assert f"input {k}" in str(error.value)
                continue
            if policy not in wanted:
                wanted[policy] = run(layer, xs, floating)
            y0, g0, c0 = wanted[policy]
            y, gradients, certificate = run(layer, poisoned, floating)
            # A copy of a sound item stands in: shapes and kernels are the same, and so is each bit.
            assert torch.equal(y[others], y0[others])
            assert torch.equal(certificate.status[others], c0.status[others])
            assert certificate.status[BAD] == Status.NON_FINITE
            assert f"input {k}" in certificate.causes()[0]
            never = torch.tensor(NEVER[policy], dtype=y.dtype)
            assert torch.equal(y[BAD].isnan(), never.isnan().expand_as(y[BAD]))
            for found, expected in zip(gradients, g0, strict=True):
                assert torch.equal(found[others], expected[others])
                assert torch.equal(found[BAD].isnan(), never.isnan().expand_as(found[BAD]))
                assert policy != "mask" or not found[BAD].any()


BANK = [problem for problem in testing.bank() if problem.unique]
every_problem = pytest.mark.parametrize("node", BANK, ids=lambda node: node.label)
#: One for each way to be solved and differentiated; the rest takes longer.
QUICK = (testing.SmallestEigenvector, testing.TwoPartQP, testing.Softmax, testing.AffineWithAdjoint)
long = pytest.mark.long
MINIMISERS = ["newton", "lbfgs", "slsqp", "trust_constr", "root"]
ON_MANIFOLDS = [
    "trust_regions", "conjugate_gradient", "steepest_descent", "riemannian_sgd", "riemannian_adam",
    "riemannian_line_search", "nelder_mead", "particle_swarm",
]  # fmt: skip
FORMS = ["dense", "embedded_field", "krylov"]


@pytest.mark.parametrize("kind", QUICK)
def test_of_known_problems(kind):
    assert_kept_apart(kind(), policies=("nan", "raise"))


@pytest.mark.parametrize("policy", ["nan", "warn"])
def test_a_failed_item_has_no_gradient_for_what_only_inequality_constraints_use(policy):
    assert_kept_apart(testing.VertexOfLinearProgram(), policies=(policy,))


@long
@every_problem
def test_of_every_known_problem_under_every_policy(node):
    assert_kept_apart(node)


@long
@every_problem
def test_infinity_in_every_known_problem(node):
    # tanh takes infinity, and its solution is one; and an infinite bound or radius is none.
    if not isinstance(node, testing.Equilibrium) and not node.has_inequalities:
        assert_kept_apart(node, bad=-torch.inf)


@pytest.mark.parametrize("method", ["factors", "products"])
@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("bad", [torch.nan, pytest.param(torch.inf, marks=long)])
def test_of_the_nearest_etf(reduced, method, bad):
    assert_kept_apart(nearest(reduced, method), bad=bad)


@pytest.mark.parametrize(
    "solver", [name if name == "newton" else pytest.param(name, marks=long) for name in MINIMISERS]
)
def test_of_every_minimiser(solver):
    node = solved_by(testing.EqualityQP(), solver)
    assert_kept_apart(node, policies=("nan", "raise"))


@pytest.mark.parametrize(
    "solver",
    [
        name
        if name in ("trust_regions", "riemannian_line_search")
        else pytest.param(name, marks=long)
        for name in ON_MANIFOLDS
    ],
)
def test_of_every_solver_on_a_manifold(solver):
    policy = "mask" if solver in ("nelder_mead", "particle_swarm") else "nan"
    assert_kept_apart(solved_by(QuadraticOnCircle(), solver), policies=(policy, "raise"))


@long
def test_of_picard():
    assert_kept_apart(solved_by(testing.Equilibrium(), "picard"), policies=("nan", "mask"))


@pytest.mark.parametrize("form", [*FORMS, "unrolled"])
def test_of_every_form(form):
    for node in (testing.EqualityQP(), testing.SmallestEigenvector()):
        if reason_against(node, ddnkit.registry.get("backwards", form)()):
            continue
        assert_kept_apart(node, form, policies=("mask", "warn"))


@long
@pytest.mark.parametrize("form", FORMS)
def test_of_every_form_of_the_nearest_etf(form):
    assert_kept_apart(nearest(False, "factors"), form, policies=("nan", "mask", "warn"))


@long
@pytest.mark.parametrize("form", ["closed_form", *FORMS, "fixed_point", "unrolled"])
@every_problem
def test_of_every_problem_by_every_form(node, form):
    chosen = ddnkit.registry.get("backwards", form)()
    if reason_against(node, chosen):
        pytest.skip("the form is not for this problem")
    # An item without active rows leaves the others' multipliers to singular values, and to other roundings.
    rounded = isinstance(node, testing.VertexOfLinearProgram) and form == "embedded_field"
    policies = ("mask",) if rounded else ("nan", "mask", "warn", "raise")
    assert_kept_apart(node, chosen, policies=policies)
    # tanh takes infinity, and its solution is one; and an infinite bound or radius is none.
    if not isinstance(node, testing.Equilibrium) and not node.has_inequalities:
        assert_kept_apart(node, chosen, bad=torch.inf, policies=("nan",))


@long
@pytest.mark.parametrize("solver", ["trust_regions", "riemannian_sgd", "newton", "lbfgs"])
@pytest.mark.parametrize("reduced", [False, True])
def test_of_the_nearest_etf_by_other_solvers(reduced, solver):
    assert_kept_apart(nearest(reduced, "factors", solver), policies=("nan", "mask", "warn"))


# -- what else an item depends on ------------------------------------------------------------------


class QuadraticOnCircle(DeclarativeNode):
    """The point of the circle nearest to x, by whatever solver."""

    manifold = Sphere()
    input_dims = (1,)

    def objective(self, x, y):
        return (y - x).square().sum()

    def initial_point(self, x):
        return torch.tensor([0.6, 0.8], dtype=x.dtype)

    def sample_inputs(self):
        return (torch.randn(2, dtype=torch.float64) + torch.tensor([2.0, 0.0]),)


def test_a_warm_start():
    node = testing.EqualityQP()
    node = solved_by(node, "newton")
    xs = draw(node)
    layer = DeclarativeLayer(node, batch_dims=1, policy="nan")
    y = layer(*xs)
    start = y.detach().clone()
    start[BAD, 0] = torch.nan
    again = layer(*xs, start=start)
    assert again[BAD].isnan().all()
    assert layer.certificate.status[BAD] == Status.NON_FINITE
    assert "start" in layer.certificate.causes()[0]
    others = torch.arange(3) != BAD
    assert again[others].isfinite().all()


class WithWeights(DeclarativeNode):
    """½‖y − Wx‖², W an attribute."""

    input_dims = (1,)

    def __init__(self, W):
        self.W = W

    def objective(self, x, y):
        return (y - self.W @ x).square().sum() / 2

    def solve(self, x):
        return torch.linalg.solve(torch.linalg.eigh(torch.eye(2, dtype=x.dtype)).eigenvectors,
                                  self.W @ x)  # fmt: skip


def test_a_captured_tensor_of_one_item_of_a_vmap():
    W = torch.randn(3, 2, 2, dtype=torch.float64)
    W[BAD, 0, 0] = torch.nan
    x = torch.randn(2, dtype=torch.float64)

    def solution(weights):
        return DeclarativeLayer(WithWeights(weights), policy="nan")(x)

    y = torch.func.vmap(solution)(W)
    assert y[BAD].isnan().all()
    assert y[[0, 2]].isfinite().all()


def test_a_captured_tensor_that_all_items_share():
    W = torch.eye(2, dtype=torch.float64)
    W[0, 0] = torch.nan
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    layer = DeclarativeLayer(WithWeights(W.requires_grad_()), policy="nan")
    y = layer(x)
    assert y.isnan().all()
    assert "W" in layer.certificate.causes()[0]
    y.sum().backward()
    assert x.grad.isnan().all()
    assert W.grad.isnan().all()


@pytest.mark.parametrize("policy", ["nan", "mask", "warn"])
def test_where_no_item_is_sound(policy):
    for node in (testing.SmallestEigenvector(), solved_by(testing.EqualityQP(), "slsqp"),
                 nearest(True, "factors")):  # fmt: skip
        xs = [x.clone() for x in draw(node)]
        xs[0][:] = torch.nan
        layer = DeclarativeLayer(node, batch_dims=1, policy=policy)
        y, gradients, certificate = run(layer, xs, [0])
        assert (certificate.status == Status.NON_FINITE).all()
        assert y.isnan().all() if policy != "mask" else not y.any()
        assert gradients[0].isnan().all() if policy != "mask" else not gradients[0].any()


class MissingEntries(DeclarativeNode):
    """The mean of the entries that are there: NaN is a missing one."""

    input_dims = (1,)

    def objective(self, x, y):
        there = ~x.isnan()
        return (torch.where(there, x, 0.0) - y).square().mul(there).sum() / 2

    def solve(self, x):
        return x.nanmean()


def test_a_node_that_reads_nan_as_a_missing_entry_still_does():
    x = torch.randn(3, 4, dtype=torch.float64)
    x[BAD, 2] = torch.nan
    layer = DeclarativeLayer(MissingEntries(), policy="raise")
    torch.testing.assert_close(layer(x), x.nanmean(dim=1))
    torch.testing.assert_close(layer(x[BAD]), x[BAD].nanmean())
    x[:, 0] = torch.nan
    torch.testing.assert_close(layer(x.requires_grad_()), x.nanmean(dim=1))


def test_forward_mode_and_higher_derivatives_of_the_others():
    node = testing.SmallestEigenvector()
    (x,) = draw(node)
    bad = x.clone()
    bad[BAD] = torch.nan
    t = torch.cos(torch.arange(x.numel(), dtype=x.dtype)).reshape(x.shape)
    others = torch.arange(3) != BAD
    layer = DeclarativeLayer(node, batch_dims=1, policy="nan")
    found, wanted = (torch.func.jvp(layer, (given,), (t,))[1] for given in (bad, x))
    assert torch.equal(found[others], wanted[others])
    assert found[BAD].isnan().all()

    def slope(given):
        return torch.func.grad(lambda z: layer(z)[others].pow(3).sum())(given)

    found, wanted = (torch.func.jvp(slope, (given,), (t,))[1] for given in (bad, x))
    assert torch.equal(found[others], wanted[others])


@pytest.mark.parametrize(
    "node", [testing.SmallestEigenvector(), testing.EqualityQP(), nearest(False, "factors")]
)
def test_a_vmap_over_items_of_which_one_is_not_finite(node):
    xs = draw(node)
    bad = [x.clone() for x in xs]
    bad[0][BAD] = torch.nan
    others = torch.arange(3) != BAD
    layer = DeclarativeLayer(node, policy="nan")
    slope = torch.func.vmap(torch.func.grad(lambda *given: layer(*given).pow(3).sum()))
    found, wanted = slope(*bad), slope(*xs)
    torch.testing.assert_close(found[others], wanted[others])
    assert found[BAD].isnan().all()
