"""What calls cost, counted: no clock, so that no busy machine and no quiet one changes the answer.

A bound is what was counted when it was written. Where a change does more work and is worth it, write
down the new count; where nobody meant to, one has been caught.
"""

import collections

import pytest
import torch
from ddnkit_collapse import neural_collapse
from ddnkit_etf import ClassMeans, NearestETF, NearestETFClassifier, haar_frame
from ddnkit_manifolds import Procrustes
from ddnkit_manifolds.procrustes_products import least_ratio
from ddnkit_rfm import Laplace, agop
from work import Work

import ddnkit.backward.krylov
from ddnkit import DeclarativeLayer, testing
from ddnkit.linalg import odd_quintics
from ddnkit.linalg.sylvester import doublings_for
from ddnkit.programs import call_programs
from ddnkit.programs.program import Program


def nearest(d, C, method, policy="warn"):
    H = torch.randn(d, C)
    H = (H / H.norm()).requires_grad_()
    layer = DeclarativeLayer(NearestETF(solver=Procrustes(method)), policy=policy)
    P, V = haar_frame(d, C), torch.randn(d, C)
    layer(H, P).backward(V)  # what is made once is made here
    with Work() as forward:
        U = layer(H, P)
    with Work() as backward:
        U.backward(V)
    with torch.no_grad():
        s = torch.linalg.svdvals(layer.node.procrustes_target(H.detach().unsqueeze(0), P))
    return forward, backward, int((s < s.max() / 4).sum())


def steps_of_iteration(d, C):
    return len(odd_quintics(torch.finfo(torch.float32).eps * d * C**-0.125))


def test_nearest_etf_by_factors():
    d, C = 440, 400
    forward, backward, few = nearest(d, C, "factors")
    product = 2 * d * C * C
    # Two Gram matrices by two blocks of columns, ¾ of a product each; left vectors, those of small
    # singular values in float64 as well, and U from them; UᵀG for the multipliers, and UΣ.
    assert forward.flops == (2 * 3 / 4 + 2 + 2) * product + 2 * d * C * few
    assert forward.factorisations == {"_linalg_eigh": 1}
    # With 2 for y in memory of its own, which is the caller's.
    assert forward.bytes <= (36.2 + 2 * few / C) * 4 * d * C
    assert forward.calls <= 185
    assert backward.flops == 4 * product
    assert not backward.factorisations
    # One evaluation of the objective among it, 7 calls: whether the node is still what was solved.
    assert backward.bytes <= 12.5 * 4 * d * C
    assert backward.calls <= 47


def test_nearest_etf_by_factors_of_small_matrices():
    d, C = 64, 10
    forward, backward, _ = nearest(d, C, "factors")
    product, small = 2 * d * C * C, 2 * C**3
    # AᵀA, Z of its size, U = A Z; UᵀU, UᵀG and UΣ for the certificate.
    assert forward.flops == 5 * product + small
    # UᵀV, V S⁻¹ and U M; T̂ and M two each, and S⁻¹.
    assert backward.flops == 3 * product + 5 * small
    assert forward.calls <= 151
    # 2 of them ask what the solver said, and 7 evaluate the objective.
    assert backward.calls <= 47


def test_nearest_etf_by_products():
    d, C = 320, 256
    forward, backward, _ = nearest(d, C, "products", policy="nan")
    product, small = 2 * d * C * C, 2 * C**3
    steps = steps_of_iteration(d, C)
    # AᵀA twice, UᵀU twice, A Z, its correction, three for the completion, two of the certificate.
    tall = 2 + 2 + 1 + 1 + 3 + 2
    # G² twice, six for the completion; four a step but for the first and last; G Z; Z², Z⁴.
    square = 2 + 6 + (4 * steps - 4) + 1 + 2
    assert forward.flops == tall * product + square * small
    assert forward.factorisations == {"linalg_cholesky_ex": 2, "linalg_solve_triangular": 1}
    assert forward.bytes <= 165 * 4 * d * C  # as above, with 2 for the copy of y
    assert forward.calls <= 382
    assert not forward.waits
    assert not backward.waits
    # UᵀV, V Z and U X; the inverse, W K W, three a doubling less one, the residual, and T Z
    doublings = doublings_for(least_ratio(d, C), torch.float32)
    assert backward.flops == 3 * product + (1 + 2 + 3 * doublings - 1 + 1 + 1) * small
    assert backward.factorisations == {"linalg_cholesky_ex": 1, "linalg_solve_triangular": 1}
    # 2.6 of it, and 7 calls, evaluate the objective.
    assert backward.bytes <= 78.9 * 4 * d * C
    assert backward.calls <= 159


def test_krylov_on_two_hundred_unknowns(monkeypatch):
    m, count = 200, []
    original = ddnkit.backward.krylov.hessian_operator

    def counted(*given):
        G = original(*given)

        def product(v):
            count.append(len(v))
            return G(v)

        return product

    monkeypatch.setattr(ddnkit.backward.krylov, "hessian_operator", counted)
    # Curvatures from 1 to 4: conjugate gradients gain a factor of 3 an iteration.
    w = torch.linspace(1, 4, m, dtype=torch.float64)
    t, A = torch.randn(m, dtype=torch.float64), torch.randn(2, m, dtype=torch.float64)
    b, v = torch.randn(2, dtype=torch.float64), torch.randn(m, dtype=torch.float64)
    layer = DeclarativeLayer(testing.WeightedLeastSquares(), "krylov", policy="raise")
    layer(w, t.requires_grad_(), A, b).backward(v)
    assert len(count) <= 27
    assert sum(count) == len(count)


def test_class_means():
    N, d, C = 96, 40, 12
    features, labels = torch.randn(N, d), torch.arange(C).repeat(N // C)
    means = ClassMeans(d, C)
    with Work() as work:
        means(features, labels)
    assert work.flops == 2 * N * d * C
    assert not work.waits
    # 18 of them, and a tensor of the means' size, tell means that are rounding alone, or no number,
    # from means to go on from; 6, and another tensor, keep squares of the means from overflowing.
    assert work.calls <= 57
    assert work.bytes <= 25_000 + 2 * 4 * d * C


def test_metrics_of_collapse():
    N, d, C = 96, 40, 12
    features, labels = torch.randn(N, d), torch.arange(C).repeat(N // C)
    with Work() as work:
        neural_collapse(features, labels, torch.randn(C, d), features.mean(dim=0), C)
    # Samples: seen through K, and their logits and distances. Small: Gram matrices and a projector.
    assert work.flops == 3 * 2 * N * d * C + 4 * 2 * d * C * C
    assert work.factorisations == {"_linalg_eigh": 1, "_linalg_svd": 2}
    assert work.bytes <= 340_000


@pytest.mark.parametrize("method", ["factors", "products"])
def test_training_step_of_a_head(method):
    N, d, C = 64, 32, 8
    backbone = torch.nn.Linear(16, d, bias=False)
    head = NearestETFClassifier(d, C, solver=Procrustes(method))
    x, labels = torch.randn(N, 16), torch.arange(C).repeat(N // C)

    def step():
        torch.nn.functional.cross_entropy(head(backbone(x), labels), labels).backward()

    step()  # the first solves without the proximal term
    with Work() as work:
        step()
    backbone_flops = 2 * 2 * N * 16 * d  # its value and its weight's gradient
    head_flops = (2 + 3) * 2 * N * d * C  # class sums and logits, forward and back
    tall, small = 2 * d * C * C, 2 * C**3
    if method == "factors":
        # A small product for S⁻½, five for the adjoint, which has one tall product less, as has the solution.
        solve_flops = (6 + 3) * tall + (1 + 5) * small
        assert work.factorisations == {"_linalg_eigh": 1}
        # 26 of them keep what a batch without a direction, or without a number, must not change; 2 tell
        # whether an input was no number; 1 spares features of zero a gradient 1e12 times too large; 18 keep
        # squares from overflowing; 5 ask what the solver said; 7 evaluate the objective on the way back.
        assert work.calls <= 358
    else:
        steps, doublings = steps_of_iteration(d, C), doublings_for(least_ratio(d, C), torch.float64)
        solve_flops = (12 + 3) * tall + (4 * steps + 7 + 3 * doublings + 4) * small
        assert not work.waits
    assert work.flops == backbone_flops + head_flops + solve_flops


def test_agop_of_a_kernel_machine():
    n, d, C = 300, 64, 2
    X, coefficients = torch.randn(n, d), torch.randn(n, C)
    with Work() as work:
        agop(Laplace(bandwidth=5.0), X, coefficients)
    documented = 2 * n * n * C * d + 2 * n * C * d * d  # `kernel_agop`
    distances = 2 * n * n * d
    assert documented + distances <= work.flops <= 1.05 * (documented + distances)


class Counted(testing.AffineConstraint):
    """Counts how often its functions are evaluated."""

    evaluations = 0

    def objective(self, *xs, y):
        Counted.evaluations += 1
        return super().objective(*xs, y=y)


@pytest.mark.programs
def test_short_calls(monkeypatch):
    """Traces, runs of a program, and evaluations of the objective, of a call and its way back."""
    counts = collections.Counter()

    def counted(name, function):
        def call(*args):
            counts[name] += 1
            return function(*args)

        return call

    monkeypatch.setattr(call_programs, "trace", counted("traces", call_programs.trace))
    monkeypatch.setattr(Program, "__call__", counted("runs", Program.__call__))
    node = Counted()
    layer = DeclarativeLayer(node)
    xs = [x.requires_grad_() for x in testing.sample(node)]

    def called():
        counts.clear()
        Counted.evaluations = 0
        layer(*xs).sum().backward()
        return counts["traces"], counts["runs"], Counted.evaluations

    eager = [called() for _ in range(layer.short.first_calls)]
    # In a first call they are evaluated twice as often: do they change by themselves?
    assert eager[0][:2] == (0, 0)
    assert eager[-1][2] <= 12
    assert called()[0] == 2
    # Of the figures and the way back; one evaluation to see that nothing has changed.
    assert called() == (0, 2, 1)
