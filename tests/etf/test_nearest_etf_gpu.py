"""The same code on a CUDA device: results, devices and dtypes."""

import pytest
import torch
from ddnkit_etf import NearestETFClassifier, haar_frame, nearest_etf
from ddnkit_train import AGD

pytestmark = pytest.mark.gpu


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
    torch.testing.assert_close(U_gpu, U_cpu, atol=1e-5, rtol=0)
    assert (g_gpu - g_cpu).norm() < 1e-4 * g_cpu.norm()


def test_a_training_step_runs_there():
    backbone = torch.nn.Linear(32, 16, bias=False).cuda()
    head = NearestETFClassifier(16, 8).cuda()
    optimizer = AGD(backbone.parameters(), gain=2.0)
    labels = torch.arange(8, device="cuda").repeat(4)
    x = torch.randn(32, 32, device="cuda")
    losses = []
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(head(backbone(x), labels), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
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
