"""The costly figures: curvature, condition, error bound, verdicts."""

import mpmath
import pytest
import torch
from bounds import factorised, rounding
from ddnkit_manifolds import Sphere

import ddnkit
from ddnkit import DdnkitWarning, DeclarativeLayer, DeclarativeNode, InputError, testing


class Stopped(DeclarativeNode):
    """Σ (yᵢ − xᵢ)⁴ + (yᵢ − wᵢ)² + ½ y₁y₂, solved exactly, then moved by `off` of its size."""

    input_dims = (1, 1)

    def __init__(self, off=0.0):
        self.off = off

    def objective(self, x, w, y):
        return ((y - x) ** 4 + (y - w) ** 2).sum() + y[0] * y[1] / 2

    def solve(self, x, w):
        y = w.clone()
        for _ in range(60):
            gradient = 4 * (y - x) ** 3 + 2 * (y - w)
            gradient[:2] += y[:2].flip(0) / 2
            hessian = torch.diag(12 * (y - x) ** 2 + 2)
            hessian[0, 1] = hessian[1, 0] = 0.5
            y = y - torch.linalg.solve(hessian, gradient)
        direction = torch.tensor([1.0, -1.0, 1.0, 1.0], dtype=y.dtype) / 2
        return y + self.off * y.norm() * direction


class OnSphere(testing.QuadraticOnSphere):
    """The same idea with a constraint: off along the sphere, and outside it."""

    def __init__(self, off=0.0):
        self.off = off

    def solve(self, x):
        y = super().solve(x)
        moved = y + self.off * y.roll(1)
        return moved / moved.norm() * (1 + self.off / 3)


def inputs(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, generator=generator, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize("off", [1e-3, 1e-4, 1e-2])
@pytest.mark.parametrize(("make", "count"), [(Stopped, 2), (OnSphere, 1)])
@pytest.mark.covering
def test_the_bound_holds_for_a_solver_that_stops_early(make, count, off):
    for seed in range(10):
        xs = [x.requires_grad_() for x in inputs(seed)[:count]]
        v = inputs(seed + 100)[0]
        inexact = DeclarativeLayer(make(off), policy="warn", certify="full")
        with pytest.warns(DdnkitWarning, match=rf"{make.__name__} \(dense\): 1 of 1 "):
            found = torch.cat(torch.autograd.grad(inexact(*xs), xs, v))
        exact = torch.cat(torch.autograd.grad(DeclarativeLayer(make())(*xs), xs, v))
        error = (found - exact).norm() / exact.norm()
        certificate = inexact.certificate
        assert certificate.verdicts() != ["trusted"]
        assert error <= certificate.error_bound
        assert certificate.causes()


def test_an_exact_solution_has_a_tiny_bound_and_is_trusted():
    layer = DeclarativeLayer(Stopped(), policy="raise", certify="full")
    layer(*inputs(0))
    # Of a solution to the last digit, the condition, below 100, of the three systems it solves.
    bound = layer.certificate.error_bound
    assert bound < rounding(bound, 3 * 4**2, condition=100)
    assert layer.certificate.verdicts() == ["trusted"]
    assert layer.certificate.causes() == []


@pytest.mark.parametrize("seed", range(6))
def test_a_probe_without_a_gradient_is_no_alarm(seed):
    """On the sphere a v along x has none; the probes must not be the numbers that inputs are drawn with."""
    for problem in (testing.QuadraticOnSphere(), testing.Procrustes()):
        layer = DeclarativeLayer(problem, policy="raise", certify="full")
        layer(*testing.sample(problem, seed))
        assert layer.certificate.verdicts() == ["trusted"]


def test_figures_have_no_history():
    layer = DeclarativeLayer(testing.TwoInputsOptionAndModule(), policy="raise", certify="full")
    layer(*testing.sample(layer.node, 0))
    figures = [v for v in vars(layer.certificate).values() if isinstance(v, torch.Tensor)]
    assert len(figures) >= 8
    assert not any(value.requires_grad for value in figures)


def test_curvature_and_condition_are_those_of_the_tangent_space():
    """On yᵀy = 1 with f = ½ yᵀDy at the eigenvector e₁ the curvatures are dᵢ − d₁."""

    class Rayleigh(DeclarativeNode):
        input_dims = (1,)

        def objective(self, d, y):
            return (d * y**2).sum() / 2

        def equality_constraints(self, d, y):
            return (y**2).sum() - 1

        def solve(self, d):
            y = torch.zeros_like(d)
            y[0] = 1
            return y

    d = torch.tensor([[1.0, 3.0, 5.0], [1.0, 1.5, 9.0]], dtype=torch.float64)
    layer = DeclarativeLayer(Rayleigh(), policy="raise", certify="full")
    layer(d)
    torch.testing.assert_close(layer.certificate.curvature, torch.tensor([0.5, 1 / 16]).double())
    torch.testing.assert_close(layer.certificate.condition, torch.tensor([2.0, 16.0]).double())
    layer.policy = "nan"
    layer(torch.tensor([[2.0, 1.0, 5.0], [1.0, 1.0, 9.0]], dtype=torch.float64))
    assert layer.certificate.curvature[0] < -0.3  # a saddle point
    curvature = layer.certificate.curvature[1].abs()
    assert curvature < rounding(curvature, 3 * 9)  # not unique: 0 beside 9, of order 3
    assert layer.certificate.verdicts() == ["invalid", "invalid"]
    assert any("not unique" in text for text in layer.certificate.causes())


def test_curvature_by_lanczos_for_many_unknowns():
    class Diagonal(DeclarativeNode):
        input_dims = (1,)

        def objective(self, d, y):
            return (d * y**2).sum() / 2

        def solve(self, d):
            return torch.zeros_like(d)

    d = torch.linspace(1, 4, 400, dtype=torch.float64)
    layer = DeclarativeLayer(Diagonal(), policy="raise", certify="full")
    layer(d)
    # A lowest value by Lanczos is an upper bound, to a hundredth for the steps it takes here.
    torch.testing.assert_close(
        layer.certificate.curvature, torch.tensor(0.25).double(), rtol=1e-2, atol=0
    )
    torch.testing.assert_close(
        layer.certificate.condition, torch.tensor(4.0).double(), rtol=1e-2, atol=0
    )


def test_problem_five_is_not_unique_before_any_backward_pass():
    layer = DeclarativeLayer(testing.CosineDistance(), policy="nan", certify="full")
    layer(torch.randn(4, dtype=torch.float64))
    assert layer.certificate.verdicts() == ["invalid"]
    assert any("not unique" in text for text in layer.certificate.causes())


def test_licq_margin():
    def margin(node, *xs):
        layer = DeclarativeLayer(node, policy="raise")
        layer(*xs)
        return float(layer.certificate.licq)

    x = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert margin(testing.SingularHessian(), x) == 1
    assert margin(testing.RepeatedConstraint(), x) < rounding(x, 8)
    assert margin(testing.Polynomial(), torch.tensor(1.0).double()) == 1


def test_points_determined_by_the_constraints_alone():
    class Fixed(DeclarativeNode):
        input_dims = (1,)

        def objective(self, x, y):
            return (y**2).sum()

        def equality_constraints(self, x, y):
            return y - x

        def solve(self, x):
            return x.clone()

    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    layer = DeclarativeLayer(Fixed(), policy="raise", certify="full")
    layer(x).sum().backward()
    assert (x.grad - 1).abs().max() < factorised(x, 3)
    assert layer.certificate.condition == 1


def test_bad_items_do_not_spoil_the_figures_of_others():
    class Sometimes(Stopped):
        def solve(self, x, w):
            y = super().solve(x, w)
            return y * torch.nan if bool(x[0] > 5) else y

    x, w = (torch.stack(pair) for pair in zip(*(inputs(k) for k in range(3)), strict=True))
    alone = DeclarativeLayer(Sometimes(), policy="raise", certify="full")
    alone(x[0], w[0])
    x[1, 0] = 10.0
    layer = DeclarativeLayer(Sometimes(), policy="nan", certify="full")
    layer(x, w)
    assert layer.certificate.verdicts() == ["trusted", "invalid", "trusted"]
    torch.testing.assert_close(layer.certificate.condition[0], alone.certificate.condition)


def test_certify_takes_two_values():
    with pytest.raises(InputError, match=r"'fulll'.*'fast'.*'full'"):
        DeclarativeLayer(Stopped(), certify="fulll")


class TestMask:
    """A failed item gets a zero gradient and leaves shared parameters alone."""

    class Shared(DeclarativeNode):
        input_dims = (1,)

        def __init__(self):
            self.scale = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

        def objective(self, x, y):
            # NaN outside of its domain, as the solutions of the bad items are
            return ((y - self.scale * x) ** 2).sum() + 0 * (10 - y).log().sum()

        def solve(self, x):
            y = (self.scale * x).detach()
            return y + 100 if bool(x[0] < 0) else y

    def gradients(self, x, policy):
        node = self.Shared()
        x = x.clone().requires_grad_()
        layer = DeclarativeLayer(node, policy=policy)
        layer(x).sum().backward()
        return x.grad, node.scale.grad, layer

    def test_mask(self):
        x = torch.tensor([[1.0, 2.0], [-1.0, 2.0], [3.0, 1.0]], dtype=torch.float64)
        of_x, of_scale, layer = self.gradients(x, "mask")
        good_x, good_scale, _ = self.gradients(x[[0, 2]], "raise")
        torch.testing.assert_close(of_x[[0, 2]], good_x)
        assert (of_x[1] == 0).all()
        torch.testing.assert_close(of_scale, good_scale)
        assert layer.certificate.solved.tolist() == [True, False, True]

    def test_nothing_but_bad_items(self):
        of_x, of_scale, _ = self.gradients(-torch.ones(2, 2, dtype=torch.float64), "mask")
        assert (of_x == 0).all()
        assert of_scale == 0 or of_scale.isnan()

    def test_items_whose_adjoint_fails_are_dropped_too(self):
        x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
        layer = DeclarativeLayer(testing.CosineDistance(), policy="mask")
        layer(x)[:, 0].sum().backward()
        assert (x.grad == 0).all()

    def test_not_finite_becomes_zero(self):
        class Broken(self.Shared):
            def solve(self, x):
                return super().solve(x) * torch.nan

        y = DeclarativeLayer(Broken(), policy="mask")(torch.ones(2, dtype=torch.float64))
        assert (y == 0).all()


def test_the_public_name_of_the_certificate():
    layer = DeclarativeLayer(Stopped())
    layer(*inputs(0))
    assert isinstance(layer.certificate, ddnkit.Certificate)


# -- saddle points, with certify="fast" ------------------------------------------------------------


class Wells(DeclarativeNode):
    """Σ ((yᵢ − aᵢ)² − 1)²/4, of minima at aᵢ ± 1, at a point that is given."""

    input_dims = (1, 1)

    def objective(self, a, offset, y):
        return (((y - a) ** 2 - 1) ** 2).sum() / 4

    def solve(self, a, offset):
        return a + offset


class WellsOnPlane(Wells):
    """With the sum of y given, which holds where the multiplier is 0."""

    def equality_constraints(self, a, offset, y):
        return y.sum() - (a + offset).sum()


class WellsNearSphere(Wells):
    """With the length of y given."""

    def equality_constraints(self, a, offset, y):
        return (y**2).sum() - ((a + offset) ** 2).sum()


SADDLE_FORMS = {
    "auto": "auto",
    "dense": "dense",
    "krylov": "krylov",
    "embedded_field": "embedded_field",
    "damped": ddnkit.backward.Dense(singular="damped"),
    "error": ddnkit.backward.Dense(singular="error"),
}


@pytest.mark.parametrize("form", list(SADDLE_FORMS))
@pytest.mark.parametrize("node", [Wells, WellsOnPlane, WellsNearSphere])
@pytest.mark.parametrize(("m", "dtype"), [(3, torch.float64), (70, torch.float32)])
def test_a_saddle_point_is_told_beside_a_minimum(form, dtype, node, m):
    a = torch.linspace(-1, 1, 2 * m, dtype=dtype).reshape(2, m)
    offset = torch.ones(2, m, dtype=dtype)
    offset[1, : m - 1] = 0  # at the top of all wells but one: also on the plane a direction is left
    a.requires_grad_()
    layer = DeclarativeLayer(node(), SADDLE_FORMS[form], policy="nan")
    y = layer(a, offset)
    # Of the way back alone: the point is stationary.
    assert layer.certificate.verdicts() == ["trusted", "trusted"]
    v = torch.linspace(1, 2, 2 * m, dtype=dtype).reshape(2, m).sin()
    (found,) = torch.autograd.grad(y, a, v)
    assert layer.certificate.verdicts() == ["trusted", "invalid"]
    assert float(layer.certificate.saddle[1]) > 0.1  # −1 beside 2
    assert any("saddle" in text for text in layer.certificate.causes())
    assert found[0].isfinite().all()
    assert found[1].isnan().all()
    y = DeclarativeLayer(node(), SADDLE_FORMS[form], policy="raise")(a, offset)
    with pytest.raises(ddnkit.UntrustedGradientError, match="saddle"):
        torch.autograd.grad(y, a, v)


@pytest.mark.parametrize("form", ["auto", "dense", "krylov", "embedded_field"])
def test_a_maximum_of_the_rayleigh_quotient_is_told(form):
    class Largest(DeclarativeNode):
        """The eigenvector of the largest eigenvalue, of an objective for the least."""

        input_dims = (2,)
        manifold = Sphere()

        def objective(self, A, y):
            return y @ A @ y / 2

        def solve(self, A):
            return torch.linalg.eigh(A)[1][:, self.which]

    torch.manual_seed(0)
    A = torch.randn(6, 6, dtype=torch.float64)
    A = (A + A.mT).requires_grad_()
    for which, verdict in ((0, "trusted"), (2, "invalid"), (-1, "invalid")):
        node = Largest()
        node.which = which
        layer = DeclarativeLayer(node, form, policy="nan")
        torch.autograd.grad(layer(A).sum(), A)
        assert layer.certificate.verdicts() == [verdict]
        assert ("saddle" in str(layer.certificate.causes())) == (verdict == "invalid")


def test_a_saddle_point_is_told_by_the_least_curvature_of_many():
    """Above the size whose eigenvalues are all computed."""
    m = ddnkit.linalg.kkt.RANK_REVEALING_SIZE + 8
    G = torch.diag_embed(torch.linspace(0.5, 1, m, dtype=torch.float64).repeat(2, 1))
    G[1, 3, 3] = -0.5
    A = torch.ones(2, 1, m, dtype=torch.float64)
    solution = ddnkit.linalg.KKTInverse(G, A)(torch.ones(2, m, dtype=torch.float64))
    assert solution.saddle is not None
    assert solution.saddle[0] == 0
    assert solution.saddle[1] > 0.1


# -- a solution that is off where backward errors are small, with certify="fast" -------------------


class Huber(DeclarativeNode):
    """Σ wᵢ √(uᵢ² + 1) + bᵢ uᵢ of uᵢ = sᵢ(yᵢ − aᵢ), least at uᵢ = −bᵢ/√(wᵢ² − bᵢ²), off by `moved`/sᵢ.

    `scale` is a parameter, of ones.
    """

    input_dims = (1, 1, 1, 1)

    def __init__(self, s):
        self.s = s
        self.scale = torch.nn.Parameter(torch.ones_like(s))

    def objective(self, a, b, w, moved, y):
        u = self.s * (y - a) * self.scale
        return (w * (u.square() + 1).sqrt() + b * u).sum()

    def solve(self, a, b, w, moved):
        return a - (b / (w.square() - b.square()).sqrt() + moved) / self.s


def huber(off, s, moved):
    """The certificate, the gradients, and their error, with data at ``off``."""
    s = torch.as_tensor(s, dtype=torch.float64).expand(3)
    a = torch.tensor([[0.0, 1, 2], [-1, 0.5, 3]], dtype=torch.float64) + off
    b = torch.tensor([[0.5, -0.3, 0.2], [0.1, 0.6, -0.4]], dtype=torch.float64, requires_grad=True)
    w = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    moved = torch.tensor([[0.0], [1.0]], dtype=torch.float64) * torch.as_tensor(moved)
    layer = DeclarativeLayer(Huber(s.clone()), policy="nan")
    found = torch.autograd.grad(layer(a, b, w, moved.expand(2, 3)), [b, w], s.expand(2, 3))
    u = -b / (w.square() - b.square()).sqrt()
    right = torch.autograd.grad(u.sum(), [b, w])
    error = max(float(((f - r) / r).abs().max()) for f, r in zip(found, right, strict=True))
    return layer.certificate, found, error


HIDING = [
    pytest.param(1e8, 1.0, 0.3, id="an offset"),
    pytest.param(0.0, [1.0, 1e-9, 1.0], [0, 0.3, 0], id="a small unit"),
]


@pytest.mark.parametrize(("off", "s", "moved"), HIDING)
def test_what_an_offset_or_a_unit_hides_is_told_on_the_way_back(off, s, moved):
    certificate, found, _ = huber(off, s, moved)
    assert certificate.verdicts()[0] == "trusted"
    assert certificate.verdicts()[1] != "trusted"
    assert found[0][0].isfinite().all()
    assert found[0][1].isnan().all()
    assert certificate.causes()


@pytest.mark.parametrize(("off", "s", "moved"), HIDING)
def test_neither_an_offset_nor_units_are_a_false_alarm(off, s, moved):
    certificate, _, error = huber(off, s, 0.0)
    assert certificate.verdicts() == ["trusted", "trusted"]
    # u is known to the rounding of y, and the gradient changes by about as much.
    assert error < rounding(torch.float64, 64, size=(4 + off) * torch.tensor(s).max())


def test_an_offset_is_told_beside_an_item_that_is_no_number():
    s = torch.ones(3, dtype=torch.float64)
    a = torch.tensor([[0.0, 1, 2]] * 3, dtype=torch.float64) + 1e8
    b = torch.tensor([[0.5, -0.3, 0.2]] * 3, dtype=torch.float64, requires_grad=True)
    moved = torch.tensor([[0.0] * 3, [0.3] * 3, [torch.nan] * 3], dtype=torch.float64)
    layer = DeclarativeLayer(Huber(s), policy="nan")
    (found,) = torch.autograd.grad(layer(a, b, torch.ones_like(b), moved).sum(), b)
    assert found[0].isfinite().all()
    assert found[1:].isnan().all()


def test_a_point_that_the_objective_does_not_take_is_told_and_stops_nothing():
    class Strict(DeclarativeNode):
        """Σ exp(yᵢ − aᵢ) − yᵢ for y < a + 0.1 alone, which the step goes beyond from the left."""

        input_dims = (1,)
        off = 0.0

        def objective(self, a, y):
            factor = torch.linalg.cholesky(torch.diag_embed(a + 0.1 - y))  # raises beyond
            return ((y - a).exp() - y).sum() + 0 * factor.sum()

        def solve(self, a):
            return a - self.off

    a = torch.tensor([[1e6, 2e6]], dtype=torch.float64, requires_grad=True)
    for off, verdict in ((0.0, "trusted"), (0.5, "invalid")):
        node = Strict()
        node.off = off
        layer = DeclarativeLayer(node, policy="nan")
        y = layer(a)
        torch.autograd.grad(y.sum(), a)
        assert layer.certificate.verdicts() == [verdict]


def test_an_offset_is_told_of_a_parameter_too():
    """All that wants a gradient is a tensor that the items share."""
    s = torch.ones(3, dtype=torch.float64)
    a = torch.tensor([[0.0, 1, 2]], dtype=torch.float64) + 1e8
    b = torch.tensor([[0.5, -0.3, 0.2]], dtype=torch.float64)
    node = Huber(s)
    y = DeclarativeLayer(node, policy="raise")(a, b, torch.ones_like(b), torch.full_like(b, 0.3))
    with pytest.raises(ddnkit.UntrustedGradientError):
        torch.autograd.grad(y.sum(), node.scale)


@pytest.mark.parametrize("form", ["auto", "dense", "krylov", "embedded_field"])
def test_a_stop_in_a_valley_is_told(form):
    """Curvatures 1 and 1e-9: a step of a tenth along the latter makes a residual of 1e-10."""

    class Valley(DeclarativeNode):
        input_dims = (1,)
        off = 0.0

        def objective(self, x, y):
            return (y[0] - x[0]) ** 2 / 2 + 1e-9 * ((y[1] - x[1] - 1).exp() - y[1])

        def solve(self, x):
            return x + torch.tensor([0, 1 + self.off], dtype=x.dtype)

    for off in (0.0, 0.1, 0.5):
        node = Valley()
        node.off = off
        x = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
        layer = DeclarativeLayer(node, form, policy="nan")
        # dy/dx is 1 beside the solution too: it is y that is wrong.
        torch.autograd.grad(layer(x).sum(), x)
        assert (layer.certificate.verdicts() == ["trusted"]) == (off == 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gradient_that_is_zero_has_no_relative_error(dtype):
    """‖y‖² is constant on the sphere: of a y that is stopped early, its gradient is zero up to rounding."""
    node = OnSphere()
    a = node.sample_inputs()[0].to(dtype)
    for off in (0.0, 1e-6, 1e-5):
        node.off = off
        x = a.clone().requires_grad_()
        layer = DeclarativeLayer(node, policy="raise", tolerance=1e-3)
        torch.autograd.grad(layer(x).square().sum(), x)
        assert layer.certificate.verdicts() == ["trusted"]
    node.off = 0.1
    layer = DeclarativeLayer(node, policy="nan")
    torch.autograd.grad(layer(a.requires_grad_())[0], a)
    assert layer.certificate.verdicts() != ["trusted"]


class Posed(DeclarativeNode):
    """min ½yᵀQy − xᵀy with a matrix Q of its own, which is float32 where the inputs are."""

    input_dims = (1,)

    def __init__(self, Q):
        self.Q = Q

    def objective(self, x, y):
        return y @ (self.Q @ y) / 2 - x @ y

    def solve(self, x):
        return torch.linalg.solve(self.Q.double(), x.double()).to(x.dtype)


def posed(dtype, condition, seed):
    """A node with this condition, an x, a v, and Q⁻¹v for the very Q that the node holds."""
    generator = torch.Generator().manual_seed(seed)
    U = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))[0]
    Q = ((U * condition ** -torch.linspace(0, 1, 4, dtype=torch.float64)) @ U.T).to(dtype)
    Q = (Q + Q.T) / 2
    x, v = torch.randn(2, 4, generator=generator, dtype=torch.float64).to(dtype)
    exact = mpmath.lu_solve(mpmath.matrix(Q.double().tolist()), mpmath.matrix(v.double().tolist()))
    return Posed(Q), x, v, torch.tensor([float(z) for z in exact], dtype=torch.float64)


@pytest.mark.parametrize("certify", ["fast", "full"])
@pytest.mark.parametrize("form", ["auto", "dense", "embedded_field", "krylov"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.covering
def test_a_float32_node_with_a_matrix_of_its_own_is_solved_in_float64(form, certify, seed):
    node, x, v, right = posed(torch.float32, 1e4, seed)
    layer = DeclarativeLayer(node, form, policy="raise", certify=certify)
    (found,) = torch.autograd.grad(layer(x.requires_grad_()), x, v)
    error = (found.double() - right).norm() / right.norm()
    # Of the system nothing is left but the rounding of its solution.
    assert error < rounding(torch.float32, 4)
    assert layer.certificate.verdicts() == ["trusted"]
    if certify == "full":
        assert error <= layer.certificate.error_bound


@pytest.mark.parametrize("form", ["auto", "dense", "embedded_field", "krylov"])
def test_where_a_bound_tells_what_is_lost_a_small_curvature_is_no_doubt(form):
    for exponent, trusted in ((9, True), (10, True), (15, False)):
        node, x, v, right = posed(torch.float64, 10.0**exponent, exponent)
        layer = DeclarativeLayer(node, form, policy="nan", certify="full", tolerance=1e-5)
        (found,) = torch.autograd.grad(layer(x.requires_grad_()), x, v)
        if trusted:
            assert layer.certificate.curvature < 2 * 10.0**-exponent  # below √ε
            error = (found - right).norm() / right.norm()
            assert error <= layer.certificate.error_bound
        assert (layer.certificate.verdicts() == ["trusted"]) == trusted


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_bound_is_of_what_is_asked_for(dtype):
    """y = a exp(−b) whatever the unit u is: its gradient is an exact zero, of which rounding is left."""

    class InUnits(DeclarativeNode):
        input_dims = (1, 1, 1)

        def objective(self, a, b, u, y):
            z = u * y
            return (z * (z / (u * a)).log() - z).sum() + b @ z

        def solve(self, a, b, u):
            return a * (-b).exp()

    a, b = (torch.tensor(x, dtype=dtype, requires_grad=True) for x in ([2.0, 0.5], [1.5, -0.7]))
    unit = torch.tensor([1e2, 1e-2], dtype=dtype)
    layer = DeclarativeLayer(InUnits(), policy="raise", certify="full")
    torch.autograd.grad(layer(a, b, unit).sum(), [a, b])
    assert layer.certificate.verdicts() == ["trusted"]
    # Of the two that are asked for: sums of four terms, a way back and its probes.
    assert layer.certificate.error_bound < rounding(
        dtype, 4, size=64 * 16, condition=float(layer.certificate.condition)
    )


@pytest.mark.parametrize("form", ["auto", "dense", "krylov", "embedded_field"])
def test_what_cancels_beyond_the_digits_is_in_the_bound(form):
    """dy/dx = 1, but the terms of Bᵀz are as many decades apart as the units of the unknowns."""

    class Spread(Posed):
        def objective(self, x, y):
            return y @ (self.Q @ y) / 2 - (self.Q @ x) @ y

        def solve(self, x):
            return x.clone()

    x = torch.tensor([[0.4, -1.2, 0.8]], dtype=torch.float64, requires_grad=True)
    Q = torch.tensor([[2.0, 0.7, -0.5], [0.7, 1.5, 0.3], [-0.5, 0.3, 1.0]], dtype=torch.float64)
    for decades in (2, 10):
        unit = torch.logspace(0, decades, 3, dtype=torch.float64)
        layer = DeclarativeLayer(
            Spread(unit * Q * unit[:, None]), form, policy="raise", certify="full"
        )
        (found,) = torch.autograd.grad(layer(x).sum(), x)
        error = (found - 1).norm() / 3**0.5
        assert error <= layer.certificate.error_bound


@pytest.mark.parametrize("form", ["auto", "dense", "krylov", "embedded_field"])
@pytest.mark.parametrize("far", [1e2, 2e3, 1e4])
def test_a_hessian_whose_terms_cancel_is_in_the_bound(form, far):
    """The curvature of √(1 + u²) is 1/s − u²/s³, of which u² roundings are left."""

    class PseudoHuber(DeclarativeNode):
        input_dims = (1, 1)

        def objective(self, a, b, y):
            return (1 + (y - a).square()).sqrt().sum() + b @ y

        def solve(self, a, b):
            return a - b / (1 - b.square()).sqrt()

    a = torch.tensor([0.3, -0.8], dtype=torch.float64, requires_grad=True)
    u = torch.tensor([1.0, far], dtype=torch.float64)
    b = (-u / (1 + u.square()).sqrt()).requires_grad_()
    layer = DeclarativeLayer(PseudoHuber(), form, policy="nan", certify="full", tolerance=1e-3)
    y = layer(a, b)
    _, found = torch.autograd.grad(y.sum(), [a, b])
    # At the y that was given, where dy/db = −(1 + u²)^(3/2).
    right = -((1 + (y - a).detach().square()) ** 1.5)
    error = (found - right).norm() / right.norm()
    assert error <= layer.certificate.error_bound
