"""Backward forms: their choices, their agreement at size, and what each refuses."""

import pytest
import torch
from bounds import condition, factorised, system_condition
from ddnkit_manifolds import Sphere

import ddnkit
import ddnkit.backward.krylov
from ddnkit import (
    BackwardForm,
    DdnkitWarning,
    DeclarativeLayer,
    DeclarativeNode,
    InputError,
    SystemSolution,
    SystemSolve,
    testing,
)
from ddnkit.backward import Dense, Krylov


class Quadratic(DeclarativeNode):
    """min ½ yᵀ diag(d) y − xᵀy on the unit sphere, as a constraint or as a manifold."""

    input_dims = (1,)

    def objective(self, x, y):
        d = torch.linspace(1, 50, len(y), dtype=y.dtype, device=y.device)
        return (d * y**2).sum() / 2 - x @ y

    def solve(self, x):
        d = torch.linspace(1, 50, len(x), dtype=x.dtype, device=x.device)
        # (D + s) y = x with ‖y‖ = 1: one decreasing function of s > −1
        low, high = -torch.ones_like(x[0]), x.norm() + 50
        for _ in range(200):
            middle = (low + high) / 2
            inside = (x / (d + middle)).norm() > 1
            low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
        y = x / (d + low)
        return y / y.norm()

    def equality_constraints(self, x, y):
        return (y**2).sum() - 1


class OnManifold(Quadratic):
    manifold = Sphere()
    equality_constraints = DeclarativeNode.equality_constraints


def gradient(node, form, x, v):
    x = x.clone().requires_grad_()
    layer = DeclarativeLayer(node, form, policy="raise")
    return torch.autograd.grad(layer(x), x, v)[0], layer


def draw(*shape):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize("node", [Quadratic(), OnManifold()])
def test_forms_agree_at_eight_times_two_hundred(node):
    x, v = draw(8, 200)
    x = 30 * x
    reference, _ = gradient(node, "dense", x, v)
    # A residual of 1e-12, which krylov promises, or of a solve of order 200, at the condition of each.
    kappa = max(system_condition(node, (item,), node.solve(item)) for item in x)
    close = kappa * 1e-12 + factorised(x, 200, condition=kappa)
    for form in ("krylov", "embedded_field", Dense(schur=True), "auto"):
        found, layer = gradient(node, form, x, v)
        assert (found - reference).norm() < close * reference.norm()
        assert (layer.certificate.adjoint_residual < close).all()
    assert layer.certificate.form == "krylov"


def test_auto_says_what_it_took_by_size_and_structure():
    for node, m, expected in (
        (Quadratic(), 5, "dense"),
        (OnManifold(), 5, "embedded_field"),
        (Quadratic(), 100, "krylov"),
        (OnManifold(), 100, "krylov"),
    ):
        layer = DeclarativeLayer(node)
        layer(30 * draw(m)[0])
        assert layer.certificate.form == expected
        assert f"backward=auto ({expected})" in repr(layer)


@pytest.mark.parametrize("hard", [(True,), (False, True)])
def test_a_dense_rescue_is_told(hard):
    class Mean(DeclarativeNode):
        """Only the sum of y is determined where x begins with a zero."""

        input_dims = (1,)

        def objective(self, x, y):
            coupled = (y.sum() - x.sum()) ** 2
            return coupled + (x[0] != 0) * ((y - x) ** 2 * (2 + torch.cos(y.roll(1)))).sum()

        def solve(self, x):
            return x.clone()

    x, v = draw(len(hard), 100)
    x[:, 0] = torch.tensor([0.0 if h else 1.0 for h in hard])
    x.requires_grad_()
    layer = DeclarativeLayer(Mean(), policy="nan")
    g = torch.autograd.grad(layer(x), x, v)[0]
    assert g.isfinite().all(dim=1).tolist() == [not h for h in hard]
    assert layer.certificate.form == "krylov, then dense"
    assert "krylov, then dense" in repr(layer)
    with pytest.raises(ddnkit.DdnkitError, match="krylov, then dense"):
        gradient(Mean(), "auto", x.detach(), v)
    x = x.detach()
    x[:, 0] = 1.0  # where the iteration does, nothing is factorised
    _, layer = gradient(Mean(), "auto", x, v)
    assert layer.certificate.form == "krylov"


def test_a_preconditioner_of_the_form_or_of_the_node_saves_products(monkeypatch):
    # Products that are replayed do not pass the objective, which counts them here.
    monkeypatch.setattr(ddnkit.backward.krylov, "Replayed", lambda product: product)
    d = torch.linspace(1, 50, 300, dtype=torch.float64)
    H = torch.diag(d)
    H[0, -1] = H[-1, 0] = 0.5  # one that is diagonal is solved for without an iteration
    counted = []

    class Counting(Quadratic):
        equality_constraints = DeclarativeNode.equality_constraints

        def objective(self, x, y):
            class Count(torch.autograd.Function):
                generate_vmap_rule = True

                @staticmethod
                def forward(value):
                    return value.clone()

                @staticmethod
                def setup_context(ctx, inputs, output):
                    pass

                @staticmethod
                def backward(ctx, g):
                    counted.append(1)
                    return g

            y = Count.apply(y)
            return (d * y**2).sum() / 2 + y[0] * y[-1] / 2 - x @ y

        def solve(self, x):
            return torch.linalg.solve(H, x)

    class Preconditioned(Counting):
        def precondition(self, x, y, v):
            return v / d

    x, v = draw(300)

    def products(node, form):
        counted.clear()
        found, _ = gradient(node, form, x, v)
        # 1e-12 of the residual, times the condition.
        right = torch.linalg.solve(H, v)
        assert (found - right).norm() < 1e-12 * condition(H) * right.norm()
        return len(counted)

    plain = products(Counting(), "krylov")
    assert products(Preconditioned(), "krylov") < plain / 2
    assert (
        products(Counting(), Krylov(preconditioner=lambda problem, y: lambda r: r / d)) < plain / 2
    )


def test_an_iteration_that_is_cut_short_is_never_silent():
    x, v = draw(200)
    layer = DeclarativeLayer(Quadratic(), Krylov(max_iterations=3))
    x = (30 * x).requires_grad_()
    y = layer(x)
    with pytest.warns(DdnkitWarning, match="residual"):
        y.backward(v)
    assert layer.certificate.verdicts() != ["trusted"]


class TestSingular:
    """min −xᵀy/‖y‖: the Hessian is singular along y; what is done there is declared."""

    x = torch.tensor([1.0, -2.0, 0.5, 1.5], dtype=torch.float64)

    def jacobian(self, form):
        x = self.x.clone().requires_grad_()
        y = DeclarativeLayer(testing.CosineDistance(), form, policy="warn")(x)
        with pytest.warns(DdnkitWarning, match="adjoint"):
            rows = [torch.autograd.grad(entry, x, retain_graph=True)[0] for entry in y]
        return torch.stack(rows)

    def test_minimum_norm_is_the_pseudo_inverse_and_reported(self):
        y = self.x / self.x.norm()
        expected = torch.eye(4, dtype=torch.float64) - torch.outer(y, y)
        for form in ("dense", "embedded_field"):
            torch.testing.assert_close(self.jacobian(form), expected)

    def test_damped_is_near_it(self):
        y = self.x / self.x.norm()
        expected = torch.eye(4, dtype=torch.float64) - torch.outer(y, y)
        damped = self.jacobian(Dense(singular="damped"))
        # What damping takes, the square of 1e-6 beside curvatures of order one, and what is left in
        # the direction that has none.
        torch.testing.assert_close(damped, expected, rtol=1e-5, atol=1e-5)

    def test_error_gives_nan_and_the_policy_acts(self):
        x = self.x.clone().requires_grad_()
        layer = DeclarativeLayer(testing.CosineDistance(), Dense(singular="error"), policy="raise")
        with pytest.raises(ddnkit.UntrustedGradientError, match="NaN"):
            layer(x).sum().backward()

    def test_an_unknown_choice(self):
        with pytest.raises(InputError, match="'damped'"):
            Dense(singular="dampd")


def test_the_papers_schur_form_needs_a_regular_hessian_and_says_when_it_is_not():
    node = testing.SingularHessian()
    x = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    layer = DeclarativeLayer(node, Dense(schur=True), policy="raise")
    with pytest.raises(ddnkit.UntrustedGradientError, match="adjoint"):
        layer(x).sum().backward()
    DeclarativeLayer(node, "dense", policy="raise")(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.ones_like(x))


def test_unrolled_and_its_refusals():
    class Descent(DeclarativeNode):
        input_dims = (1,)

        def objective(self, x, y):
            return ((y - x) ** 2).sum() + (y**4).sum() / 10

        def solve(self, x):
            y = x
            for _ in range(200):
                y = y - 0.2 * (2 * (y - x) + 0.4 * y**3)
            return y

    class Detached(Descent):
        def solve(self, x):
            return super().solve(x.detach())

    x, v = draw(3)
    unrolled, layer = gradient(Descent(), "unrolled", x, v)
    implicit, _ = gradient(Descent(), "auto", x, v)
    torch.testing.assert_close(unrolled, implicit)
    assert layer.certificate.form == "unrolled"
    assert layer.certificate.verdicts() == ["trusted"]
    with pytest.raises(InputError):
        gradient(Detached(), "unrolled", x, v)
    with pytest.raises(InputError, match="`solve`"):
        DeclarativeLayer(testing.EqualityQP(), "unrolled")


def test_fixed_point_refusals():
    with pytest.raises(InputError, match="fixed_point"):
        DeclarativeLayer(Quadratic(), "fixed_point")

    class Wrong(ddnkit.FixedPointNode):
        input_dims = (1,)

        def fixed_point(self, x, y):
            return (x + y).sum()

        def initial_point(self, x):
            return x.clone()

    with pytest.raises(InputError, match=r"Wrong\.fixed_point .*\(3,\).*\(\)"):
        DeclarativeLayer(Wrong())(torch.randn(3))


def test_the_way_back_of_a_strangers_form_is_not_called_the_nodes():
    class Mine(Dense):
        name = "mine"
        has_adjoint = True

        def adjoint(self, problem, y, v, aux, wrt):
            return [2 * v for _ in wrt], None

    class Distance(DeclarativeNode):
        input_dims = (1,)

        def objective(self, x, y):
            return ((y - x) ** 2).sum()

        def solve(self, x):
            return x.clone()

    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    y = DeclarativeLayer(Distance(), Mine(), policy="raise")(x)
    with pytest.raises(ddnkit.DdnkitError, match="'mine'") as told:
        y.sum().backward()
    assert "node's own" not in str(told.value)


def test_a_strangers_form():
    class Mine(BackwardForm):
        name = "mine"

        def tangent_solve(self, problem, y, nu):
            return lambda r: (r, r.norm(dim=-1) * 0)

    class Distance(DeclarativeNode):
        input_dims = (1,)

        def objective(self, x, y):
            return ((y - x) ** 2).sum() / 2

        def solve(self, x):
            return x.clone()

    x, v = draw(3)
    found, layer = gradient(Distance(), Mine(), x, v)
    torch.testing.assert_close(found, v)
    assert layer.certificate.form == "mine"


class Given(BackwardForm):
    """A form whose methods return what it is given."""

    name = "given"

    def __init__(self, resolved=None, prepared=None):
        self.resolved, self.prepared = resolved, prepared

    def resolve(self, problem, size):
        return self if self.resolved is None else self.resolved

    def tangent_solve(self, problem, y, nu):
        return self.prepared


@pytest.mark.parametrize(
    ("form", "named"),
    [
        (Given(resolved="dense"), "resolve"),
        (Given(prepared=None), "tangent_solve"),
        (Given(prepared=lambda r: r), "residual"),
        (Given(prepared=lambda r: (r, r, r)), "residual"),
        (Given(prepared=lambda r: (r[..., :1], r.norm(dim=-1))), "z"),
        (Given(prepared=lambda r: (r, r)), "residual"),
        (Given(prepared=SystemSolve(lambda r: (r, r))), "SystemSolution"),
        (Given(prepared=SystemSolve(lambda r: SystemSolution(r, r, None))), "residual"),
    ],
)
def test_a_form_that_gives_something_else_is_told(form, named):
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    with pytest.raises(InputError, match=named):
        DeclarativeLayer(Quadratic(), backward=form)(x).sum().backward()
