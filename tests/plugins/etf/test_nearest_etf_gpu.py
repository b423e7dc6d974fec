"""The same code on a CUDA device: results, devices and dtypes."""

import pytest
import torch
from bounds import condition, rounding
from ddnkit_etf import NearestETF, NearestETFClassifier, haar_frame, nearest_etf
from ddnkit_manifolds import Procrustes
from ddnkit_train import AGD
from steps import losses_of_steps

from ddnkit import DeclarativeLayer

pytestmark = pytest.mark.gpu

#: ImageNet's classes on the features of a ResNet-50.
SIZE = (2048, 1000)


@pytest.fixture
def no_waiting():
    """Gives a context in which waiting for the device is an error."""

    class NoWaiting:
        def __enter__(self):
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")

        def __exit__(self, *_):
            torch.cuda.set_sync_debug_mode("default")

    yield NoWaiting()
    torch.cuda.set_sync_debug_mode("default")


def problem(d, C):
    H = torch.randn(d, C)
    return H / H.norm(), haar_frame(d, C), torch.randn(d, C)


def tolerance_of(H, P):
    """Rounding moves U and its gradient by the condition of A = 2HM̃ + δP, and √d for products of d terms."""
    A = NearestETF().procrustes_target(H.double().unsqueeze(0), P.double().unsqueeze(0))
    return rounding(torch.float32, condition(A) + len(H) ** 0.5 + 4)


def layer_by_products():
    return DeclarativeLayer(NearestETF(solver=Procrustes("products")), policy="nan")


@pytest.mark.parametrize(("d", "C"), [(12, 5), (512, 100), (2048, 1000)])
def test_solution_and_gradient_are_those_of_the_cpu(d, C):
    H, P, V = torch.randn(d, C), haar_frame(d, C), torch.randn(d, C)
    H = H / H.norm()
    found = []
    for device in ("cpu", "cuda"):
        h = H.to(device).requires_grad_()
        U = nearest_etf(h, P.to(device), policy="raise")
        U.backward(V.to(device))
        assert U.device.type == h.grad.device.type == device
        found.append((U.detach().cpu(), h.grad.cpu()))
    (U_cpu, g_cpu), (U_gpu, g_gpu) = found
    tolerance = tolerance_of(H, P)
    assert (U_gpu - U_cpu).norm() < tolerance * C**0.5
    assert (g_gpu - g_cpu).norm() < tolerance * g_cpu.norm()


def test_a_training_step_runs_there():
    backbone = torch.nn.Linear(32, 16, bias=False).cuda()
    head = NearestETFClassifier(16, 8).cuda()
    optimizer = AGD(backbone.parameters(), gain=2.0)
    labels = torch.arange(8, device="cuda").repeat(4)
    x = torch.randn(32, 32, device="cuda")
    losses = losses_of_steps(head, backbone, optimizer, x, labels)
    assert float(losses[-1]) < float(losses[0])
    assert head.certificate.solved.all()


def test_agd_never_waits_for_the_device():
    weight = torch.nn.Parameter(torch.randn(16, 8, device="cuda"))
    optimizer = AGD([weight], gain=1.0)
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert weight.isfinite().all()


@pytest.mark.parametrize(("d", "C"), [(64, 10), SIZE])
def test_forward_and_backward_never_wait_for_the_device(d, C, no_waiting):
    H, P, V = (x.cuda() for x in problem(d, C))
    H.requires_grad_()
    layer = DeclarativeLayer(NearestETF(), policy="nan")
    layer(H, P).backward(V)  # libraries are loaded, and their memory is taken
    with no_waiting:
        layer(H, P).backward(V)
    assert H.grad.isfinite().all()
    assert layer.certificate.differentiable.all()
    assert layer.certificate.adjoint_residual is not None


@pytest.mark.parametrize("features", [16, 7])
def test_a_training_step_never_waits_for_the_device(features, no_waiting):
    head = NearestETFClassifier(features, 8).cuda()
    backbone = torch.nn.Linear(32, features).cuda()
    x, labels = torch.randn(64, 32, device="cuda"), torch.arange(8, device="cuda").repeat(8)

    def step():
        torch.nn.functional.cross_entropy(head(backbone(x), labels), labels).backward()

    step()
    step()
    with no_waiting:
        step()
    assert backbone.weight.grad.isfinite().all()


def test_gradient_at_the_size_of_imagenet_is_that_of_float64():
    H, P, V = problem(*SIZE)
    found = []
    for dtype, solver in ((torch.float64, "procrustes"), (torch.float32, Procrustes("products"))):
        h = H.to("cuda", dtype).requires_grad_()
        layer = DeclarativeLayer(NearestETF(solver=solver), policy="raise")
        U = layer(h, P.to("cuda", dtype))
        U.backward(V.to("cuda", dtype))
        found.append((U.detach().double(), h.grad.double()))
    (U, gradient), (U32, gradient32) = found
    tolerance = tolerance_of(H, P)
    assert (U32 - U).norm() < tolerance * U.norm()
    assert (gradient32 - gradient).norm() < tolerance * gradient.norm()


def test_memory_at_the_size_of_imagenet():
    H, P, V = (x.cuda() for x in problem(*SIZE))
    H.requires_grad_()
    layer = layer_by_products()
    layer(H, P).backward(V)
    H.grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    layer(H, P).backward(V)
    assert torch.cuda.max_memory_allocated() - before <= 128 * 2**20


def test_forward_in_a_cuda_graph():
    H, P, _ = (x.cuda() for x in problem(512, 100))
    layer = layer_by_products()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        for _ in range(3):
            layer(H, P)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        U = layer(H, P)
    other = torch.randn_like(H)
    H.copy_(other / other.norm())
    graph.replay()
    with torch.no_grad():
        torch.testing.assert_close(U, layer(H, P))
