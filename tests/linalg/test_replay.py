"""ddnkit.linalg.replay and .items: shorter ways to the same numbers, and when they are not taken."""

import itertools
import weakref

import numpy as np
import pytest
import torch
from bounds import rounding
from hypothesis import given, settings
from hypothesis import strategies as st
from work import Work

import ddnkit.backward.krylov
from ddnkit import DeclarativeLayer, DeclarativeNode
from ddnkit.linalg.items import apply, distinct, is_shared, merge_equal
from ddnkit.linalg.replay import FIRST_CALLS, Replayed


def hessian(function, point):
    """v ↦ D²f v, as a backward form takes it: a backward pass through the gradient."""
    with torch.enable_grad():
        y = point.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(function(y), y, create_graph=True)

    def product(v):
        return torch.autograd.grad(gradient, y, v, retain_graph=True)[0]

    return product


def network(y):
    generator = torch.Generator().manual_seed(5)
    W = torch.randn(7, y.shape[-1], generator=generator, dtype=y.dtype)
    return torch.nn.functional.softplus(torch.tanh(y @ W.T)).square().sum()


def pieces(y):
    """Views, indices, a sum by index, in-place work inside the backward pass."""
    index = torch.tensor([0, 2, 2, 1])
    chosen = y[..., index] * y.roll(1, -1)[..., :4]
    total = torch.zeros(3, dtype=y.dtype).index_add(0, torch.tensor([0, 1, 1, 2]), chosen.sum(0))
    return (total.exp() + y[..., 1:].cumsum(-1).sin().amax()).sum() + y.prod(-1).sum()


FUNCTIONS = {
    "quadratic": lambda y: (y * y.flip(-1)).sum(),
    "quartic": lambda y: (y.square().sum(-1) ** 2).sum(),
    "network": network,
    "pieces": pieces,
    "logsumexp": lambda y: torch.logsumexp(y, -1).sum(),
    "batched product": lambda y: torch.bmm(y.unsqueeze(-1), y.cos().unsqueeze(-2)).square().sum(),
    "linear": lambda y: y.sum(),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "linear"])
def test_replays_what_the_map_gives(name, dtype):
    torch.manual_seed(0)
    plain = hessian(FUNCTIONS[name], torch.randn(3, 5, dtype=dtype))
    calls = []

    def counted(v):
        calls.append(v)
        return plain(v)

    replayed = Replayed(counted)
    vectors = torch.randn(12, 3, 5, dtype=dtype)
    images = [replayed(v) for v in vectors]
    assert len(calls) == FIRST_CALLS + 2, "recorded, held against one more call, then replayed"
    for v, image in zip(vectors, images, strict=True):
        torch.testing.assert_close(image, plain(v))
    assert not any(a.data_ptr() == b.data_ptr() for a, b in itertools.pairwise(images))
    # Another shape goes the plain way.
    with pytest.raises(RuntimeError):
        replayed(torch.randn(2, 5, dtype=dtype))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), m=st.integers(1, 6), batch=st.integers(1, 4))
def test_replay_is_the_map_for_any_batch_and_size(seed, m, batch):
    generator = torch.Generator().manual_seed(seed)
    D = torch.randn(m, m, generator=generator, dtype=torch.float64)
    point = torch.randn(batch, m, generator=generator, dtype=torch.float64)
    plain = hessian(lambda y: ((y @ D).sin() ** 2 + y**4).sum(), point)
    replayed = Replayed(plain)
    for v in torch.randn(8, batch, m, generator=generator, dtype=torch.float64):
        torch.testing.assert_close(replayed(v), plain(v))


def test_replay_does_a_part_of_the_work():
    plain = hessian(network, torch.randn(3, 5, dtype=torch.float64))
    replayed = Replayed(plain)
    vectors = torch.randn(8, 3, 5, dtype=torch.float64)
    for v in vectors:
        replayed(v)
    with Work() as first:
        plain(vectors[0])
    with Work() as second:
        replayed(vectors[0])
    assert second.calls < first.calls
    assert second.bytes <= vectors[0].numel() * 8, "nothing new but the image"


def dropping(v):
    return torch.nn.functional.dropout(v, 0.5)


def branching(v):
    return 2 * v if float(v.sum()) > 0 else 3 * v


def leaving_torch(v):
    return torch.from_numpy(np.asarray(v) * 2)


def data_dependent_shape(v):
    return v + torch.nonzero(v > 0).shape[0]


@pytest.mark.parametrize("function", [branching, leaving_torch, data_dependent_shape])
def test_what_cannot_be_replayed_is_called(function):
    replayed = Replayed(function)
    generator = torch.Generator().manual_seed(1)
    for v in torch.randn(20, 2, 3, generator=generator, dtype=torch.float64):
        torch.testing.assert_close(replayed(v), function(v), rtol=0, atol=0)


def test_random_maps_are_called_each_time():
    calls = []
    replayed = Replayed(lambda v: calls.append(1) or dropping(v))
    for v in torch.ones(10, 2, 3):
        replayed(v)
    assert len(calls) == 10


def test_a_map_that_changes_what_is_outside_is_called_each_time():
    counter = torch.zeros(())

    def counting(v):
        counter.add_(1)
        return 2 * v

    replayed = Replayed(counting)
    for v in torch.randn(10, 2, 3):
        torch.testing.assert_close(replayed(v), 2 * v)
    assert counter == 10


def test_a_large_map_is_not_kept_while_it_is_recorded(monkeypatch):
    monkeypatch.setattr("ddnkit.linalg.replay.MOST_BYTES", 3000)
    peak = 0

    def large(v):
        nonlocal peak
        for _ in range(20):
            v = v.sin()
            peak = max(peak, sum(r() is not None for r in references))
            references.append(weakref.ref(v))
        return v

    references = []
    replayed = Replayed(large)
    for v in torch.randn(FIRST_CALLS + 1, 2, 100):
        references.clear()
        replayed(v)
    assert peak <= 5, "a few results at a time, not all twenty"


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr("ddnkit.linalg.replay.MOST_BYTES", 100)
    calls = []
    replayed = Replayed(lambda v: calls.append(1) or v.sin())
    for v in torch.randn(10, 2, 30):
        replayed(v)
    assert len(calls) == 10


def test_a_wrong_recording_shows_in_the_residual(monkeypatch):
    """The residual is by the map itself: a quicker one that lies cannot pass for it."""
    monkeypatch.setattr(ddnkit.backward.krylov, "Replayed", lambda apply: lambda v: 1.5 * apply(v))

    class Node(DeclarativeNode):
        input_dims = (1,)

        def objective(self, x, y):
            return (y.cosh() * torch.arange(1, 101)).sum() - x @ y

        def solve(self, x):
            return (x / torch.arange(1, 101)).asinh()

    layer = DeclarativeLayer(Node(), "krylov")
    x = torch.randn(2, 100, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    expected = 1 / (torch.arange(1, 101) * y.cosh())
    # The residual that krylov promises, 1e-12, times a condition of 100 and what cosh adds to it.
    right = (gradient - expected).norm() < 1e-12 * 1e4 * expected.norm()
    assert right or layer.certificate.adjoint_residual.max() > 1e-2


# -- items ---------------------------------------------------------------------------------------


def test_matrices_that_are_the_same_are_kept_once():
    A = torch.randn(1, 3, 5, dtype=torch.float64)
    same = merge_equal(A.repeat(4, 1, 1))
    assert is_shared(same) and same.shape == (4, 3, 5)
    assert len(distinct(same)) == 1
    v = torch.randn(2, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(apply(same, v), torch.einsum("pm,kbm->kbp", A[0], v))
    for item in range(4):
        other = A.repeat(4, 1, 1)
        other[item, 1, 2] += rounding(A, 5) * other[item, 1, 2].abs()
        assert not is_shared(merge_equal(other))
        torch.testing.assert_close(
            apply(merge_equal(other), v),
            torch.einsum("bpm,kbm->kbp", other, v),
            rtol=0,
            atol=rounding(v, 5, size=10),
        )


def test_a_derivative_sees_each_items_own_matrix():
    A = torch.randn(3, 5, dtype=torch.float64)
    v = torch.randn(4, 5, dtype=torch.float64)
    leaf = A.expand(4, 3, 5).requires_grad_()
    (gradient,) = torch.autograd.grad(apply(leaf, v).sum(), leaf)
    torch.testing.assert_close(gradient, v.unsqueeze(1).expand(4, 3, 5))
    found = torch.func.grad(lambda a: apply(a, v).sum())(A.expand(4, 3, 5))
    torch.testing.assert_close(found, v.unsqueeze(1).expand(4, 3, 5))


@pytest.mark.parametrize("backward", ["krylov", "dense", "embedded_field"])
def test_shared_and_own_constraints_give_the_same_gradient(backward):
    torch.manual_seed(2)
    A = torch.randn(2, 6, dtype=torch.float64)

    class Node(DeclarativeNode):
        input_dims = (1, 1)

        def objective(self, x, b, y):
            return (y.cosh()).sum() - x @ y

        def equality_constraints(self, x, b, y):
            return A @ y - b

        def solve(self, x, b):
            y = torch.linalg.pinv(A) @ b
            for _ in range(60):
                K = torch.cat([torch.cat([y.cosh().diag(), A.T], 1),
                               torch.cat([A, A.new_zeros(2, 2)], 1)])  # fmt: skip
                right = torch.cat([x - y.sinh(), b - A @ y])
                y = y + torch.linalg.solve(K, right)[:6]
            return y

    layer = DeclarativeLayer(Node(), backward, policy="raise")
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    b = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    v = torch.randn(3, 6, dtype=torch.float64)
    together = torch.autograd.grad(layer(x, b), (x, b), v)
    certificate = layer.certificate
    alone = [torch.autograd.grad(layer(x[i], b[i]), (x, b), v[i]) for i in range(3)]
    for k, gradient in enumerate(together):
        torch.testing.assert_close(gradient, sum(one[k] for one in alone))
    assert certificate.licq.shape == (3,)
    assert (
        certificate.licq == certificate.licq[0]
    ).all()  # one matrix, of which there is one figure
