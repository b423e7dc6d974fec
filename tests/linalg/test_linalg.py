"""ddnkit.linalg: vectorisation matrices, the polar factor and its adjoint, the KKT system."""

import pytest
import torch
from bounds import factorised
from hypothesis import given, settings
from hypothesis import strategies as st

from ddnkit.certificate import TOLERANCE
from ddnkit.linalg import (
    commutation_matrix,
    elimination_matrix,
    lu_factor,
    polar,
    polar_adjoint,
    solve_kkt,
    solve_tangent,
    symmetric_factors,
)

ONE = torch.ones((), dtype=torch.float64)


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 6))
def test_commutation_and_elimination(m, n):
    A = torch.randn(m, n, dtype=torch.float64)
    K = commutation_matrix(m, n, like=ONE)
    torch.testing.assert_close(K @ A.reshape(-1), A.T.reshape(-1))
    S = torch.randn(n, n, dtype=torch.float64)
    rows, columns = torch.tril_indices(n, n)
    L = elimination_matrix(n, like=ONE)
    torch.testing.assert_close(L @ S.reshape(-1), S[rows, columns])


def test_stiefel_jacobian_is_proposition_1():
    from ddnkit_manifolds import Stiefel

    d, C = 5, 3
    U = Stiefel().random((d, C), like=ONE)
    L, K = elimination_matrix(C, like=ONE), commutation_matrix(C, C, like=ONE)
    eye = torch.eye(C, dtype=torch.float64)
    # rvec(dUᵀU + UᵀdU) = (K_CC + I)(U ⊗ I_C)ᵀ rvec(dU)
    A = L @ (K + torch.eye(C * C, dtype=torch.float64)) @ torch.kron(U.contiguous(), eye).T
    torch.testing.assert_close(Stiefel().constraint_jacobian(U), A)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5), st.integers(0, 4), st.integers(0, 10**6), st.booleans())
def test_polar_and_its_adjoint(C, extra, seed, equal):
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(2, C + extra, C, generator=generator, dtype=torch.float64)
    if equal:  # all singular values alike: where differentiating an SVD breaks down
        A = 0.3 * polar(A).U
    U, Q, s = polar(A)
    eye = torch.eye(C, dtype=torch.float64).expand(2, C, C)
    torch.testing.assert_close(U.mT @ U, eye)
    torch.testing.assert_close(U @ (Q * s.unsqueeze(-2)) @ Q.mT, A)
    V = torch.randn(A.shape, generator=generator, dtype=torch.float64)
    W = torch.randn(A.shape, generator=generator, dtype=torch.float64)
    gradient = polar_adjoint(U, Q, s, V)
    step = 1e-5 * float(s.min().clamp(max=1))
    slope = ((polar(A + step * W).U - polar(A - step * W).U) * V).sum() / (2 * step)
    # Differences over a step h = 1e-5 of the least value s: (h/s)² of the third derivative, and
    # rounding over h; both relative to ‖V‖‖W‖/s, as neither side is more.
    size = float(V.norm() * W.norm() / s.min())
    atol = (1e-9 + factorised(A, C + extra) / 1e-5) * size
    torch.testing.assert_close((gradient * W).sum(), slope, rtol=0, atol=atol)
    Q2, s2 = symmetric_factors(U, A)
    torch.testing.assert_close(polar_adjoint(U, Q2, s2, V), gradient)


def kkt_problem(m, p, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    G = normal(2, m, m)
    return G + G.mT, normal(2, p, m), normal(2, m)


@pytest.mark.parametrize("rank_revealing", [True, False])
def test_both_solutions_of_the_kkt_system(rank_revealing, monkeypatch):
    import ddnkit.linalg.kkt as module

    if not rank_revealing:
        monkeypatch.setattr(module, "RANK_REVEALING_SIZE", 0)
    G, A, v = kkt_problem(6, 2)
    solved = solve_kkt(G, A, v)
    condition = 1e3  # of Gaussian matrices of this size and seed, with much to spare
    assert (solved.residual < factorised(G, 8, condition=condition)).all()
    torch.testing.assert_close(A @ solved.z.unsqueeze(-1), torch.zeros(2, 2, 1).double())
    tangent = torch.eye(6).double() - A.mT @ torch.linalg.inv(A @ A.mT) @ A
    z, residual = solve_tangent(G, tangent, v)
    assert (residual < factorised(G, 6, condition=condition)).all()
    torch.testing.assert_close(z, solved.z)
    free = solve_kkt(G, None, v)
    torch.testing.assert_close(free.z, -torch.linalg.solve(G, v))


def test_singular_hessian_dependent_constraints_and_bad_scaling():
    # min ½(y₁−x₁)² s.t. 1e8(y₂−x₂) = 0, twice: H singular, A of rank one and of another size
    G = torch.diag(torch.tensor([1e-6, 0.0])).double().unsqueeze(0)
    A = 1e8 * torch.tensor([[0.0, 1.0], [0.0, 2.0]]).double().unsqueeze(0)
    v = torch.tensor([[1.0, 1.0]]).double()
    solved = solve_kkt(G, A, v)
    # Whatever rounding makes of fourteen orders of magnitude between the entries, a certificate passes.
    assert solved.residual < TOLERANCE[G.dtype]
    torch.testing.assert_close(solved.z, torch.tensor([[-1e6, 0.0]]).double())


def test_an_unsolvable_system_has_a_large_residual():
    G = torch.diag(torch.tensor([1.0, 0.0])).double().unsqueeze(0)
    assert solve_kkt(G, None, torch.tensor([[1.0, 1.0]]).double()).residual > 0.5
    assert solve_kkt(G, None, torch.zeros(1, 2).double()).residual == 0


def test_a_bad_item_does_not_spoil_its_batch():
    G, A, v = kkt_problem(4, 1)
    expected = solve_kkt(G, A, v)
    G = G.clone()
    G[0, 0, 0] = torch.nan
    solved = solve_kkt(G, A, v)
    assert solved.residual[0].isnan()
    torch.testing.assert_close(solved.z[1], expected.z[1])
    tangent = torch.eye(4).double().expand(2, 4, 4)
    z, residual = solve_tangent(G, tangent, v)
    assert residual[0].isnan()
    torch.testing.assert_close(z[1], -torch.linalg.solve(G[1], v[1]))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_batch_is_factorised_rightly_with_any_number_of_threads(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for shape in [(3, 40), (3, 200), (2, 2, 151), (1, 300)]:
            A = torch.randn(*shape, shape[-1]).double() + 3 * shape[-1] ** 0.5 * torch.eye(
                shape[-1]
            )
            b = torch.randn(*shape, 2).double()
            x = torch.linalg.lu_solve(*lu_factor(A), b)
            assert (A @ x - b).norm() < factorised(A, shape[-1]) * b.norm()
    finally:
        torch.set_num_threads(before)
