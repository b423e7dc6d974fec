"""ddnkit.linalg: matrix-free solvers and extreme eigenvalues, against dense factorisations."""

import pytest
import torch
from bounds import eps, factorised, rounding
from hypothesis import given, settings
from hypothesis import strategies as st

from ddnkit.linalg import minres
from ddnkit.linalg.arnoldi import gmres
from ddnkit.linalg.krylov import TOLERANCES, KrylovSolution, conjugate_gradient
from ddnkit.linalg.lanczos import extreme_eigenvalues

SOLVERS = [conjugate_gradient, minres, gmres]
SYMMETRIC = [conjugate_gradient, minres]
DTYPES = [torch.float64, torch.float32]
#: The residual that is promised in float64.
RESIDUAL = TOLERANCES[torch.float64]


def symmetric(eigenvalues, seed=0):
    """Matrices with the given eigenvalues (..., m) and random eigenvectors."""
    generator = torch.Generator().manual_seed(seed)
    shape = (*eigenvalues.shape, eigenvalues.shape[-1])
    Q = torch.linalg.qr(torch.randn(shape, generator=generator, dtype=eigenvalues.dtype)).Q
    A = (Q * eigenvalues.unsqueeze(-2)) @ Q.mT
    return (A + A.mT) / 2


def spectrum(batch, m, condition=100.0, dtype=torch.float64):
    return torch.linspace(1 / condition, 1, m, dtype=dtype).expand(batch, m).clone()


def product(A):
    return lambda v: (A @ v.unsqueeze(-1)).squeeze(-1)


def relative(A, x, b):
    return (b - product(A)(x)).norm(dim=-1) / b.norm(dim=-1)


def solved(A, b):
    """One by one: in a batch of so many rows torch's own is not to be relied on (`lu_factor`)."""
    items = zip(A.reshape(-1, *A.shape[-2:]), b.reshape(-1, b.shape[-1]), strict=True)
    return torch.stack([torch.linalg.solve(M, v) for M, v in items]).reshape(b.shape)


def assert_solves(solution, A, b, condition=100.0):
    """To the residual that is promised, which the condition enlarges in x."""
    rtol = condition * (TOLERANCES[b.dtype] + factorised(b, b.shape[-1]))
    expected = solved(A, b)
    error = (solution.x - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert (error <= rtol).all(), error
    assert solution.x.dtype == solution.residual.dtype == b.dtype
    assert solution.iterations.dtype == torch.long
    assert (solution.residual <= TOLERANCES[b.dtype]).all()
    torch.testing.assert_close(
        solution.residual, relative(A, solution.x, b), rtol=0, atol=TOLERANCES[b.dtype]
    )


@pytest.mark.parametrize("solver", SOLVERS)
@settings(max_examples=15, deadline=None)
@given(
    m=st.integers(1, 30),
    lead=st.sampled_from([(), (1,), (3,), (2, 2)]),
    condition=st.sampled_from([1.0, 10.0, 1e3]),
    seed=st.integers(0, 10**6),
)
def test_positive_definite(solver, m, lead, condition, seed):
    A = symmetric(torch.linspace(1 / condition, 1, m, dtype=torch.float64).expand(*lead, m), seed)
    generator = torch.Generator().manual_seed(seed)
    b = torch.randn(*lead, m, generator=generator, dtype=torch.float64)
    solution = solver(product(A), b)
    assert solution.x.shape == b.shape
    assert solution.residual.shape == solution.iterations.shape == lead
    assert solution.negative_curvature.shape == lead
    assert_solves(solution, A, b, condition=condition)
    assert not solution.negative_curvature.any()


@pytest.mark.parametrize("solver", SYMMETRIC)
def test_single_precision(solver):
    b = torch.randn(2, 400)
    A = symmetric(spectrum(2, 400, condition=10.0, dtype=torch.float32))
    assert_solves(solver(product(A), b), A, b, condition=10.0)
    # At a condition number of 100 the default tolerance is out of reach, by little: ‖A‖‖x‖ is up to 100
    # times ‖b‖, and the product has sums of 400 terms, which are √400 in the mean square. Conjugate
    # gradients take ½√100 ln(2e6) = 73 iterations, in float32 up to twice as many.
    A = symmetric(spectrum(2, 400, dtype=torch.float32))
    solution = solver(product(A), b)
    assert (solution.residual <= rounding(b, 400**0.5, condition=100)).all()
    assert (solution.iterations <= 150).all()


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("dtype", "power"), [(torch.float64, 300), (torch.float32, 36)])
def test_squares_out_of_range(solver, dtype, power):
    A, b = symmetric(spectrum(2, 20, 2.0, dtype)), torch.randn(2, 20, dtype=dtype)
    expected = solver(product(A), b)
    for scale in (10.0**power, 10.0**-power):
        solution = solver(product(A), scale * b)
        assert (solution.residual <= TOLERANCES[dtype]).all()
        torch.testing.assert_close(solution.x / scale, expected.x)


@settings(max_examples=15, deadline=None)
@given(m=st.integers(2, 30), seed=st.integers(0, 10**6))
def test_indefinite(m, seed):
    eigenvalues = spectrum(3, m, condition=50.0)
    eigenvalues[:, ::2] *= -1
    A = symmetric(eigenvalues, seed)
    b = torch.randn(3, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert_solves(minres(product(A), b), A, b, condition=50.0)


def test_conjugate_gradient_stops_at_negative_curvature():
    eigenvalues = spectrum(3, 20)
    eigenvalues[1, ::2] *= -1
    eigenvalues[2, 0] = 0
    A, b = symmetric(eigenvalues), torch.randn(3, 20, dtype=torch.float64)
    solution = conjugate_gradient(product(A), b)
    assert solution.negative_curvature.tolist() == [False, True, True]
    assert solution.residual[0] <= RESIDUAL
    assert (solution.residual[1:] > 1e-3).all()  # left early, with most of it
    assert not minres(product(A), b).negative_curvature.any()


def test_an_operator_that_vanishes():
    b = torch.randn(2, 5, dtype=torch.float64)
    for solver in SOLVERS:
        solution = solver(torch.zeros_like, b)
        assert (solution.x == 0).all()
        torch.testing.assert_close(solution.residual, torch.ones_like(solution.residual))
    assert conjugate_gradient(torch.zeros_like, b).negative_curvature.all()


@pytest.mark.parametrize("solver", SYMMETRIC)
@settings(max_examples=10, deadline=None)
@given(m=st.integers(4, 40), nullity=st.integers(1, 3), seed=st.integers(0, 10**6))
def test_singular_consistent_gives_the_shortest(solver, m, nullity, seed):
    eigenvalues = spectrum(2, m, condition=20.0)
    if solver is minres:
        eigenvalues[:, ::2] *= -1
    eigenvalues[:, :nullity] = 0
    A = symmetric(eigenvalues, seed)
    generator = torch.Generator().manual_seed(seed)
    b = product(A)(torch.randn(2, m, generator=generator, dtype=torch.float64))
    solution = solver(product(A), b)
    assert (solution.residual <= RESIDUAL).all()
    # Singular values are 0 but for rounding, or 1/20 and more.
    expected = product(torch.linalg.pinv(A, hermitian=True, rtol=1e-10))(b)
    bound = 20 * RESIDUAL + factorised(b, m, condition=20)
    torch.testing.assert_close(solution.x, expected, rtol=0, atol=bound * float(expected.norm()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_repeated_equation(dtype):
    # A constraint written twice: the saddle system is singular, its right-hand side in the range.
    G = symmetric(spectrum(1, 12, condition=5.0, dtype=dtype))
    row = torch.randn(1, 1, 12, dtype=dtype)
    J = torch.cat([row, row], dim=1)
    A = torch.cat([torch.cat([G, J.mT], -1), torch.cat([J, G.new_zeros(1, 2, 2)], -1)], -2)
    b = torch.cat([torch.randn(1, 12, dtype=dtype), torch.zeros(1, 2, dtype=dtype)], -1)
    solution = minres(product(A), b)
    assert (solution.residual <= TOLERANCES[dtype]).all()
    torch.testing.assert_close(solution.x[:, 12], solution.x[:, 13])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "condition"), [(20, 10.0), (100, 10.0), (60, 1e3)])
def test_inconsistent_gives_the_least_residual(dtype, m, condition):
    eigenvalues = spectrum(2, m, condition=condition)
    eigenvalues[:, ::2] *= -1
    eigenvalues[:, : m // 4] = 0
    A = symmetric(eigenvalues)
    b = torch.randn(2, m, dtype=torch.float64)
    least = relative(A, product(torch.linalg.pinv(A, hermitian=True, rtol=1e-10))(b), b)
    solution = minres(product(A.to(dtype)), b.to(dtype))
    # The least residual is a minimum: what is wrong with x counts by its square, and A x by the rounding
    # of a vector that grows to the condition times ‖b‖.
    tolerance = rounding(dtype, 4 * m**0.5, condition=condition)
    torch.testing.assert_close(solution.residual, least.to(dtype), rtol=tolerance, atol=0)
    assert (solution.iterations <= 4 * m).all()  # m in exact arithmetic


def test_two_scales_are_told_from_singularity():
    # r is left along an eigenvalue of 1e-9 after one step: small, yet not zero. The last component
    # is the residual's tolerance, 1e-12 (1e-6), of 1; each is 1 beside it.
    for dtype, small in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        d = torch.tensor([1.0, small, -2 * small], dtype=dtype)
        x = minres(lambda v, d=d: d * v, torch.ones(3, dtype=dtype)).x
        torch.testing.assert_close(x, 1 / d, rtol=10 * TOLERANCES[dtype], atol=0)


def mixed_batch():
    """A of an easy, a hard, a zero, two NaN and one infinite item, and b."""
    eigenvalues = spectrum(6, 30)
    eigenvalues[0] = 1
    eigenvalues[1] = torch.logspace(-4, 0, 30, dtype=torch.float64)
    A, b = symmetric(eigenvalues), torch.randn(6, 30, dtype=torch.float64)
    b[2] = 0
    b[3, 4] = torch.nan
    A[4, 3, 2] = torch.nan
    b[5, 0] = torch.inf
    return A, b


@pytest.mark.parametrize("solver", SOLVERS)
def test_items_do_not_spoil_one_another(solver):
    A, b = mixed_batch()
    solution = solver(product(A), b)
    for i in (0, 1):
        alone = solver(product(A[i]), b[i])
        # Both to the promised residual, at a condition of 1e4; rounding may take one of them a cycle
        # of a few steps more.
        bound = 2e4 * RESIDUAL * float(alone.x.norm())
        torch.testing.assert_close(solution.x[i], alone.x, rtol=0, atol=bound)
        assert abs(int(solution.iterations[i]) - int(alone.iterations)) <= 0.2 * int(
            alone.iterations
        )
        assert solution.residual[i] <= RESIDUAL
    assert 1 <= solution.iterations[0] <= 2 < solution.iterations[1]
    assert (solution.x[2] == 0).all() and solution.residual[2] == 0 == solution.iterations[2]
    assert solution.x[3:].isnan().all() and solution.residual[3:].isnan().all()
    assert not solution.negative_curvature.any()


@pytest.mark.parametrize("solver", SOLVERS)
def test_empty_and_zero(solver):
    for shape in ((0, 5), (2, 0)):
        solution = solver(torch.zeros_like, torch.zeros(shape))
        assert solution.x.shape == shape
        assert solution.residual.shape == solution.iterations.shape == shape[:1]
    solution = solver(lambda v: 2 * v, torch.zeros(3))
    assert (solution.x == 0).all() and solution.residual == 0 and solution.iterations == 0


@pytest.mark.parametrize("solver", SYMMETRIC)
def test_preconditioner_saves_iterations(solver):
    d = torch.logspace(-4, 0, 200, dtype=torch.float64)
    A = torch.diag(d) + 1e-5 * symmetric(spectrum(2, 200))
    b = torch.randn(2, 200, dtype=torch.float64)
    plain = solver(product(A), b)
    helped = solver(product(A), b, preconditioner=lambda v: v / d)
    assert (4 * helped.iterations < plain.iterations).all()
    assert_solves(helped, A, b, condition=1e4)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_limit_is_reported(solver):
    A = symmetric(spectrum(2, 60, condition=1e4))
    b = torch.randn(2, 60, dtype=torch.float64)
    solution = solver(product(A), b, max_iterations=5)
    assert (solution.iterations == 5).all()
    assert (solution.residual > 1e-3).all()  # five steps of the hundreds that it takes
    torch.testing.assert_close(solution.residual, relative(A, solution.x, b))
    loose = solver(product(A), b, tolerance=0.1)
    assert ((loose.residual <= 0.1) & (loose.residual > 1e-6)).all()  # and not to 1e-12


@pytest.mark.parametrize("solver", SOLVERS)
def test_an_unreachable_tolerance_ends(solver):
    A = symmetric(spectrum(2, 20, condition=1e3))
    b = torch.randn(2, 20, dtype=torch.float64)
    solution = solver(product(A), b, tolerance=0.0, max_iterations=100_000)
    assert (solution.iterations < 2_000).all()  # a hundred times its order, not the limit
    assert (solution.residual < rounding(b, 20, condition=1e3)).all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_gradients_and_aliases_of_the_operator(solver):
    weight = torch.full((4, 7), 2.0, requires_grad=True)
    solution = solver(lambda v: weight * v, torch.ones(4, 7))
    torch.testing.assert_close(solution.x, torch.full((4, 7), 0.5))
    assert not solution.x.requires_grad and weight.grad is None
    right = torch.randn(4, 7)
    given = right.clone()
    torch.testing.assert_close(solver(lambda v: v, right).x, given)
    assert torch.equal(right, given)
    with pytest.raises(ValueError, match=r"shape \(4, 7\) to one of shape \(4, 1\)"):
        solver(lambda v: v.sum(-1, keepdim=True), right)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "restart"), [(1, 40), (15, 40), (80, 40), (80, 10)])
def test_gmres_of_a_contraction(dtype, m, restart):
    T = torch.randn(3, m, m, dtype=dtype) * (0.7 / m**0.5)
    A = torch.eye(m, dtype=dtype) - T.mT.clamp(-0.9, 0.9)
    b = torch.randn(3, m, dtype=dtype)
    solution = gmres(product(A), b, restart=restart)
    # ‖T‖ is about 1.4 for a radius of 0.7, and ‖(I − T)⁻¹‖ below 50 for three of them.
    assert_solves(solution, A, b, condition=100.0)


def test_gmres_of_a_rotation_and_of_a_singular_system():
    shift = torch.roll(torch.eye(6, dtype=torch.float64), 1, 0)
    b = torch.eye(6, dtype=torch.float64)[0]
    assert_solves(gmres(product(shift), b), shift, b)
    # No restart below 6 can make a step: the residual says so.
    assert gmres(product(shift), b, restart=5).residual == pytest.approx(1, rel=rounding(b, 36))
    nilpotent = torch.diag(torch.ones(5, dtype=torch.float64), 1)
    solution = gmres(product(nilpotent), b)
    assert solution.x.isfinite().all()
    assert solution.residual == pytest.approx(1, rel=rounding(b, 36))


@settings(max_examples=15, deadline=None)
@given(m=st.integers(1, 24), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 10**6))
def test_extreme_eigenvalues_of_small_operators(m, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(2, 3, m, m, generator=generator, dtype=dtype)
    A = A + A.mT
    lowest, largest, error = extreme_eigenvalues(product(A), A[..., 0], steps=40)
    expected = torch.linalg.eigvalsh(A)
    # Of size ‖A‖ ≤ 2√(2m) with m ≤ 24, after steps in as many dimensions; `error` is the residual of an
    # eigenvector, whose square is that of the value.
    atol = 20 * eps(dtype) ** 0.5
    torch.testing.assert_close(lowest, expected[..., 0], rtol=0, atol=atol)
    torch.testing.assert_close(largest, expected[..., -1], rtol=0, atol=atol)
    assert ((error >= 0) & (error <= atol)).all()


def test_extreme_eigenvalues_lie_inside_and_within_the_error():
    eigenvalues = torch.cat([spectrum(2, 298), torch.tensor([[-0.2, 1.5]] * 2)], -1)
    A = symmetric(eigenvalues.double())
    expected = torch.linalg.eigvalsh(A)
    for steps in (4, 10, 30):
        lowest, largest, error = extreme_eigenvalues(product(A), A[..., 0], steps=steps)
        assert (lowest >= expected[:, 0] - factorised(A, 300)).all()
        assert (largest <= expected[:, -1] + factorised(A, 300)).all()
        for value in (lowest, largest):
            distance = (expected - value.unsqueeze(-1)).abs().amin(-1)
            assert (distance <= error).all()
    # Of the isolated ends, 0.2 and 0.5 away from the others on a length of 1, thirty steps leave the
    # error at e^{-2·30·√0.2}: below 1e-11; its residual at the root of that.
    assert (error <= 1e-5).all()
    torch.testing.assert_close(lowest, expected[:, 0])
    torch.testing.assert_close(largest, expected[:, -1])


@pytest.mark.parametrize("rank", [0, 1, 3, 15, 25])
def test_extreme_eigenvalues_on_a_subspace(rank):
    A = symmetric(torch.linspace(-1, 1, 30, dtype=torch.float64).expand(2, 30))
    Q = torch.linalg.qr(torch.randn(2, 30, rank, dtype=torch.float64)).Q
    lowest, largest, error = extreme_eigenvalues(
        product(A), A[..., 0], project=product(Q @ Q.mT), steps=30
    )
    if rank == 0:
        assert (lowest == torch.inf).all() and (largest == -torch.inf).all()
    else:
        inside = torch.linalg.eigvalsh(Q.mT @ A @ Q)
        torch.testing.assert_close(lowest, inside[:, 0])
        torch.testing.assert_close(largest, inside[:, -1])
    # As many steps as there are dimensions: what is left is rounding, that of a residual.
    assert (error <= 20 * eps(A) ** 0.5).all()


def test_extreme_eigenvalues_item_by_item():
    # An identity and a zero (invariant after one step), NaN, and an operator that needs all steps.
    A = symmetric(spectrum(4, 20))
    A[0], A[1], A[2, 1, 1] = torch.eye(20), 0, torch.nan
    lowest, largest, error = extreme_eigenvalues(product(A), torch.empty(4, 20).double())
    expected = torch.tensor([[1, 1], [0, 0], [torch.nan, torch.nan], [0.01, 1]])
    torch.testing.assert_close(
        torch.stack([lowest, largest], -1), expected.double(), equal_nan=True
    )
    assert error[2].isnan() and (error[[0, 1, 3]] <= 20 * eps(A) ** 0.5).all()
    state = torch.get_rng_state()
    again = extreme_eigenvalues(product(A[3]), A[3, 0])
    assert torch.equal(state, torch.get_rng_state())
    torch.testing.assert_close(again.lowest, lowest[3])
    assert extreme_eigenvalues(product(A), torch.empty(0, 20)).lowest.shape == (0,)


@pytest.mark.gpu
@pytest.mark.parametrize("solver", SOLVERS)
def test_cuda(solver):
    A, b = mixed_batch()
    solution: KrylovSolution = solver(product(A.cuda()), b.cuda())
    expected = solver(product(A), b)
    # The promised residual at a condition of 1e4, and a norm of x of as much.
    torch.testing.assert_close(solution.x.cpu(), expected.x, rtol=1e-7, atol=1e-7, equal_nan=True)
    there = extreme_eigenvalues(product(A.cuda()), b.cuda())
    here = extreme_eigenvalues(product(A), b)
    torch.testing.assert_close(there.lowest.cpu(), here.lowest, equal_nan=True)
