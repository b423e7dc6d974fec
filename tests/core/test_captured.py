"""Tensors that an objective uses without being given them: parameters, modules, closures."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, jacfwd, vmap

from ddnkit import DeclarativeLayer, DeclarativeNode, InputError, check


class Network(DeclarativeNode):
    """min ‖y − g(x)‖² + Σ exp(p) y⁴/10: g a module, p a parameter of the node."""

    input_dims = (1,)

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.g = nn.Linear(3, 3, dtype=torch.float64)
        with torch.no_grad():
            for p in self.g.parameters():
                p.copy_(torch.randn(p.shape, generator=generator))
        self.p = nn.Parameter(torch.rand(3, generator=generator, dtype=torch.float64))

    def objective(self, x, y):
        return ((y - self.g(x)) ** 2).sum() + (self.p.exp() * y**4).sum() / 10

    def initial_point(self, x):
        return x.clone()


class ModuleNode(DeclarativeNode, nn.Module):
    input_dims = (1,)

    def __init__(self):
        nn.Module.__init__(self)
        self.scale = nn.Parameter(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))

    def objective(self, x, y):
        return ((y - self.scale * x) ** 2).sum()

    def solve(self, x):
        return (self.scale * x).detach()


def batch():
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_parameters_and_modules_of_a_node_get_their_gradients():
    node = Network()
    layer = DeclarativeLayer(node, policy="raise")
    operands = [batch().requires_grad_(), *node.g.parameters(), node.p]
    assert gradcheck(lambda x, *_: layer(x), operands)
    assert gradgradcheck(lambda x, *_: layer(x).sum(), operands, fast_mode=True)


def test_the_layer_has_the_nodes_parameters():
    layer = DeclarativeLayer(Network())
    names = ["node_p", "node_g.weight", "node_g.bias"]
    assert [name for name, _ in layer.named_parameters()] == names
    assert list(layer.state_dict()) == names
    assert "node.scale" in dict(DeclarativeLayer(ModuleNode()).named_parameters())


def test_training_moves_them():
    layer = DeclarativeLayer(Network(), policy="raise")
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.05)
    target = batch().flip(0)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = ((layer(batch()) - target) ** 2).mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    # Twelve parameters for four samples of three numbers, which it can fit; 60 steps of Adam may move
    # each by 3.
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("make", [Network, ModuleNode])
def test_functional_call_and_per_sample_gradients(make):
    layer = DeclarativeLayer(make(), policy="raise")
    values = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(values, x):
        return (functional_call(layer, values, (x,)) ** 2).sum()

    x = batch()
    expected = torch.autograd.grad((layer(x) ** 2).sum(), list(layer.parameters()))
    found = grad(loss)(values, x)
    for a, b in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(a, b)
    each = vmap(grad(loss), in_dims=(None, 0))(values, x)
    for a, b in zip(each.values(), expected, strict=True):
        assert a.shape == (4, *b.shape)
        torch.testing.assert_close(a.sum(0), b)
    forward = jacfwd(loss)(values, x)
    for a, b in zip(forward.values(), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_functional_call_with_other_values_uses_them():
    layer = DeclarativeLayer(ModuleNode(), policy="raise")
    x = torch.ones(3, dtype=torch.float64)
    y = functional_call(layer, {"node.scale": torch.full((3,), 5.0, dtype=torch.float64)}, (x,))
    torch.testing.assert_close(y, 5 * x)


class Scaled(DeclarativeNode):
    """min ‖y − s x‖² with a parameter s, its `solve` and `adjoint` for one problem."""

    input_dims = (1,)

    def __init__(self):
        self.s = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def objective(self, x, y):
        return ((y - self.s * x) ** 2).sum()

    def solve(self, x):
        return self.s * x

    def adjoint(self, x, y, v):
        return (self.s * v,)

    def tangent_inverse(self, x, y):
        return lambda r: r / 2


class BatchedScaled(Scaled):
    batched_solve = True

    def solve(self, x):
        assert self.s.ndim == 0 and x.ndim == 2
        return torch.add(self.s * x, 0)


@pytest.mark.parametrize("make", [Scaled, BatchedScaled])
def test_the_nodes_own_functions_see_the_values_of_functional_call(make):
    layer = DeclarativeLayer(make(), policy="raise")
    x = batch()

    def run(s, x):
        return functional_call(layer, {"node_s": s}, (x,))

    values = torch.tensor([3.0, -1.0], dtype=torch.float64)
    torch.testing.assert_close(grad(lambda x: run(values[0], x).sum())(x), 3 * torch.ones_like(x))
    together = vmap(run, in_dims=(0, None))(values, x)
    torch.testing.assert_close(together, values.reshape(2, 1, 1) * x)
    slopes = vmap(grad(lambda x, s: run(s, x).sum()), in_dims=(None, 0))(x, values)
    torch.testing.assert_close(slopes, values.reshape(2, 1, 1).expand(2, 4, 3))
    twice = vmap(jacfwd(lambda s: run(s, x).square().sum()))(values)
    torch.testing.assert_close(twice, 2 * values * x.square().sum())


@pytest.mark.parametrize("make", [Scaled, BatchedScaled])
@pytest.mark.parametrize("wants", [False, True])
def test_values_of_functional_call_are_used_whether_or_not_they_want_a_gradient(make, wants):
    # As averaged weights do not.
    layer, x = DeclarativeLayer(make(), policy="raise"), batch()
    value = torch.tensor(5.0, dtype=torch.float64, requires_grad=wants)
    for _ in range(2):
        leaf = x.clone().requires_grad_()
        y = functional_call(layer, {"node_s": value}, (leaf,))
        torch.testing.assert_close(y.detach(), 5 * x)
        (g,) = torch.autograd.grad(y.sum(), leaf)
        torch.testing.assert_close(g, torch.full_like(x, 5.0))
        with torch.no_grad():
            torch.testing.assert_close(functional_call(layer, {"node_s": value}, (x,)), 5 * x)
        torch.testing.assert_close(layer(x).detach(), 2 * x)


def test_a_parameter_does_not_keep_the_inputs_from_the_nodes_own_adjoint():
    called = []

    class Spied(Scaled):
        def adjoint(self, x, y, v):
            called.append(1)
            return super().adjoint(x, y, v)

    layer = DeclarativeLayer(Spied(), policy="raise")
    x = batch().requires_grad_()
    layer(x).sum().backward()  # and, at the first call, held against a known answer
    called.clear()
    x.grad = layer.node.s.grad = None
    layer(x).sum().backward()
    assert len(called) == len(x)
    torch.testing.assert_close(x.grad, torch.full_like(x, 2.0))
    torch.testing.assert_close(layer.node.s.grad, x.detach().sum())


def test_a_closure_gets_its_gradient_through_what_made_it():
    theta = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def run(theta):
        scale = theta.exp()

        class Closure(DeclarativeNode):
            input_dims = (1,)

            def objective(self, x, y):
                return ((y - scale * x) ** 2).sum()

            def initial_point(self, x):
                return torch.zeros_like(x)

        return DeclarativeLayer(Closure(), policy="raise")(batch())

    assert gradcheck(run, theta, check_forward_ad=True)
    assert gradgradcheck(run, theta)


def test_only_in_the_constraints():
    radius = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)

    class Sphere(DeclarativeNode):
        input_dims = (1,)

        def objective(self, x, y):
            return -x @ y

        def equality_constraints(self, x, y):
            return (y**2).sum() - radius**2

        def solve(self, x):
            return (radius * x / x.norm()).detach()

    x = batch()
    y = DeclarativeLayer(Sphere(), policy="raise")(x)
    (gradient,) = torch.autograd.grad(y.sum(), radius)
    torch.testing.assert_close(gradient, (x / x.norm(dim=1, keepdim=True)).sum())


def test_shared_modules_across_layers_and_copies():
    node = Network()
    first, second = DeclarativeLayer(node), DeclarativeLayer(node)
    first(batch()).sum().backward()
    once = node.p.grad.clone()
    second(batch()).sum().backward()
    torch.testing.assert_close(node.p.grad, 2 * once)
    copied = copy.deepcopy(first)
    copied(batch()).sum().backward()
    torch.testing.assert_close(copied.node.p.grad, once)
    torch.testing.assert_close(node.p.grad, 2 * once)


def test_a_changed_parameter_between_the_passes_is_noticed():
    layer = DeclarativeLayer(Network())
    y = layer(batch())
    with torch.no_grad():
        layer.node.p.add_(1)
    with pytest.raises(RuntimeError, match="inplace"):
        y.sum().backward()


def test_a_rebound_variable_is_noticed():
    scale = torch.tensor(2.0, requires_grad=True)

    class Closure(DeclarativeNode):
        input_dims = (1,)

        def objective(self, x, y):
            return ((y - scale * x) ** 2).sum()

        def solve(self, x):
            return (scale * x).detach()

    y = DeclarativeLayer(Closure(), policy="raise")(torch.ones(3))
    scale = torch.tensor(3.0, requires_grad=True)
    with pytest.raises(InputError):
        y.sum().backward()


def test_an_autograd_function_is_followed():
    class Double(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(a):
            return 2 * a

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, g):
            return 2 * g

    weight = torch.ones(3, requires_grad=True)

    class Hidden(DeclarativeNode):
        input_dims = (1,)

        def objective(self, x, y):
            return ((y - Double.apply(weight) * x) ** 2).sum()

        def solve(self, x):
            return 2 * x

    for batch in ((), (2,)):
        weight.grad = None
        DeclarativeLayer(Hidden(), policy="raise")(torch.ones(*batch, 3)).sum().backward()
        torch.testing.assert_close(weight.grad, torch.full((3,), 4.0 if batch else 2.0))


def test_what_cannot_be_followed_is_refused():
    class Remade(DeclarativeNode):
        """Its tensor is another one at each evaluation."""

        input_dims = (1,)

        def objective(self, x, y):
            weight = torch.ones(3, requires_grad=True)
            return ((y - weight * x) ** 2).sum()

        def solve(self, x):
            return x.clone()

    with pytest.raises(InputError):
        DeclarativeLayer(Remade())(torch.ones(3))

    leaf = torch.ones(3, requires_grad=True)
    stock = iter([leaf * 1 for _ in range(50)])

    class FromStock(Remade):
        def objective(self, x, y):
            return ((y - next(stock) * x) ** 2).sum()

    with pytest.raises(InputError):
        DeclarativeLayer(FromStock())(torch.ones(3))


def test_a_detached_tensor_is_a_constant():
    weight = torch.ones(3, requires_grad=True)

    class Constant(DeclarativeNode):
        input_dims = (1,)

        def objective(self, x, y):
            return ((y - weight.detach() * x) ** 2).sum()

        def solve(self, x):
            return x.clone()

    x = torch.ones(3, requires_grad=True)
    DeclarativeLayer(Constant(), policy="raise")(x).sum().backward()
    assert weight.grad is None
    torch.testing.assert_close(x.grad, torch.ones(3))


class Normalised(DeclarativeNode):
    """min ‖y − Σ g(x)‖²: g normalises over the rows of x and keeps running statistics."""

    input_dims = (2,)

    def __init__(self, kind=nn.BatchNorm1d, inside=True):
        self.g = nn.Sequential(kind(4, dtype=torch.float64, track_running_stats=True))
        self.inside = inside

    def objective(self, x, y):
        z = self.g(x) if self.inside else x
        return ((y - z.sum(0)) ** 2).sum()

    def initial_point(self, x):
        return torch.zeros_like(x[0])

    def sample_inputs(self):
        return (torch.randn(5, 4),)


def running(node):
    return [buffer.clone() for buffer in node.g.buffers()]


@pytest.mark.parametrize("shape", [(5, 4), (1, 5, 4), (3, 5, 4)])
def test_running_statistics_that_an_objective_would_update(shape):
    x = torch.randn(shape, dtype=torch.float64) + 3
    node = Normalised()
    before = running(node)
    layer = DeclarativeLayer(node)
    with pytest.raises(InputError, match=r"`g\.0` \(BatchNorm1d in training mode\).*eval"):
        layer(x)
    assert all(torch.equal(a, b) for a, b in zip(running(node), before, strict=True))
    if len(shape) == 2:
        assert "running statistics" in check(node, examples=1).diagnosis[0]
        assert all(torch.equal(a, b) for a, b in zip(running(node), before, strict=True))
    layer.eval()
    layer(x)
    assert all(torch.equal(a, b) for a, b in zip(running(node), before, strict=True))
    # What the objective does not use is nobody's business.
    DeclarativeLayer(Normalised(inside=False)).train()(x)


def test_running_statistics_without_a_record_of_them_pass():
    node = Normalised()
    node.g = nn.Sequential(nn.BatchNorm1d(4, dtype=torch.float64, track_running_stats=False))
    DeclarativeLayer(node, policy="raise").train()(torch.randn(2, 5, 4, dtype=torch.float64))


def test_any_tensor_of_the_node_that_an_objective_changes():
    class Annealed(DeclarativeNode):
        def __init__(self):
            self.weight = torch.ones((), dtype=torch.float64)

        def objective(self, x, y):
            self.weight *= 0.9
            return self.weight * ((y - x) ** 2).sum()

        def solve(self, x):
            return x.clone()

    with pytest.raises(InputError, match=r"Annealed\.objective changes `weight`"):
        DeclarativeLayer(Annealed())(torch.randn(3))


def test_check_says_which_precision_the_node_holds():
    report = check(Normalised(lambda n, **_: nn.Linear(4, n)), examples=1)
    assert "torch.float32" in report.diagnosis[0]
    assert "torch.float64" in report.diagnosis[0]
