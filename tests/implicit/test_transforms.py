"""A layer under every transform of torch: exact, in any nesting, or refused with a way out."""

import warnings

import pytest
import torch
from bounds import condition, factorised, rounding, system_condition
from ddnkit_manifolds import Sphere
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import ddnkit
from ddnkit import DeclarativeLayer, DeclarativeNode, InputError


class Curved(DeclarativeNode):
    """A quartic whose constraint depends on an input and is written twice."""

    input_dims = (1, 1)

    def objective(self, x, b, y):
        return ((y - x) ** 2).sum() / 2 + 0.1 * (y**4).sum() * x[0] ** 2

    def equality_constraints(self, x, b, y):
        h = (b * y).sum() + (b * y**2).sum() - 1
        return torch.stack([h, 2 * h])

    def initial_point(self, x, b):
        return x / 2 + 1


class OnSphere(DeclarativeNode):
    input_dims = (1, 1)
    manifold = Sphere()

    def objective(self, x, b, y):
        return (b * y**2).sum() - x @ y

    def initial_point(self, x, b):
        return x / x.norm()


class WithAdjoint(DeclarativeNode):
    input_dims = (1, 1)

    def objective(self, x, b, y):
        return (b.exp() * (y - x) ** 2).sum()

    def solve(self, x, b):
        return x.clone()

    def adjoint(self, x, b, y, v):
        return v.clone(), torch.zeros_like(b)


class Equilibrium(ddnkit.FixedPointNode):
    input_dims = (1, 1)

    def fixed_point(self, x, b, y):
        return torch.tanh(0.5 * b * y.roll(1) + x)

    def initial_point(self, x, b):
        return torch.zeros_like(x)


CASES = [
    pytest.param(Curved(), "dense", marks=pytest.mark.long),
    pytest.param(Curved(), "embedded_field", marks=pytest.mark.long),
    pytest.param(Curved(), "krylov", marks=pytest.mark.long),
    (OnSphere(), "embedded_field"),
    (OnSphere(), "dense"),
    (OnSphere(), "krylov"),
    (WithAdjoint(), "closed_form"),
    (Equilibrium(), "fixed_point"),
    pytest.param(Equilibrium(), "krylov", marks=pytest.mark.long),
]
each_case = pytest.mark.parametrize(
    ("node", "form"),
    CASES,
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)


def inputs(*batch):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(*batch, 3, generator=generator, dtype=torch.float64)
    b = 0.2 + torch.rand(*batch, 3, generator=generator, dtype=torch.float64)
    return x, b


def scalar(layer):
    return lambda x, b: (layer(x, b) ** 3).sum()


def close(node, order, *inputs, like):
    """What two derivatives of that order may be apart, as figures of the size of ``like``: each order is a
    solve, to the 1e-12 that krylov promises or to the rounding of a factorisation, and what it is off by
    grows by the condition in each solve that follows."""
    y = DeclarativeLayer(node)(*inputs)
    if isinstance(node, Equilibrium):
        slope = jacrev(lambda y: y - node.fixed_point(*inputs, y))(y)
        kappa = condition(slope)
    else:
        kappa = system_condition(node, inputs, y)
    solve = 1e-12 + factorised(y, 2 * len(y))
    return order * kappa**order * solve * float(like.abs().max())


@each_case
def test_derivatives_of_first_and_second_order_in_both_directions(node, form):
    layer = DeclarativeLayer(node, form, policy="raise")
    xs = [x.requires_grad_() for x in inputs()]
    # Backward passes may differ by rounding: kernels go by where vectors lie in memory.
    nondet = rounding(torch.float64, 30)
    assert gradcheck(layer, xs, check_forward_ad=True, nondet_tol=nondet)
    assert gradgradcheck(
        layer,
        xs,
        check_fwd_over_rev=True,
        check_rev_over_rev=True,
        nondet_tol=nondet,
        fast_mode=True,
    )


@each_case
def test_every_nesting_gives_the_same_hessian(node, form):
    f = scalar(DeclarativeLayer(node, form, policy="raise"))
    xs = inputs()
    first = hessian(f, argnums=(0, 1))(*xs)
    largest = max(entry.abs().max() for row in first for entry in row)
    assert largest > 1e-3
    bound = close(node, 2, *xs, like=largest)
    for outer, inner in ((jacrev, jacrev), (jacfwd, jacfwd), (jacrev, jacfwd)):
        other = outer(inner(f, argnums=(0, 1)), argnums=(0, 1))(*xs)
        for a, b in zip(sum(first, ()), sum(other, ()), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=bound)


@each_case
def test_third_derivatives(node, form):
    f = scalar(DeclarativeLayer(node, form, policy="raise"))
    x, b = inputs()
    along = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    forward = jacfwd(jacfwd(jacfwd(f)))(x, b)
    step = 1e-3

    def difference(step):
        return (hessian(f)(x + step * along, b) - hessian(f)(x - step * along, b)) / (2 * step)

    near, far = difference(step), difference(2 * step)
    # Four times as far from the derivative at twice the step; and what the Hessians are off by.
    bound = (far - near).abs().max() + close(node, 2, x, b, like=hessian(f)(x, b)) / step
    torch.testing.assert_close(forward @ along, near, rtol=0, atol=float(bound))
    bound = close(node, 3, x, b, like=forward)
    torch.testing.assert_close(jacrev(jacfwd(jacrev(f)))(x, b), forward, rtol=0, atol=bound)


@each_case
def test_vmap_is_a_loop(node, form):
    layer = DeclarativeLayer(node, form, policy="raise")
    xs, bs = inputs(4)
    together = vmap(layer)(xs, bs)
    assert layer.certificate.stationarity.shape == (4,)
    torch.testing.assert_close(
        together, torch.stack([layer(x, b) for x, b in zip(xs, bs, strict=True)])
    )
    f = scalar(layer)
    alone = torch.stack([hessian(f)(x, b) for x, b in zip(xs, bs, strict=True)])
    bound = max(close(node, 2, x, b, like=alone) for x, b in zip(xs, bs, strict=True))
    torch.testing.assert_close(vmap(hessian(f))(xs, bs), alone, rtol=0, atol=bound)


def test_nested_vmap_and_batch_dimensions():
    layer = DeclarativeLayer(Curved(), policy="raise")
    x, _ = inputs(2, 3, 4)
    _, b = inputs(
        4, 3
    )  # one b for each of the mapped 3, shared by the mapped 2, broadcast to the 4
    together = vmap(vmap(layer, in_dims=(0, None)), in_dims=(1, 1))(x, b)
    assert together.shape == (3, 2, 4, 3)
    assert layer.certificate.feasibility.shape == (3, 2, 4)
    for i in range(3):
        for j in range(2):
            torch.testing.assert_close(together[i, j], layer(x[j, i], b[:, i]))


def test_vjp_and_jvp_are_transposes():
    layer = DeclarativeLayer(Curved(), policy="raise")
    x, b = inputs()
    dx, db = inputs()[::-1]
    _, dy = jvp(layer, (x, b), (dx, db))
    v = torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64)
    _, pull = vjp(layer, x, b)
    gx, gb = pull(v)
    torch.testing.assert_close(
        v @ dy,
        gx @ dx + gb @ db,
        rtol=0,
        atol=rounding(
            v,
            30,
            size=float(v.norm() * dy.norm()),
            condition=system_condition(layer.node, (x, b), layer(x, b)),
        ),
    )


def test_forward_mode_of_autograd():
    layer = DeclarativeLayer(Curved(), policy="raise")
    x, b = inputs()
    with forward_ad.dual_level():
        y = layer(forward_ad.make_dual(x, torch.ones_like(x)), b)
        tangent = forward_ad.unpack_dual(y).tangent
    torch.testing.assert_close(tangent, jvp(lambda x: layer(x, b), (x,), (torch.ones_like(x),))[1])


def test_per_sample_gradients():
    layer = DeclarativeLayer(Curved(), policy="raise")
    xs, bs = inputs(5)
    each = vmap(grad(scalar(layer)), in_dims=(0, 0))(xs, bs)
    xs.requires_grad_()
    scalar(layer)(xs, bs).backward()
    torch.testing.assert_close(each, xs.grad)


def test_second_derivatives_through_a_pass_under_autocast():
    layer = DeclarativeLayer(Curved(), policy="raise")
    x, b = (t.float() for t in inputs())
    x.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = (layer(x, b) ** 3).sum()
        (first,) = torch.autograd.grad(value, x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert second.dtype == torch.float32
    exact = hessian(scalar(layer))(*inputs()).sum(0)
    # Newton's last step in float32 is up to eps^{2/3} = 2e-5, at derivatives up to 30.
    torch.testing.assert_close(second.double(), exact, rtol=1e-3, atol=1e-3)


def test_inference_mode_solves_and_certifies():
    layer = DeclarativeLayer(Curved(), policy="raise")
    x, b = inputs()
    expected = layer(x, b)
    with torch.inference_mode():
        y = layer(x, b * 1)
        assert layer.certificate.solved
    torch.testing.assert_close(y, expected)
    with torch.inference_mode():
        made_there = x * 1
    torch.testing.assert_close(layer(made_there, b), expected)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_around_the_layer(backend):
    layer = DeclarativeLayer(Curved(), policy="raise")
    linear = torch.nn.Linear(3, 3, dtype=torch.float64)

    def model(x, b):
        return (layer(linear(x).tanh(), b) * 2).sum()

    x, b = inputs()
    expected = torch.autograd.grad(model(x, b), linear.weight)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's compiler, about itself
        compiled = torch.compile(model, backend=backend)
        torch.testing.assert_close(torch.autograd.grad(compiled(x, b), linear.weight)[0], expected)


@pytest.mark.parametrize("node", [Curved(), pytest.param(OnSphere(), marks=pytest.mark.long)])
def test_derivatives_of_torch_func_inside_what_is_compiled(node):
    layer = DeclarativeLayer(node, policy="raise")
    x, b = inputs()

    def loss(x):
        return layer(x, b).square().sum()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for transform in (grad, hessian, lambda f: lambda x: jvp(f, (x,), (b,))[1]):
            torch.compiler.reset()
            try:
                found = torch.compile(transform(loss), backend="eager")(x)
            except AssertionError:  # the compiler's own, of torch 2.8
                assert torch.__version__ < "2.9"
                continue
            torch.testing.assert_close(found, transform(loss)(x))


class TestRefusals:
    """Each says what cannot be done, and what can."""

    def test_compiled_as_one_graph(self):
        layer = DeclarativeLayer(Curved())
        compiled = torch.compile(lambda x, b: layer(x, b).sum(), backend="eager", fullgraph=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(RuntimeError, match="fullgraph"):
                compiled(*inputs())

    @pytest.mark.filterwarnings("ignore")  # torch.jit.trace is deprecated
    def test_traced(self):
        with pytest.raises(InputError, match=r"torch\.compile"):
            torch.jit.trace(DeclarativeLayer(Curved()), inputs())

    def test_linearised_and_traced_by_make_fx(self):
        layer = DeclarativeLayer(Curved())
        x, b = inputs()
        for trace in (
            lambda: torch.func.linearize(lambda x: layer(x, b), x),
            lambda: torch.fx.experimental.proxy_tensor.make_fx(lambda x: layer(x, b))(x),
        ):
            with pytest.raises(InputError, match=r"torch\.func\.jvp"):
                trace()
        assert layer(x, b).shape == x.shape  # and afterwards all is as it was

    def test_a_derivative_taken_inside_an_objective(self):
        class Inner(Curved):
            def objective(self, x, b, y):
                (slope,) = torch.autograd.grad(super().objective(x, b, y), y, create_graph=True)
                return slope.square().sum()

        class Functional(Curved):
            def objective(self, x, b, y):
                energy = super().objective
                return grad(lambda y: energy(x, b, y))(y).square().sum()

        x, b = inputs()
        for shape in ((3,), (1, 3), (2, 3)):
            with pytest.raises(InputError, match=r"Inner\.objective.*torch\.func\.grad"):
                DeclarativeLayer(Inner())(x.expand(shape), b)
            DeclarativeLayer(Functional(), policy="nan")(x.expand(shape), b)

    def test_exported(self):
        with pytest.raises(Exception, match=r"exported|fullgraph"):
            torch.export.export(DeclarativeLayer(Curved()), inputs())

    def test_autograds_own_vectorisation(self):
        x, b = inputs()
        x.requires_grad_()
        y = DeclarativeLayer(Curved())(x, b)
        with pytest.raises(InputError, match=r"torch\.func\.vmap"):
            torch.autograd.grad(y, x, torch.eye(3, dtype=torch.float64), is_grads_batched=True)

    def test_complex_inputs(self):
        x, b = inputs()
        with pytest.raises(InputError, match="Curved: complex"):
            DeclarativeLayer(Curved())(x.to(torch.complex128), b)

    def test_a_closure_inside_a_transform(self):
        def outer(w):
            class Scaled(DeclarativeNode):
                input_dims = (1,)

                def objective(self, x, y):
                    return ((y - w * x) ** 2).sum()

                def solve(self, x):
                    return w * x

            return DeclarativeLayer(Scaled())(torch.ones(3)).sum()

        for transform in (grad, jacfwd):
            with pytest.raises(InputError, match="Scaled"):
                transform(outer)(torch.tensor(2.0))
