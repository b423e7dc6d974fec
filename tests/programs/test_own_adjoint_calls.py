"""Short calls of nodes with a way back of their own: the same gradients, the same words."""

import warnings

import numpy as np
import pytest
import torch
from bounds import factorised, rounding
from ddnkit_etf import NearestETF
from ddnkit_manifolds import Stiefel
from layers import eager, short

import ddnkit
from ddnkit import Adjoint, DeclarativeNode, InputError, Solution, Status

pytestmark = pytest.mark.programs


class Scaled(DeclarativeNode):
    """min ½‖y − s x‖² + ½‖w y‖², y = s x/(1 + w²), with a number s."""

    input_dims = (1, 1)
    batched_solve = True

    def __init__(self, s=2.0):
        self.s = s

    def objective(self, x, w, y):
        return ((y - self.s * x) ** 2).sum() / 2 + (w * y).square().sum() / 2

    def solve(self, x, w):
        return self.s * x / (1 + w**2)

    def adjoint(self, x, w, y, v):
        u = v / (1 + w**2)
        return self.s * u, -2 * w * y * u


class Turning(Scaled):
    """Its adjoint is wrong where ``off`` is not 1."""

    off = 1.0

    def adjoint(self, x, w, y, v):
        a, b = super().adjoint(x, w, y, v)
        return self.off * a, b


class OnPlane(Scaled):
    """The same on the plane of entries that sum to 1."""

    def equality_constraints(self, x, w, y):
        return y.sum() - 1

    def solve(self, x, w):
        d = 1 / (1 + w**2)
        return d * (
            self.s * x + (1 - (d * self.s * x).sum(-1, keepdim=True)) / d.sum(-1, keepdim=True)
        )

    def adjoint(self, x, w, y, v):
        d = 1 / (1 + w**2)
        u = d * (v - (d * v).sum(-1, keepdim=True) / d.sum(-1, keepdim=True))
        return self.s * u, -2 * w * y * u


class Keeping(Scaled):
    """Its solver keeps what the way back needs, and says how well that is solved."""

    def solve_problem(self, problem, start=None):
        x, w = problem.inputs
        d = 1 / (1 + w**2)
        ended = torch.full((len(x),), int(Status.CONVERGED))
        return Solution(self.s * x * d, ended, torch.zeros_like(ended), "own", {"d": d})

    solve = DeclarativeNode.solve

    def adjoint(self, x, w, y, v, aux):
        u = v * aux["d"]
        return Adjoint((self.s * u, -2 * w * y * u), v.new_zeros(len(v)))


class Frame(DeclarativeNode):
    """The frame nearest to X: polar(X), by SVD and its derivative."""

    input_dims = (2,)
    batched_solve = True
    manifold = Stiefel()

    def objective(self, X, y):
        return -(X * y).sum()

    def solve(self, X):
        U, _, V = torch.linalg.svd(X, full_matrices=False)
        return U @ V

    def adjoint(self, X, y, v):
        with torch.enable_grad():
            X = X.detach().requires_grad_()
            return torch.autograd.grad(self.solve(X), X, v)


def inputs(node, lead=(3,), dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {Frame: [(6, 3)], NearestETF: [(7, 5), (7, 5)]}.get(type(node), [(4,), (4,)])
    xs = [torch.randn(*lead, *s, generator=generator, dtype=torch.float64) for s in shapes]
    if isinstance(node, NearestETF):
        xs = [xs[0] / xs[0].norm(), torch.linalg.qr(xs[1]).Q]
    return [x.to(dtype).requires_grad_() for x in xs]


def gradients(layer, xs):
    y = layer(*xs)
    v = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)
    return y.detach(), *torch.autograd.grad(y, xs, v)


@pytest.mark.parametrize(
    "node", [Scaled(), OnPlane(), Keeping(), Frame(), NearestETF(), NearestETF(reduced=True)]
)
@pytest.mark.parametrize(
    "dtype", [pytest.param(torch.float64, marks=pytest.mark.long), torch.float32]
)
@pytest.mark.parametrize(
    "lead",
    [pytest.param((), marks=pytest.mark.long), pytest.param((3,), marks=pytest.mark.long), (2, 2)],
)
def test_they_give_what_an_eager_call_gives(node, dtype, lead):
    layer, other = short(node), eager(node)
    for seed in range(3):
        xs = inputs(node, lead, dtype, seed)
        # The same functions on the same numbers; strides may differ, and with them the order of sums, of
        # a frame through an S of condition 1/δ at most.
        for a, b in zip(gradients(layer, xs), gradients(other, xs), strict=True):
            bound = factorised(dtype, 7, size=float(b.norm()), condition=1e3)
            torch.testing.assert_close(a, b, atol=bound, rtol=0)
        here, there = layer.certificate, other.certificate
        assert here.form == there.form == "closed_form"
        assert here.verdicts() == there.verdicts() and torch.equal(here.settled, there.settled)
        assert here.stationarity.shape == there.stationarity.shape == torch.Size(lead)
    assert layer.short.taken >= 3 and layer.short.reasons() == []


class Held(Scaled):
    """With a factor that the node holds, which no figure moves."""

    def __init__(self):
        super().__init__()
        self.one = torch.ones(4, dtype=torch.float64)

    def objective(self, x, w, y):
        return super().objective(x * self.one, w, y)


def off(node, step):
    """The node with a solution that is so far off, relative and in each entry by another number."""

    class Off(type(node)):
        def solve(self, *xs):
            y = super().solve(*xs)
            return y * (
                1 + step * torch.linspace(-1, 1, y[0].numel(), dtype=y.dtype).reshape(y[0].shape)
            )

    other = object.__new__(Off)
    vars(other).update(vars(node))
    return other


def frames(d, C, lead):
    X = torch.randn(*lead, d, C, dtype=torch.float64)
    return [X.requires_grad_()]


@pytest.mark.parametrize(
    ("node", "made"),
    [
        (Scaled(), lambda lead: inputs(Scaled(), lead)),
        (Held(), lambda lead: inputs(Scaled(), lead)),
        (OnPlane(), lambda lead: inputs(Scaled(), lead)),
        (Frame(), lambda lead: frames(6, 3, lead)),  # three probes, each with a normal part
        (Frame(), lambda lead: frames(70, 3, lead)),  # rows that are scaled as a whole
        # too large for one batch
        pytest.param(Frame(), lambda lead: frames(1100, 45, lead), marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("lead", [(), (3,)])
@pytest.mark.parametrize("step", [1e-8, 1e-7])
@pytest.mark.covering
def test_the_figures_are_those_of_the_certificate(node, made, lead, step):
    node = off(node, step)
    layer, other, xs = short(node), eager(node), made(lead)
    for _ in range(2):
        layer(*xs), other(*xs)
    assert layer.short.taken == 2
    here, there = layer.certificate, other.certificate
    # A relative change of √eps is rounded to eps, the difference of two gradients with it; that of sums
    # of n terms, √n in the mean square. r is known to eps beside the step that it is off by.
    n = xs[0].shape[-2:].numel() if type(node).__mro__[1] is Frame else 4
    # Of rows that are scaled a figure is right to its own size.
    bound = rounding(torch.float64, 30 * n**0.5, condition=1 / step) + 2 * step
    for a, b in ((here.stationarity, there.stationarity), (here.feasibility, there.feasibility)):
        torch.testing.assert_close(a, b, rtol=bound, atol=0)
    assert there.stationarity.min() > step / 100
    assert torch.equal(here.settled, there.settled) and not there.settled.any()


@pytest.mark.parametrize("node", [OnPlane(), Frame()])
def test_every_derivative_is_there(node):
    layer, xs = short(node), inputs(node, (2,))
    gradients(layer, xs)
    taken = layer.short.taken
    assert torch.autograd.gradcheck(layer, xs)
    assert torch.autograd.gradgradcheck(layer, xs)
    assert layer.short.taken > taken


def test_a_number_that_changes_between_the_passes_is_as_it_was():
    for made in (Scaled, OnPlane, Keeping):
        node = made(2.0)
        layer, xs = short(node), inputs(node)
        right = gradients(layer, xs)[1:]
        y = layer(*xs)
        node.s = -5.0
        v = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)
        found = torch.autograd.grad(y, xs, v)
        assert all(torch.equal(a, b) for a, b in zip(found, right, strict=True))
        # And the next call sees it.
        for a, b in zip(gradients(layer, xs), gradients(eager(made(-5.0)), xs), strict=True):
            assert torch.equal(a, b)


def test_an_input_that_is_written_on_between_the_passes_is_refused():
    node = Scaled()
    layer, xs = short(node), inputs(node)
    gradients(layer, xs)
    y = layer(*xs)
    with torch.no_grad():
        xs[1].mul_(2)
    with pytest.raises((InputError, RuntimeError)):
        torch.autograd.grad(y.sum(), xs)


def test_an_adjoint_that_turns_wrong_is_found_within_a_hundred_calls():
    node = Turning()
    layer, xs = short(node, policy="raise"), inputs(node)
    for _ in range(3):
        gradients(layer, xs)
    node.off = 1.5

    def many():
        for _ in range(layer.comparisons.every + 1):
            gradients(layer, xs)

    with pytest.raises(ddnkit.UntrustedGradientError):
        many()


def test_a_wrong_adjoint_is_never_short():
    class Wrong(Scaled):
        def adjoint(self, x, w, y, v):
            return tuple(2 * g for g in super().adjoint(x, w, y, v))

    layer = short(Wrong())
    for seed in range(3):
        with pytest.warns(ddnkit.DdnkitWarning):
            gradients(layer, inputs(layer.node, (seed + 1,)))
    assert layer.short.taken == 0


def test_an_adjoint_may_work_in_the_memory_of_v_and_give_back_what_it_was_given():
    class Careless(Keeping):
        def adjoint(self, x, w, y, v, aux):
            u = v.mul_(aux["d"])
            return Adjoint((u.mul_(self.s), u * (-2 / self.s) * w * y))

    class Giving(DeclarativeNode):
        """y = x, and the gradient is v itself."""

        input_dims = (1,)
        batched_solve = True

        def objective(self, x, y):
            return ((y - x) ** 2).sum()

        def solve(self, x):
            return x.clone()

        def adjoint(self, x, y, v):
            return (v,)

    layer, right = short(Careless()), eager(Keeping())
    xs = inputs(layer.node)
    expected = gradients(right, xs)
    for _ in range(2):
        y = layer(*xs)
        v = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)
        kept = v.clone()
        for _ in range(2):
            found = torch.autograd.grad(y, xs, v, retain_graph=True)
            assert torch.equal(v, kept)
            torch.testing.assert_close(found, expected[1:])
    assert layer.short.taken
    layer = short(Giving())
    x = torch.randn(3, 4, requires_grad=True)
    for _ in range(2):
        y = layer(x)
        v = torch.ones_like(y)
        (found,) = torch.autograd.grad(y, x, v, retain_graph=True)
        found.zero_()
        assert torch.equal(v, torch.ones_like(y))
        assert torch.equal(torch.autograd.grad(y, x, v)[0], v)
    assert layer.short.taken


def test_what_is_not_solved_is_told():
    class Rough(Keeping):
        residual = 0.0
        shift = 0.0

        def solve_problem(self, problem, start=None):
            found = super().solve_problem(problem, start)
            return ddnkit.Solution(
                found.y + self.shift, found.status, found.iterations, "own", dict(found.aux)
            )

        def adjoint(self, x, w, y, v, aux):
            found = super().adjoint(x, w, y, v, aux)
            return Adjoint(found.gradients, found.residual + self.residual)

    for name, value in (("residual", 0.1), ("shift", 0.1)):
        node = Rough()
        layer = short(node, policy="raise")
        xs = inputs(node)
        for _ in range(2):
            gradients(layer, xs)
        assert layer.short.taken
        setattr(node, name, value)
        with pytest.raises(ddnkit.UntrustedGradientError):
            gradients(layer, xs)


def test_a_tensor_that_it_holds_and_that_wants_a_gradient_goes_the_eager_way():
    class Held(DeclarativeNode):
        input_dims = (1,)
        batched_solve = True

        def __init__(self):
            self.c = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

        def objective(self, x, y):
            return ((y - self.c * x) ** 2).sum()

        def solve(self, x):
            return self.c * x

        def adjoint(self, x, y, v):
            return (self.c * v,)

    layer = short(Held())
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    for _ in range(2):
        found = torch.autograd.grad(layer(x).sum(), [x, layer.node.c])
        torch.testing.assert_close(found[0], 2 * torch.ones_like(x))
        torch.testing.assert_close(found[1], x.detach().sum())
    assert layer.short.taken == 0 and layer.short.reasons()


def test_without_a_gradient_and_in_inference():
    node = Keeping()
    layer, xs = short(node), inputs(node)
    right = gradients(eager(node), xs)[0]
    with torch.no_grad():
        assert torch.equal(layer(*xs), right) and torch.equal(layer(*xs), right)
    with torch.inference_mode():
        assert torch.equal(layer(*xs), right)
    plain = [x.detach() for x in xs]
    y = layer(*plain)
    assert torch.equal(y, right) and not y.requires_grad
    assert layer.short.taken >= 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (one,) = torch.autograd.grad(layer(xs[0], plain[1]).sum(), [xs[0]])
    assert torch.equal(one, torch.autograd.grad(eager(node)(xs[0], plain[1]).sum(), [xs[0]])[0])


@pytest.mark.parametrize("policy", ["nan", "mask", "raise"])
def test_after_a_difference_every_call_is_compared(policy):
    node = Turning()
    layer, xs = short(node, policy=policy), inputs(node)
    layer.comparisons.every = 10
    right = gradients(layer, xs)

    def sound():
        try:
            found = gradients(layer, xs)
        except ddnkit.UntrustedGradientError:
            return False
        return all(bool(g.isfinite().all() and g.any()) for g in found)

    assert all(sound() for _ in range(3))
    node.off = 1.5
    told = [sound() for _ in range(25)]
    first = told.index(False)
    assert first <= layer.comparisons.every and not any(told[first:])
    # Once it is right again, one comparison says so.
    node.off = 1.0
    assert sound()
    taken = layer.short.taken
    for _ in range(3):
        assert all(map(torch.equal, gradients(layer, xs), right))
    assert layer.short.taken > taken


@pytest.mark.parametrize("turn", [0, 1])
def test_a_call_is_compared_though_every_other_one_has_no_way_back(turn):
    node = Turning()
    layer, xs = short(node, policy="raise"), inputs(node)
    layer.comparisons.every = 10
    gradients(layer, xs)
    node.off = 1.5

    def many():
        for k in range(40):
            y = layer(*xs)
            if k % 2 == turn:
                y.sum().backward()

    with pytest.raises(ddnkit.UntrustedGradientError):
        many()


@pytest.mark.parametrize("lead", [(), (2, 3)])
def test_a_solve_that_writes_on_one_tensor_changes_no_call_before(lead):
    class InOne(Scaled):
        def __init__(self):
            super().__init__()
            self.room = torch.zeros(0, dtype=torch.float64)

        def solve(self, x, w):
            found = super().solve(x, w)
            return self.room.resize_(found.shape).copy_(found)

    node = InOne()
    layer = short(node)
    a, b = inputs(node, lead, seed=1), inputs(node, lead, seed=2)
    expected = gradients(eager(Scaled()), a)
    gradients(layer, b)
    y = layer(*a)
    layer(*b)
    v = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)
    found = y.detach(), *torch.autograd.grad(y, a, v)
    assert layer.short.taken and all(map(torch.equal, found, expected))


SCALE = {0: 2.0}


class Anyhow(Scaled):
    """s = 2, kept in one place or another; and what the adjoint alone uses."""

    def __init__(self, place):
        self.place, self.factor, self.factors = place, 1.0, [torch.ones((), dtype=torch.float64)]
        self.tensor = torch.tensor(2.0, dtype=torch.float64)
        self.far = type("Far", (), {"s": 2.0})()
        self.array = np.array(2.0)

    @property
    def s(self):
        return {
            "tensor": self.tensor,
            "object": self.far.s,
            "array": float(self.array),
            "global": SCALE[0],
        }[self.place]

    def adjoint(self, x, w, y, v):
        return tuple(self.factor * self.factors[0] * g for g in super().adjoint(x, w, y, v))

    def change(self, monkeypatch):
        if self.place == "tensor":
            self.tensor.fill_(5.0)
        elif self.place == "object":
            self.far.s = 5.0
        elif self.place == "array":
            self.array.fill(5.0)
        else:
            monkeypatch.setitem(SCALE, 0, 5.0)


@pytest.mark.parametrize("made", [short, eager])
@pytest.mark.parametrize("place", ["tensor", "object", "array", "global"])
def test_what_is_not_at_hand_any_more_is_refused(made, place, monkeypatch):
    node = Anyhow(place)
    layer, xs = made(node), inputs(node)
    gradients(layer, xs)
    y = layer(*xs)
    node.change(monkeypatch)
    with pytest.raises(InputError):
        y.sum().backward()
    # The next call is of the node as it is now.
    right = gradients(eager(Scaled(5.0)), xs)
    assert all(torch.allclose(a, b) for a, b in zip(gradients(layer, xs), right, strict=True))


@pytest.mark.parametrize("made", [short, eager])
def test_what_the_adjoint_alone_uses_is_as_it_was(made):
    node = Anyhow("object")
    layer, xs = made(node), inputs(node)
    right = gradients(layer, xs)[1:]
    for name, value in (("factor", 3.0), ("factors", [3.0])):
        y = layer(*xs)
        v = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)
        before = getattr(node, name)
        setattr(node, name, value)
        assert all(map(torch.equal, torch.autograd.grad(y, xs, v), right))
        setattr(node, name, before)
    y = layer(*xs)
    node.factors[0] = 3.0
    assert all(map(torch.equal, torch.autograd.grad(y, xs, v), right))


@pytest.mark.parametrize("made", [short, eager])
def test_what_an_adjoint_returns_is_looked_at(made):
    class Odd(Keeping):
        gradient = residual = staticmethod(lambda x: x)

        def adjoint(self, x, w, y, v, aux):
            found = super().adjoint(x, w, y, v, aux)
            first, *others = found.gradients
            return Adjoint((self.gradient(first), *others), self.residual(found.residual))

    node = Odd()
    layer, xs = made(node), inputs(node)

    def refused(name, change):
        node.gradient = node.residual = Odd.gradient
        gradients(layer, xs)
        setattr(node, name, change)
        with pytest.raises(InputError, match=r"Odd\.adjoint"):
            gradients(layer, xs)

    for change in (
        torch.Tensor.numpy,
        torch.Tensor.tolist,
        torch.Tensor.to_sparse,
        lambda g: g + 0j,
    ):
        refused("gradient", change)
    for change in (float, lambda r: r[:1], lambda r: r.sum(), lambda r: torch.cat([r, r])):
        refused("residual", lambda r, change=change: change(r.sum() if change is float else r))


@pytest.mark.parametrize("made", [short, eager])
def test_a_gradient_may_be_written_on_and_has_no_graph(made):
    class Repeating(DeclarativeNode):
        """y = x s(p), of which the gradient for p is the same in each entry."""

        input_dims = (1, 1)
        batched_solve = True

        def objective(self, x, p, y):
            return ((y - x - p.sum()) ** 2).sum()

        def solve(self, x, p):
            return x + p.sum(-1, keepdim=True)

        def adjoint(self, x, p, y, v):
            return v.clone().requires_grad_(), v.sum(-1, keepdim=True).expand_as(p)

    node = Repeating()
    layer, xs = made(node), inputs(Scaled())
    for _ in range(2):
        found = gradients(layer, xs)[1:]
        assert not any(g.requires_grad for g in found)
        for g in found:
            g.mul_(torch.arange(float(g.numel())).reshape(g.shape))


class Room:
    """A place on a node that nobody follows."""


class Remembering(Scaled):
    """What its solve leaves on the node for the adjoint is that of the last call."""

    def __init__(self, in_place):
        super().__init__()
        self.in_place, self.room = in_place, Room()
        self.room.d = self.d = torch.zeros(3, 4, dtype=torch.float64)

    def solve(self, x, w):
        d = 1 / (1 + w**2)
        if self.in_place:
            self.d.copy_(d)
        else:
            self.room.d = d
        return self.s * x * d

    def adjoint(self, x, w, y, v):
        u = v * (self.d if self.in_place else self.room.d)
        return self.s * u, -2 * w * y * u


@pytest.mark.parametrize("made", [short, eager])
@pytest.mark.parametrize("in_place", [False, True])
def test_what_a_solve_leaves_on_the_node_is_not_silently_that_of_another_call(made, in_place):
    layer = made(Remembering(in_place), policy="raise")
    a, b = inputs(layer.node, seed=1), inputs(layer.node, seed=2)
    right = [gradients(eager(Scaled()), xs)[1:] for xs in (a, b)]
    told = 0
    for xs in (a, b):
        gradients(layer, xs)
    for _ in range(3):
        ys = layer(*a), layer(*b)
        for xs, y, expected in zip((a, b), ys, right, strict=True):
            v = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)
            try:
                found = torch.autograd.grad(y, xs, v)
            except ddnkit.UntrustedGradientError:
                told += 1
                continue
            torch.testing.assert_close(found, expected)
    assert told


def test_calls_with_others_in_between_are_short_all_the_same():
    layer = short(Keeping(), policy="raise")
    a, b = inputs(layer.node, seed=1), inputs(layer.node, seed=2)
    right = [gradients(eager(Keeping()), xs)[1:] for xs in (a, b)]
    for _ in range(3):
        ys = layer(*a), layer(*b)
        for xs, y, expected in zip((a, b), ys, right, strict=True):
            v = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)
            assert all(map(torch.equal, torch.autograd.grad(y, xs, v), expected))
    assert layer.short.taken == 6
