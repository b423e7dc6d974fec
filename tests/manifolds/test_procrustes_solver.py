"""The closed form of the Procrustes problem, and its completion where A is rank-deficient."""

import pytest
import torch
from ddnkit_manifolds import Procrustes, Sphere, Stiefel

from ddnkit import DeclarativeNode, InputError, Problem, Status


class MaximalTrace(DeclarativeNode):
    manifold = Stiefel()

    def objective(self, A, *_, y):
        return -(A * y).sum()

    def procrustes_target(self, A, *_):
        return A

    def initial_point(self, A, *_):
        return Stiefel().project(torch.ones_like(A))


class Completed(MaximalTrace):
    def procrustes_completion(self, A, preferred):
        return preferred


def polar(A):
    left, _, right = torch.linalg.svd(A, full_matrices=False)
    return left @ right


def of_rank(rank, d=7, C=4, batch=3):
    factors = torch.randn(batch, d, C).double(), torch.randn(batch, C, C).double()
    return factors[0][..., :rank] @ factors[1][:, :rank]


def point(batch=3, d=7, C=4):
    return Stiefel().random((batch, d, C), like=torch.zeros((), dtype=torch.float64))


def orthonormal(U):
    return Stiefel().infeasibility(U).max() < 1e-14


@pytest.mark.parametrize("shape", [(7, 4), (4, 4), (3, 1)])
def test_attains_the_sum_of_singular_values(shape):
    A = torch.randn(5, *shape, dtype=torch.float64)
    problem = Problem(MaximalTrace(), [A], 5)
    solution = Procrustes().solve(problem)
    assert orthonormal(solution.y)
    assert torch.allclose(problem.objective(solution.y), -torch.linalg.svdvals(A).sum(dim=-1))
    assert solution.statuses() == [Status.CONVERGED] * 5
    assert solution.iterations.tolist() == [0] * 5
    V, s = solution.aux["right_vectors"], solution.aux["singular_values"]
    assert V.shape == (5, shape[1], shape[1])
    # (AᵀA)^{1/2} = UᵀA = V diag(s) Vᵀ
    assert torch.allclose(V * s.unsqueeze(1) @ V.mT, solution.y.mT @ A)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_inputs_are_solved_in_double(dtype):
    A = torch.randn(2, 7, 4).to(dtype)
    solution = Procrustes().solve(Problem(MaximalTrace(), [A], 2))
    assert solution.y.dtype == dtype
    assert solution.aux["singular_values"].dtype == torch.float64
    assert torch.equal(solution.y, polar(A.double()).to(dtype))


@pytest.mark.parametrize("rank", [0, 1, 2, 3, 4])
def test_completion_is_the_limit_of_a_vanishing_proximal_term(rank):
    A, preferred = of_rank(rank), point()
    U = Procrustes().solve(Problem(Completed(), [A, preferred], 3)).y
    assert orthonormal(U)
    errors = [(polar(A + delta * preferred) - U).norm() for delta in (1e-4, 1e-6)]
    assert errors[1] < 1e-4
    if rank not in (0, 4):
        assert errors[1] < 0.02 * errors[0]


def test_ranks_may_differ_within_a_batch():
    A = torch.cat([of_rank(rank, batch=1) for rank in (4, 2, 0)])
    preferred = point()
    together = Procrustes().solve(Problem(Completed(), [A, preferred], 3)).y
    for index in range(3):
        problem = Problem.single(Completed(), [A[index], preferred[index]])
        assert torch.allclose(together[index], Procrustes().solve(problem).y[0], atol=1e-12)


def test_rank_is_that_of_the_inputs_precision():
    A, preferred = of_rank(2).float(), point().float()
    U = Procrustes().solve(Problem(Completed(), [A, preferred], 3)).y
    exact = Procrustes().solve(Problem(Completed(), [of_rank(2), preferred.double()], 3)).y
    assert exact.dtype == torch.float64
    expected = polar(A.double() + 1e-4 * preferred.double())
    assert (U - expected).norm() < 1e-2


@pytest.mark.parametrize("rank", [0, 2])
def test_orthonormal_even_where_the_preferred_point_says_nothing(rank):
    A = of_rank(rank)
    # In the range of A, so that nothing of it is left for the null space; and no point at all.
    for preferred in (polar(A), torch.zeros_like(A), A):
        U = Procrustes().solve(Problem(Completed(), [A, preferred], 3)).y
        assert orthonormal(U)
        gap = torch.linalg.svdvals(A).sum(dim=-1) - (A * U).sum(dim=(-2, -1))
        assert gap.abs().max() < 1e-12


def test_without_completion_a_deficient_target_still_gives_a_point():
    U = Procrustes().solve(Problem(MaximalTrace(), [of_rank(2)], 3)).y
    assert orthonormal(U)


def test_an_item_that_is_not_finite_is_named_and_leaves_the_others_alone():
    A = torch.randn(3, 7, 4, dtype=torch.float64)
    A[1, 0, 0] = torch.nan
    solution = Procrustes().solve(Problem(MaximalTrace(), [A], 3))
    assert solution.statuses() == [Status.CONVERGED, Status.NON_FINITE, Status.CONVERGED]
    assert solution.y[1].isnan().all()
    assert torch.allclose(solution.y[2], polar(A[2]))


def test_more_columns_than_rows_is_an_error():
    problem = Problem(MaximalTrace(), [torch.randn(1, 2, 3)], 1)
    with pytest.raises(InputError, match=r"d ≥ C; it returned shape \(1, 2, 3\)"):
        Procrustes().solve(problem)


def test_says_what_it_cannot_take():
    class NoTarget(DeclarativeNode):
        manifold = Stiefel()

        def objective(self, A, y):
            return A.sum() * y.sum()

    class OnTheSphere(MaximalTrace):
        manifold = Sphere()

    A = torch.randn(7, 4)
    assert "procrustes_target" in Procrustes().unsupported(Problem.single(NoTarget(), [A]))
    assert "Sphere()" in Procrustes().unsupported(Problem.single(OnTheSphere(), [A]))
    assert Procrustes().unsupported(Problem.single(MaximalTrace(), [A])) is None
