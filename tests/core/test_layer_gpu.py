"""The same layers on a CUDA device: the same gradients, and nothing left behind on the CPU."""

import pytest
import torch

from ddnkit import DeclarativeLayer, testing

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("form", ["dense", "embedded_field", "krylov", "auto"])
@pytest.mark.parametrize(
    "problem",
    [testing.QuadraticOnSphere(), testing.EqualityQP(), testing.RepeatedConstraint()],
    ids=lambda problem: problem.label,
)
def test_gradients_are_those_of_the_cpu(problem, form):
    found = []
    for where in ("cpu", "cuda"):
        xs = [
            x.to(where).requires_grad_() if isinstance(x, torch.Tensor) else x
            for x in testing.sample(problem, 1)
        ]
        layer = DeclarativeLayer(problem, form, policy="raise")
        y = layer(*xs)
        assert y.device.type == where
        tensors = [x for x in xs if isinstance(x, torch.Tensor)]
        first = torch.autograd.grad((y**3).sum(), tensors, create_graph=True)
        second = torch.autograd.grad(sum(g.sum() for g in first), tensors)
        found.append([t.detach().cpu() for t in (y, *first, *second)])
    for a, b in zip(*found, strict=True):
        # krylov's tolerance is 1e-12, twice over in a second derivative, and conditions are below 100.
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_krylov_at_a_size_beyond_any_matrix():
    m = 100_000
    torch.cuda.reset_peak_memory_stats()
    x = torch.randn(m, device="cuda", dtype=torch.float64, requires_grad=True)
    y = DeclarativeLayer(testing.QuadraticOnSphere(), "krylov", policy="raise")(x)
    v = torch.randn_like(y)
    (gradient,) = torch.autograd.grad(y, x, v)
    expected = (v - (v @ y.detach()) * y.detach()) / x.detach().norm()
    # krylov's tolerance, of the norm; the Hessian is the identity.
    assert (gradient - expected).norm() < 10 * 1e-12 * expected.norm()
    assert torch.cuda.max_memory_allocated() < 1e9
