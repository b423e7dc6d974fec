"""A Stiefel problem without a closed form, solved by pymanopt and by geoopt, differentiated by all forms.

min tr(UᵀA U N) − ⟨B, U⟩ over St(d, C),  A symmetric, N = diag(1, …, C).
"""

import pytest
import torch
from ddnkit_manifolds import (
    ConjugateGradient,
    RiemannianLineSearch,
    RiemannianSGD,
    Stiefel,
    TrustRegions,
)

from ddnkit import DeclarativeLayer, DeclarativeNode

D, C = 6, 3
SOLVERS = {
    "pymanopt": TrustRegions(gradient_tolerance=1e-13, max_iterations=300),
    "geoopt": RiemannianSGD(gradient_tolerance=1e-12, max_iterations=50_000),
}
OTHERS = [ConjugateGradient(), RiemannianLineSearch()]
#: Of the central differences: their error is its square, and the solvers' tolerance over it.
STEP = 1e-5
#: Of the condition of this problem, which is 15, and of gradients beside what they are relative to.
CONDITION = 100


class Brockett(DeclarativeNode):
    manifold = Stiefel()
    input_dims = (2, 2)

    def __init__(self, solver):
        self.solver = solver

    def objective(self, A, B, y):
        N = torch.arange(1, y.shape[-1] + 1, dtype=y.dtype, device=y.device)
        symmetric = (A + A.mT) / 2
        return (y * (symmetric @ y) * N).sum() - (B * y).sum()

    def initial_point(self, A, B):
        return Stiefel().project(B)


def inputs():
    generator = torch.Generator().manual_seed(4)
    A = torch.randn(D, D, generator=generator, dtype=torch.float64)
    B = 4 * torch.randn(D, C, generator=generator, dtype=torch.float64)
    v = torch.randn(D, C, generator=generator, dtype=torch.float64)
    return (A + A.mT) / 2, B, v


def differences(solver, A, B, v):
    """Central differences of ⟨v, U(A, B)⟩ through re-solves, for each entry of A and B."""
    layer = DeclarativeLayer(Brockett(solver), policy="raise")
    step = STEP
    gradients = []
    with torch.no_grad():
        start = layer(A, B)
        for index, x in enumerate((A, B)):
            units = torch.eye(x.numel(), dtype=x.dtype).reshape(-1, *x.shape) * step
            ends = []
            for sign in (1, -1):
                xs = [A.expand(len(units), D, D), B.expand(len(units), D, C)]
                xs[index] = x + sign * units
                starts = start.expand(len(units), D, C).clone()
                ends.append((layer(*xs, start=starts) * v).sum((-2, -1)))
            gradients.append(((ends[0] - ends[1]) / (2 * step)).reshape(x.shape))
    return gradients


@pytest.mark.parametrize("name", ["pymanopt", pytest.param("geoopt", marks=pytest.mark.long)])
def test_gradients_agree_with_differences_through_re_solves(name):
    A, B, v = inputs()
    expected = differences(SOLVERS[name], A, B, v)
    for form in ("dense", "embedded_field", "krylov"):
        xs = [A.clone().requires_grad_(), B.clone().requires_grad_()]
        layer = DeclarativeLayer(Brockett(SOLVERS[name]), form, policy="raise", certify="full")
        found = torch.autograd.grad(layer(*xs), xs, v)
        assert layer.certificate.verdicts() == ["trusted"]
        for mine, difference in zip(found, expected, strict=True):
            error = (mine - difference).norm() / difference.norm()
            assert error < CONDITION * (1e-12 / STEP + STEP**2), (form, float(error))


def test_the_solvers_find_the_same_point():
    A, B, _ = inputs()
    solvers = [*SOLVERS.values(), *OTHERS]
    points = [DeclarativeLayer(Brockett(solver), policy="raise")(A, B) for solver in solvers]
    # The loosest of their default tolerances, 1e-7, leaves this in the solution.
    for other in points[1:]:
        torch.testing.assert_close(other, points[0], rtol=0, atol=CONDITION * 1e-7)


def test_a_line_search_that_starts_at_the_solution_stays_there():
    A, B, _ = inputs()
    layer = DeclarativeLayer(
        Brockett(RiemannianLineSearch(gradient_tolerance=1e-14)), policy="raise"
    )
    start = DeclarativeLayer(Brockett(SOLVERS["pymanopt"]), policy="raise")(A, B)
    torch.testing.assert_close(layer(A, B, start=start), start, rtol=0, atol=CONDITION * 1e-13)
