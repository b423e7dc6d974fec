"""The closed form of the nearest ETF by factors and by products: accuracy, honesty, and no waiting."""

import contextlib
import importlib

import pytest
import torch
from bounds import condition, infeasibility, rounding
from ddnkit_etf import NearestETF, NearestETFClassifier, etf_of_frame, haar_frame
from ddnkit_manifolds import Procrustes
from steps import losses_of_steps
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from work import Work

from ddnkit import DeclarativeLayer, UntrustedGradientError

METHODS = ["factors", "products"]


def class_means(d, C, kind):
    H = torch.randn(d, C, dtype=torch.float64)
    H = H - H.mean(dim=1, keepdim=True)
    if kind == "missing":
        H[:, :2] = 0
    if kind == "collapse":
        H = etf_of_frame(haar_frame(d, C, dtype=torch.float64))
    return H / H.norm(), haar_frame(d, C, dtype=torch.float64)


def condition_of(H, P, delta, reduced=False):
    """Of A = 2HM̃ + δP, whose polar factor the solution is."""
    wide = (x.detach().double().reshape(-1, *x.shape[-2:]) for x in (H, P))
    return condition(NearestETF(delta, reduced=reduced).procrustes_target(*wide))


def assert_same(found, expected, tolerance):
    assert float(((found - expected).norm() / expected.norm()).detach()) <= tolerance


def gradients(H, P, V, delta, reduced, method, dtype):
    H, P = H.to(dtype).clone().requires_grad_(), P.to(dtype).clone().requires_grad_()
    node = NearestETF(delta, reduced=reduced, solver=Procrustes(method))
    layer = DeclarativeLayer(node, policy="raise")
    U = layer(H, P)
    U.backward(V.to(dtype))
    return [x.double() for x in (U.detach(), H.grad, P.grad)], layer.certificate


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["random", "missing", "collapse"])
@pytest.mark.parametrize(
    ("d", "C", "delta", "reduced"),
    [
        (300, 260, 1e-3, False),
        (64, 10, 1e-1, False),
        (64, 10, 1e-3, False),  # the null direction has a three-hundredth of the rest
        (12, 12, 1e-1, False),
        (9, 10, 1e-1, True),
        (300, 300, 1e-1, True),
    ],
)
@pytest.mark.covering
def test_float32_against_float64(d, C, delta, reduced, kind, method):
    H, P = class_means(d, C, kind) if d >= C else (torch.randn(d, C), torch.randn(d, C))
    H = H / H.norm()
    V = torch.randn(d, C - reduced)
    exact, _ = gradients(H.float().double(), P.float().double(), V, delta, reduced, "factors",
                         torch.float64)  # fmt: skip
    found, certificate = gradients(H, P, V, delta, reduced, method, torch.float32)
    # Rounding of A moves U, and the gradient along with it, by the condition. What is computed in
    # float32 after that is a few products of at most d terms: √d of them in the mean square.
    tolerance = rounding(torch.float32, condition_of(H, P, delta, reduced) + d**0.5 + 4)
    for a, b in zip(found, exact, strict=True):
        assert_same(a, b, tolerance)
    assert certificate.feasibility < infeasibility(torch.float32, d, C - reduced)
    if method == "products":
        assert certificate.adjoint_residual < tolerance


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_its_items(method):
    H, P = torch.randn(5, 12, 4), haar_frame(12, 4)
    H[3] = 0
    H[3, :, 0] = torch.randn(12)
    H.requires_grad_()
    V = torch.randn(5, 12, 4)
    layer = DeclarativeLayer(NearestETF(0.1, solver=Procrustes(method)), policy="raise")
    U = layer(H, P)
    (gradient,) = torch.autograd.grad(U, H, V)
    for index in range(5):
        h = H[index].detach().requires_grad_()
        alone = layer(h, P)
        tolerance = rounding(U, 12, condition=condition_of(h, P, 0.1))
        assert_same(U[index], alone, tolerance)
        (expected,) = torch.autograd.grad(alone, h, V[index])
        assert_same(gradient[index], expected, tolerance)


def test_products_go_through_transforms():
    H, P, v = torch.randn(3, 7, 4), haar_frame(7, 4), torch.randn(7, 4)
    found = []
    for method in METHODS:
        layer = DeclarativeLayer(NearestETF(0.1, solver=Procrustes(method)), policy="raise")

        def loss(h, layer=layer):
            return (layer(h, P) * v).sum()

        first = torch.func.vmap(torch.func.grad(loss))(H)
        second = torch.func.jvp(torch.func.grad(loss), (H[0],), (v,))[1]
        found.append((first, second))
    for a, b in zip(*found, strict=True):
        assert_same(a, b, rounding(a, 7, condition=condition_of(H, P.expand_as(H), 0.1)))


def assert_no_gradient_in_silence(node, H, reason):
    layer = DeclarativeLayer(node, policy="raise")
    U = layer(H, haar_frame(*H.shape))
    assert layer.certificate.solved
    with pytest.raises(UntrustedGradientError, match=reason):
        U.sum().backward()
    layer = DeclarativeLayer(node, policy="nan")
    layer(H, haar_frame(*H.shape)).sum().backward()
    assert H.grad.isnan().all()


@pytest.mark.parametrize("method", METHODS)
def test_a_solution_that_is_not_unique_gives_no_gradient_in_silence(method):
    H = torch.randn(7, 5)
    H[:, :3] = 0
    node = NearestETF(0.0, reduced=True, solver=Procrustes(method))
    h = H.clone().requires_grad_()
    assert_no_gradient_in_silence(node, h, "not unique")


def test_an_adjoint_system_left_unsolved_is_not_passed_over(monkeypatch):
    # The package has a function of the module's name.
    module = importlib.import_module("ddnkit.linalg.polar_factor")
    monkeypatch.setattr(module, "doublings_for", lambda ratio, dtype: 1)
    H = torch.randn(40, 10).requires_grad_()
    node = NearestETF(1e-3, solver=Procrustes("products"))
    assert_no_gradient_in_silence(node, H, "residual")


def test_a_solution_left_unfinished_is_not_passed_over(monkeypatch):
    import ddnkit_manifolds.procrustes_products as module

    original = module.inverse_square_root
    monkeypatch.setattr(module, "inverse_square_root", lambda G, least, square: original(G, 0.3))
    layer = DeclarativeLayer(NearestETF(1e-3, solver=Procrustes("products")), policy="raise")
    with pytest.raises(UntrustedGradientError, match="MAX_ITERATIONS"):
        layer(torch.randn(40, 10), haar_frame(40, 10))


# -- no wait for the device ------------------------------------------------------------------------

HEADS = [
    (32, 8, {}),
    (7, 8, {}),  # the reduced form
    (32, 8, {"centre": "classes", "means": {"weight": "samples"}, "batch_norm": "affine"}),
    (8, 8, {"differentiate": False, "means": {"absent": "zero", "normalise": "before"}}),
]


def steps(head, device, feature_dim):
    """Training steps of a backbone and the head."""
    backbone = torch.nn.Linear(16, feature_dim, device=device)
    x = torch.randn(64, 16, device=device)
    labels = torch.arange(8, device=device).repeat(8)

    def step():
        torch.nn.functional.cross_entropy(head(backbone(x), labels), labels).backward()
        return backbone.weight.grad

    return step


@pytest.mark.parametrize(("d", "C", "settings"), HEADS)
def test_a_training_step_asks_the_device_for_nothing(d, C, settings):
    head = NearestETFClassifier(d, C, solver=Procrustes("products"), **settings)
    step = steps(head, "cpu", d)
    step()
    with Work() as work:
        gradient = step()
    assert not work.waits
    assert not {"_linalg_eigh", "_linalg_svd"} & set(work.factorisations)
    assert gradient.isfinite().all()
    assert head.certificate.solved.all()


class OnOneDevice(TorchDispatchMode):
    """Collects the operations that touch a tensor on the CPU."""

    def __init__(self):
        super().__init__()
        self.elsewhere = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
        if any(x.device.type == "cpu" for x in tensors):
            self.elsewhere.append(str(func))
        return out


@pytest.mark.parametrize(("d", "C", "settings"), HEADS)
def test_a_training_step_makes_nothing_on_another_device(d, C, settings, monkeypatch):
    # Tensors without numbers: whatever asks for a value fails, and whatever is made on the CPU to be
    # copied shows. A copy to a GPU would wait for it.
    monkeypatch.setattr(torch, "autocast", lambda *given, **named: contextlib.nullcontext())
    head = NearestETFClassifier(d, C, solver=Procrustes("products"), **settings).to("meta")
    head.started = True
    step = steps(head, "meta", d)
    with OnOneDevice() as mode:
        step()
        gradient = step()
    assert gradient.device.type == "meta"
    assert not mode.elsewhere


def losses_of_training(method):
    torch.manual_seed(1)
    head = NearestETFClassifier(16, 8, solver=Procrustes(method))
    backbone = torch.nn.Linear(32, 16)
    optimizer = torch.optim.SGD(backbone.parameters(), lr=1.0)
    x, labels = torch.randn(32, 32), torch.arange(8).repeat(4)
    return [float(loss) for loss in losses_of_steps(head, backbone, optimizer, x, labels)]


def test_products_and_factors_train_alike():
    losses = losses_of_training("factors")
    assert losses[-1] < losses[0]
    # Twenty steps, each with sums over 32 samples; the loss is convex enough for the steps not to part.
    other = losses_of_training("products")
    assert other == pytest.approx(losses, rel=rounding(torch.float32, 20 * 32))
