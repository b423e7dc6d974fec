"""What a node's functions showed when they were solved: no silent wrong gradient, no alarm on sound nodes."""

import random
import warnings

import numpy as np
import pytest
import torch
from bounds import eps
from ddnkit_manifolds import Sphere
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import ddnkit
from ddnkit import DeclarativeLayer, DeclarativeNode, InputError, UntrustedGradientError

DTYPES = [torch.float64, torch.float32]
X = torch.tensor([0.3, -1.2, 0.7])


def node(objective, solve=None, **attributes):
    """A node of these functions of (node, x, y), with y = x for its solution if nothing else is said."""
    functions = {
        "input_dims": (1,),
        "objective": lambda self, x, y: objective(self, x, y),
        "solve": lambda self, x: x.clone() if solve is None else solve(self, x),
    }
    made = type("Given", (DeclarativeNode,), functions)()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def square(x, y):
    return (y - x).square().sum() / 2


def inputs(batch, dtype):
    rows = torch.stack([X + k / 64 for k in range(batch)])
    return rows.to(dtype).requires_grad_()


# -- sound nodes -------------------------------------------------------------------------------


def counted(self, x, y):
    self.count = getattr(self, "count", 0) + 1
    return square(x, y)


def logged_at_times(self, x, y):
    counted(self, x, y)
    if self.count % 2 == 0:
        self.last = (3 * y.norm()).detach()
    return square(x, y)


def kept(self, x, y):
    self.last = 3 * y.norm()
    return square(x, y)


def cached(self, x, y):
    if not hasattr(self, "_eye"):
        self._eye = torch.eye(len(x), dtype=x.dtype)
    return (self._eye @ (y - x)).square().sum() / 2


def in_blank_memory(self, x, y):
    z = y.new_empty(4)
    z[:3] = y - x
    z[3] = 0
    return z.square().sum() / 2


def checked(self, x, y):
    assert float(y.detach().abs().max()) < 1e6
    assert torch.isfinite(y).all()
    return square(x, y)


def of_detached_kinks(self, x, y):
    weight = 1 / (1 + y.detach().abs() + y.detach().max().relu())
    return square(x, y) + 0 * weight.sum()


def by_a_generator(self, x, y):
    weight = 1 + torch.rand(3, generator=torch.Generator().manual_seed(1)).to(x)
    return (weight * (y - x).square()).sum()


def dropping_nothing(self, x, y):
    return F.dropout(y - x, 0.5, training=False).square().sum() / 2


def complex_inside(self, x, y):
    d = torch.fft.rfft(y - x)
    return (d * d.conj()).real.sum() / 2


def in_place_on_its_own(self, x, y):
    d = y - x
    d.mul_(2)
    return d.square().sum() / 2


def of_another_layer(self, x, y):
    return square(self.inner(x), y)


SOUND = [
    counted, logged_at_times, kept, cached, in_blank_memory, checked, of_detached_kinks,
    by_a_generator, dropping_nothing, complex_inside, in_place_on_its_own, of_another_layer,
]  # fmt: skip


@pytest.mark.parametrize("objective", SOUND)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.covering
def test_sound_nodes_have_their_gradient_and_no_alarm(objective, dtype, batch):
    inner = DeclarativeLayer(node(lambda self, x, y: square(x, y)), policy="raise")
    layer = DeclarativeLayer(node(objective, inner=inner), policy="raise")
    for _ in range(3):
        x = inputs(batch, dtype)
        layer(x).square().sum().backward()
        # y = x: condition 1, a dozen operations.
        assert torch.allclose(x.grad, 2 * x, rtol=64 * eps(dtype))
        assert set(layer.certificate.verdicts()) == {"trusted"}


def by_setting(y):
    z = torch.zeros(4, dtype=y.dtype)
    z[:3] = y
    return z.abs().sum()


def by_copying_into_a_view(y):
    z = torch.zeros(4, dtype=y.dtype)
    z[:3].copy_(y)
    return z.abs().sum()


@pytest.mark.parametrize(
    "term",
    [
        lambda y: y.clone().abs_().sum(),
        lambda y: F.relu(y.clone(), inplace=True).sum() + F.relu_(-y).sum(),
        by_copying_into_a_view,
        by_setting,
    ],
)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("logs", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.covering(2)
def test_kinks_of_work_in_place_and_beside_a_log_are_seen(term, batch, logs, dtype):
    def objective(self, x, y):
        f = square(x, y) + term(y)
        if logs:
            self.last = float(f.detach())
        return f

    layer = DeclarativeLayer(node(objective, lambda self, x: F.softshrink(x, 1.0)), policy="raise")
    x = inputs(batch, dtype)
    layer(x).sum().backward()
    assert torch.allclose(x.grad, (x.abs() > 1).to(dtype), atol=64 * eps(dtype))


# The slope is a number between 0 and 1, known to a roundoff: 1 / 2e6 is a few of those of float32.
@pytest.mark.parametrize(
    ("weight", "dtype"), [(1.0, DTYPES[1]), (1e3, DTYPES[1]), (1.0, DTYPES[0]), (1e6, DTYPES[0])]
)
def test_an_exact_penalty_of_any_weight_holds_its_bound(weight, dtype):
    layer = DeclarativeLayer(
        node(
            lambda self, x, y: square(x, y) + weight * torch.relu(-y).sum(),
            lambda self, x: torch.where(x < -weight, x + weight, x.relu()),
        ),
        policy="raise",
    )
    x = torch.tensor([[0.5, 2.0, -0.5]], dtype=dtype, requires_grad=True)
    layer(x).sum().backward()
    assert torch.allclose(x.grad, (x > 0).to(dtype), atol=64 * eps(dtype))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_goes_through_a_layer(reentrant):
    layer = DeclarativeLayer(node(lambda self, x, y: square(x, y)), policy="raise")
    x = inputs(2, torch.float64)
    checkpoint(layer, x, use_reentrant=reentrant).square().sum().backward()
    assert torch.allclose(x.grad, 2 * x)


# -- state that is changed between forward and backward -----------------------------------------


class Shrunk(DeclarativeNode, nn.Module):
    """y = x / (1 + λ)."""

    input_dims = (1,)

    def __init__(self):
        nn.Module.__init__(self)
        self.weight = 1.0
        self.entries = [1.0]
        self.register_buffer("buffer", torch.ones((), dtype=torch.float64))
        self.parameter = nn.Parameter(torch.ones((), dtype=torch.float64), requires_grad=False)

    @property
    def factor(self):
        return self.weight * self.entries[0] * OUTSIDE[0] * self.buffer * self.parameter

    def objective(self, x, y):
        return square(x, y) + self.factor * y.square().sum() / 2

    def solve(self, x):
        return x / (1 + self.factor)


OUTSIDE = [1.0]

#: Each makes λ = 3. What was there before is held where it was set anew, and is lost where not.
RESTORED = {
    "an attribute": lambda node: setattr(node, "weight", 3.0),
    "a list": lambda node: node.entries.__setitem__(0, 3.0),
    "a buffer": lambda node: setattr(node, "buffer", torch.full_like(node.buffer, 3.0)),
}
LOST = {
    "a buffer in place": lambda node: node.buffer.fill_(3.0),
    "a parameter's data": lambda node: node.parameter.data.mul_(3.0),
    "a parameter's other data": lambda node: setattr(
        node.parameter, "data", torch.full_like(node.parameter, 3.0)
    ),
    "a global": lambda node: OUTSIDE.__setitem__(0, 3.0),
}


@pytest.fixture(autouse=True)
def _outside():
    OUTSIDE[0] = 1.0


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("change", RESTORED)
def test_the_way_back_takes_what_the_node_held(change, batch):
    layer = DeclarativeLayer(Shrunk(), policy="raise")
    x = inputs(batch, torch.float64)
    y = layer(x)
    RESTORED[change](layer.node)
    (layer(x).sum() + y.sum()).backward()
    assert torch.allclose(x.grad, torch.full_like(x, 1 / 2 + 1 / 4))
    assert layer.node.factor == 3.0


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("change", LOST)
def test_what_was_changed_and_is_lost_is_refused(change, batch):
    layer = DeclarativeLayer(Shrunk(), policy="raise")
    x = inputs(batch, torch.float64)
    y = layer(x)
    LOST[change](layer.node)
    with pytest.raises(InputError, match=r"test_observation\.py, line \d+"):
        y.sum().backward()


def test_an_inner_layer_that_is_another_on_the_way_back_is_refused():
    inner = DeclarativeLayer(Shrunk(), policy="raise")
    layer = DeclarativeLayer(
        node(lambda self, x, y: square(inner(x), y), lambda self, x: inner(x)), policy="raise"
    )
    x = inputs(2, torch.float64)
    y = layer(x)
    inner.node.weight = 3.0
    with pytest.raises(InputError):
        y.sum().backward()


# -- functions that are none ---------------------------------------------------------------------

RANDOM = {
    "randn": lambda self, x, y: square(x + torch.randn(3).to(x), y),
    "dropout": lambda self, x, y: F.dropout(y - x, 0.5).square().sum() / 2,
    "random": lambda self, x, y: random.random() * square(x, y),
    "numpy": lambda self, x, y: np.random.default_rng().random() * square(x, y),
    "a counter": lambda self, x, y: counted(self, x, y) * self.count,
}


@pytest.mark.parametrize("how", RANDOM)
def test_an_objective_that_is_another_at_each_evaluation_is_refused(how):
    layer = DeclarativeLayer(node(RANDOM[how]))
    with pytest.raises(InputError, match=r"test_observation\.py, line \d+"):
        layer(inputs(1, torch.float64))


def test_a_solver_may_draw():
    layer = DeclarativeLayer(
        node(lambda self, x, y: square(x, y), lambda self, x: x + 0 * torch.randn(3).to(x))
    )
    layer(inputs(3, torch.float64)).sum().backward()


# -- hidden --------------------------------------------------------------------------------------


def _no_grad(x):
    with torch.no_grad():
        return x * 1


def _copied(copy):
    def copied(x):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own advice
            return copy(x)

    return copied


class Forgets(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return torch.zeros_like(g)


HIDDEN = {
    "detach": lambda x: x.detach(),
    "detach_": lambda x: (x * 1).detach_(),
    "data": lambda x: x.data,
    "item": lambda x: torch.stack([x.new_full((), v.detach().item()) for v in x]),
    "tolist": lambda x: torch.tensor(x.tolist(), dtype=x.dtype),
    "numpy": lambda x: torch.from_numpy(x.detach().numpy() * 1),
    "no_grad": _no_grad,
    "torch.tensor": _copied(torch.tensor),
    "new_tensor": _copied(lambda x: x.new_tensor(x)),
    "a Function that gives nothing back": Forgets.apply,
}


@pytest.mark.parametrize("how", HIDDEN)
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_input_that_is_hidden_is_told(how, dtype):
    hide = HIDDEN[how]
    layer = DeclarativeLayer(node(lambda self, x, y: square(hide(x), y)), policy="raise")
    with pytest.raises(UntrustedGradientError, match="input 0"):
        layer(inputs(1, dtype)).sum().backward()


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_hidden_input_of_little_weight_is_told(dtype, batch):
    """The gradient that is missing is all of its own, a hundredth of another's."""

    class TwoInputs(DeclarativeNode):
        input_dims = (1, 1)

        def objective(self, x, p, y):
            return (y - x).square().sum() / 2 + 0.005 * p.detach() @ y

        def solve(self, x, p):
            return x - 0.005 * p

    x, p = (inputs(batch, dtype) for _ in range(2))
    layer = DeclarativeLayer(TwoInputs(), policy="raise")
    with pytest.raises(UntrustedGradientError, match="input 1"):
        layer(x, p).sum().backward()
    # A cut that does no harm, of a y that is not solved to the last digit.
    layer = DeclarativeLayer(
        node(
            lambda self, x, y: square(x, y) * (1 + x.detach().square().sum()),
            lambda self, x: x + 1e2 * eps(x),
        ),
        policy="raise",
    )
    x = inputs(batch, dtype)
    (found,) = torch.autograd.grad(layer(x).sum(), x)
    torch.testing.assert_close(found, torch.ones_like(x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("side", [1, -1])
def test_an_input_that_is_hidden_to_one_side_of_a_kink_is_told(side, dtype):
    """y lies where p acts, and so near to the other side that most of what is beside it does not."""

    class OneSided(DeclarativeNode):
        input_dims = (1, 1, 1)

        def objective(self, x, p, o, y):
            with torch.no_grad():
                weight = p * 1
            return (y - x).square().sum() / 2 + (weight * torch.relu(side * (y - o))).sum()

        def solve(self, x, p, o):
            return x - side * p

    p = torch.tensor([[0.7, 1.5], [2.0, 0.4]], dtype=dtype)
    o = torch.tensor([[3.0, 1.0], [2.0, -2.0]], dtype=dtype)
    x = o + side * (p + 1e-4)
    xs = [t.requires_grad_() for t in (x, p, o)]
    layer = DeclarativeLayer(OneSided(), policy="raise")
    with pytest.raises(UntrustedGradientError, match="input 1"):
        torch.autograd.grad(layer(*xs).sum(), xs, allow_unused=True)


# -- work in place -------------------------------------------------------------------------------


def _div(x):
    return x.div_(2)


def _by_numpy(x):
    x.numpy()[...] /= 2
    return x.clone()


def _by_data(x):
    x.data.div_(2)
    return x.clone()


@pytest.mark.parametrize("halve", [_div, _by_numpy, _by_data])
def test_a_solver_that_writes_on_its_input_is_refused(halve):
    layer = DeclarativeLayer(node(lambda self, x, y: square(x / 2, y), lambda self, x: halve(x)))
    with pytest.raises(InputError, match=r"solve .*input 0"):
        layer(inputs(1, torch.float64))


def test_an_objective_that_writes_on_its_input_is_refused():
    layer = DeclarativeLayer(node(lambda self, x, y: square(x.mul_(1.5), y)))
    with pytest.raises(InputError, match=r"objective .*input 0"):
        layer(inputs(1, torch.float64))


def _where_torch_records_nothing(y):
    return y if y.requires_grad else y.mul_(1.5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("write", [_where_torch_records_nothing, _by_numpy, _by_data])
@pytest.mark.parametrize("function", ["objective", "equality_constraints"])
def test_a_function_that_writes_on_y_is_refused(function, write, batch, dtype):
    """Where nothing is recorded, as for tied entries and constraints, torch lets them, and y was lost."""

    class Writes(DeclarativeNode):
        input_dims = (1,)
        batched_solve = False

        def objective(self, x, y):
            y = write(y) if function == "objective" else y
            return ((y - x) ** 2).sum() / 2 + y.amax()

        def equality_constraints(self, x, y):
            y = write(y) if function == "equality_constraints" else y
            return y.sum()[None] - 1

        def solve(self, x):
            return torch.full_like(x, 1 / len(x))

    x = torch.tensor([0.1, 0.2, 0.3], dtype=dtype).repeat(batch, 1).requires_grad_()
    layer = DeclarativeLayer(Writes())
    with pytest.raises((InputError, RuntimeError), match=r"changes y in place|grad.*numpy"):
        layer(x).sum().backward()


def test_an_input_that_is_changed_before_the_way_back_is_refused():
    layer = DeclarativeLayer(node(lambda self, x, y: square(x.exp(), y), lambda self, x: x.exp()))
    x = inputs(1, torch.float64)
    y = layer(x * 1)
    y.sum().backward()
    y = layer(x)
    x.data.mul_(2)
    with pytest.raises((InputError, RuntimeError), match=r"in place|inplace"):
        y.sum().backward()


def test_nothing_of_a_call_stays():
    import gc
    import weakref

    layer = DeclarativeLayer(
        node(lambda self, x, y: square(x, y) + y.abs().sum(), lambda self, x: F.softshrink(x, 1.0))
    )
    seen = []
    for _ in range(3):
        x = inputs(2, torch.float64)
        y = layer(x)
        y.sum().backward()
        seen += [weakref.ref(x), weakref.ref(y)]
    del x, y
    gc.collect()
    gc.collect()  # graphs hold tensors that are found by a second look
    assert not [ref for ref in seen if ref() is not None]
    assert not ddnkit.DeclarativeLayer(layer.node).state_dict()


class OnSphere(DeclarativeNode):
    """The point of the sphere nearest to x, or to what is left of it."""

    manifold = Sphere()
    input_dims = (1,)

    def __init__(self, cut):
        self.cut = cut

    def objective(self, x, y):
        assert float(x.detach().abs().sum()) > 0  # a cut that does no harm
        return (y - self.cut(x)).square().sum()

    def solve(self, x):
        return x / x.norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("harm", [False, True])
def test_cuts_in_a_node_on_a_manifold(dtype, batch, harm):
    x = torch.randn(batch, 5, generator=torch.Generator().manual_seed(0), dtype=dtype)
    layer = DeclarativeLayer(OnSphere(torch.detach if harm else torch.clone), policy="mask")
    layer(x.requires_grad_()).sum().backward()
    assert layer.certificate.verdicts() == [("invalid" if harm else "trusted")] * batch
