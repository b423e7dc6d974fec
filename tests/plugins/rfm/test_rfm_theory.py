"""Theorems 5.3 and 5.4: the closed forms, the bounds, and that the checks can fail."""

from __future__ import annotations

import pytest
import torch
from bounds import eps, factorised, rounding
from ddnkit_rfm import (
    collapse_curve,
    collapse_rate,
    collapsed_kernel,
    fixed_point_kappa,
    gram_recursion,
    krr_lower_bound,
    matrix_sqrt,
    module_agop,
    optimality_check,
    parametrised_krr_objective,
    published_kappa,
)
from ddnkit_rfm.asymptotics import agop_gram
from ddnkit_rfm.kernel_optimum import descend, nearest_feasible, random_feasible_kernels
from rfm_data import left_by_descent
from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot

from ddnkit import InputError

#: What `nearest_feasible` promises of an eigenvalue of a matrix of order 6: N times its tolerance.
PROJECTED = 6 * 1e-12
BALANCED = torch.arange(3).repeat_interleave(3)
UNEQUAL = torch.tensor([0, 0, 0, 0, 0, 1, 2, 1])


def targets(labels: Tensor) -> Tensor:
    return one_hot(labels).T.double()


def eye(size: int) -> Tensor:
    return torch.eye(size, dtype=torch.float64)


def krr(A: Tensor, k: Tensor, Y: Tensor, ridge: float) -> Tensor:
    """The objective of problem 7, as it is written."""
    residual = Y - A @ k
    return (residual @ residual.T).trace() + ridge * (k @ A.T @ A).trace()


# Theorem 5.4


@pytest.mark.parametrize("rank", [2, 9])
def test_the_objective_is_the_infimum_over_the_coefficients(rank: int) -> None:
    Z = torch.randn(rank, 9, dtype=torch.float64)
    k, Y, ridge = Z.T @ Z, torch.randn(4, 9, dtype=torch.float64), 0.3
    A = (Y @ torch.linalg.inv(k + ridge * eye(9))).requires_grad_()
    value = krr(A, k, Y, ridge)
    torch.testing.assert_close(parametrised_krr_objective(k, Y, ridge), value.detach())
    (gradient,) = torch.autograd.grad(value, A)
    # It is 2(A(k + μ) − Y)k, in whose bracket the inverse leaves what its condition grows.
    regular = k + ridge * eye(9)
    size = 2 * float(Y.norm() * k.norm())
    condition = float(torch.linalg.cond(regular))
    assert gradient.abs().max() < factorised(k, 9, size=size, condition=condition)
    for _ in range(20):
        assert krr(A + 0.1 * torch.randn_like(A), k, Y, ridge) > value


@pytest.mark.parametrize("labels", [BALANCED, UNEQUAL])
@pytest.mark.parametrize("ridge", [0.01, 1.0, 100.0])
def test_the_collapsed_kernel_attains_the_bound(labels: Tensor, ridge: float) -> None:
    value = parametrised_krr_objective(collapsed_kernel(labels), targets(labels), ridge)
    torch.testing.assert_close(value, krr_lower_bound(labels, ridge))


def test_in_order_of_classes_the_collapsed_kernel_is_a_kronecker_product() -> None:
    expected = torch.kron(eye(3), torch.ones(3, 3))
    torch.testing.assert_close(collapsed_kernel(BALANCED), expected, rtol=0, atol=0)


@pytest.mark.parametrize("labels", [BALANCED, UNEQUAL])
def test_no_kernel_with_unit_diagonal_is_below_the_bound(labels: Tensor) -> None:
    v = normalize(torch.randn(500, len(labels), 4, dtype=torch.float64), dim=2)
    signed = v @ v.mT
    assert (signed < 0).any()
    for kernels in (signed, random_feasible_kernels(500, len(labels))):
        values = parametrised_krr_objective(kernels, targets(labels), 0.5)
        assert (values > krr_lower_bound(labels, 0.5) + 0.1).all()


def test_random_kernels_are_feasible_and_of_many_kinds() -> None:
    kernels = random_feasible_kernels(300, 6)
    assert (kernels >= 0).all()
    assert torch.linalg.eigvalsh(kernels).min() > -factorised(kernels, 6, size=6)
    torch.testing.assert_close(kernels.diagonal(dim1=1, dim2=2), torch.ones(300, 6).double())
    mean = (kernels.sum(dim=(1, 2)) - 6) / 30
    assert mean.min() < 0.15 and mean.max() > 0.99
    again, same = (
        random_feasible_kernels(2, 4, generator=torch.Generator().manual_seed(1)) for _ in range(2)
    )
    assert (again == same).all()


def test_a_feasible_matrix_is_its_own_projection() -> None:
    (kernel,) = random_feasible_kernels(1, 6)
    found = nearest_feasible(kernel)
    torch.testing.assert_close(
        found, kernel, rtol=0, atol=PROJECTED + factorised(kernel, 6, size=6)
    )


def test_the_projection_is_the_nearest_feasible_matrix() -> None:
    A = torch.randn(6, 6, dtype=torch.float64)
    A = A + A.T
    nearest = nearest_feasible(A)
    assert (nearest >= 0).all() and (nearest.diagonal() == 1).all()
    rounded = factorised(A, 6, size=float(A.norm()))
    assert torch.linalg.eigvalsh(nearest)[0] > -PROJECTED - rounded
    # ⟨A − PA, k − PA⟩ ≤ 0 for every feasible k, and that for no other point. Where PA is off by e, the
    # product is by ‖e‖ times the size of both factors.
    kernels = torch.cat([random_feasible_kernels(500, 6), eye(6)[None]])
    apart = (kernels - nearest).norm(dim=(1, 2)) + (A - nearest).norm()
    products = ((A - nearest) * (kernels - nearest)).sum(dim=(1, 2))
    assert (products <= 6 * (PROJECTED + rounded) * apart).all()


@pytest.mark.parametrize("labels", [BALANCED, UNEQUAL])
def test_the_check_finds_the_optimum_where_the_theorem_has_it(labels: Tensor) -> None:
    found = optimality_check(labels, 0.5, draws=300)
    assert found.value == pytest.approx(found.bound, rel=factorised(torch.float64, len(labels)))
    assert found.least > found.bound + 0.1
    assert found.increase > 0.1
    assert found.distance < left_by_descent(labels, 0.5)


def test_of_one_sample_a_class_the_optimum_is_the_identity() -> None:
    found = optimality_check(torch.arange(4), 1.0, draws=50)
    assert found.value == pytest.approx(found.bound)
    assert found.increase > 0
    assert found.distance < left_by_descent(torch.arange(4), 1.0)


def test_a_descent_from_the_wrong_labels_kernel_ends_at_the_right_ones() -> None:
    end = descend(collapsed_kernel(BALANCED.roll(1)), BALANCED, 1.0)
    assert (end - collapsed_kernel(BALANCED)).norm() < left_by_descent(BALANCED, 1.0)
    stopped = descend(collapsed_kernel(BALANCED.roll(1)), BALANCED, 1.0, steps=1)
    assert (stopped - collapsed_kernel(BALANCED)).norm() > 0.5


def test_towards_other_class_means_the_objective_is_flat_in_first_order_alone() -> None:
    best, Y, ridge = collapsed_kernel(BALANCED), targets(BALANCED), 0.5
    point = best.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(parametrised_krr_objective(point, Y, ridge), point)
    (kernel,) = random_feasible_kernels(1, 9)
    slope = (gradient * (kernel - best)).sum()
    n = Y.sum(dim=1)
    short = n**2 - torch.einsum("ci,ij,cj->c", Y, kernel, Y)
    torch.testing.assert_close(slope, ridge * (short / (n + ridge) ** 2).sum())
    G = torch.tensor([[1, 0.5, 0.2], [0.5, 1, 0.1], [0.2, 0.1, 1]], dtype=torch.float64)
    flat = Y.T @ G @ Y - best
    assert (gradient * flat).sum().abs() < rounding(flat, 81)
    rise = parametrised_krr_objective(best + 1e-3 * flat, Y, ridge) - krr_lower_bound(
        BALANCED, ridge
    )
    assert 1e-8 < rise < 1e-6


def test_the_largest_eigenvalue_of_a_feasible_kernel_need_not_be_simple() -> None:
    # which the paper's proof takes from Perron-Frobenius, for uniqueness
    for labels in (BALANCED, BALANCED.roll(1)):
        eigenvalues = torch.linalg.eigvalsh(collapsed_kernel(labels))
        torch.testing.assert_close(eigenvalues[-3:], torch.full((3,), 3.0).double())


def test_problem_7_needs_a_ridge_and_a_kernel() -> None:
    Y = targets(BALANCED)
    with pytest.raises(InputError, match=r"ridge is 0\.0: .*μ > 0"):
        parametrised_krr_objective(eye(9), Y, 0.0)
    for kernel in (-eye(9), torch.full((9, 9), torch.nan).double()):
        with pytest.raises(InputError, match="definite"):
            parametrised_krr_objective(kernel, Y, 0.5)
    with pytest.raises(InputError, match="labels"):
        collapsed_kernel(torch.tensor([], dtype=torch.int64))


# Theorem 5.3


def data(classes: int = 3, each: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """X ``(d, N)``, its Gram matrix, labels."""
    labels = torch.arange(classes).repeat(each)
    d = 3 * len(labels)
    X = torch.randn(d, len(labels), dtype=torch.float64) / d**0.5
    return X, X.T @ X, labels


def test_the_gram_recursion_is_that_of_explicit_features() -> None:
    X, gram, labels = data()
    Y, N = targets(labels), len(labels)
    predictor, feature_map, kappa = 0.2, 0.7, 0.9
    grams = gram_recursion(
        gram, labels, 3, predictor=predictor, feature_map=feature_map, kappa=kappa
    )
    assert len(grams) == 3
    for expected in grams:
        # ridgeless regression with the kernel ⟨x, z⟩ + λ_k 1[x = z]: its linear part, as a network
        f = nn.Linear(len(X), len(Y), bias=False).double()
        coefficients = torch.linalg.solve(X.T @ X + predictor * eye(N), Y.T)
        f.weight.data = (X @ coefficients).T
        solved = factorised(X, N, condition=float(torch.linalg.cond(X.T @ X + predictor * eye(N))))
        torch.testing.assert_close(f(X.T) + predictor * coefficients, Y.T, rtol=0, atol=solved)
        projected = matrix_sqrt(module_agop(f, X.T) / kappa).root @ X
        torch.testing.assert_close(
            projected.T @ projected, expected, rtol=0, atol=10 * eps(X) ** 0.5
        )
        # a feature map with ΦᵀΦ = X̃ᵀX̃ + λ_map I
        X = torch.cat([projected, feature_map**0.5 * eye(N)])


def test_a_linear_kernel_collapses_in_one_layer() -> None:
    _, gram, labels = data()
    curve = collapse_curve(gram, labels, 3, predictor=0.0, feature_map=1.0)
    assert curve.max() < factorised(gram, 15, condition=float(torch.linalg.cond(gram)) ** 2)
    assert collapse_rate(5, 0.0, 1.0) == 0


@pytest.mark.parametrize(
    ("predictor", "feature_map"), [(0.1, 1.0), (1.0, 1.0), (0.01, 0.1), (0.1, 0.1), (15.0, 15.0)]
)
def test_collapse_is_exponential_at_the_derived_rate(predictor: float, feature_map: float) -> None:
    _, gram, labels = data()
    curve = collapse_curve(gram, labels, 60, predictor=predictor, feature_map=feature_map)
    last = int((curve > 1e-9).nonzero()[-1])
    assert last > 4
    rate = collapse_rate(5, predictor, feature_map)
    # The rate is that of the limit: what the first layers leave of faster modes is below 1 in 200.
    assert float(curve[last] / curve[last - 1]) == pytest.approx(rate, rel=5e-3)
    assert (curve[1:last] <= curve[: last - 1]).all()


def test_the_rate_is_of_the_within_class_part_unless_the_kernels_are_far_from_linear() -> None:
    assert collapse_rate(5, 1.0, 1.0) == pytest.approx(1 / 2 * 5 / 6)
    assert collapse_rate(5, 15.0, 15.0) == pytest.approx(2 * 15 * 5 / (20 * 35))


def test_the_more_linear_the_predictor_the_faster() -> None:
    _, gram, labels = data()
    ends = [
        collapse_curve(gram, labels, 4, predictor=predictor, feature_map=1.0)[-1]
        for predictor in (0.001, 0.01, 0.1, 1.0)
    ]
    assert ends == sorted(ends)
    ends = [
        collapse_curve(gram, labels, 4, predictor=0.1, feature_map=feature_map)[-1]
        for feature_map in (2.0, 1.0, 0.5, 0.25)
    ]
    assert ends == sorted(ends)


def test_the_collapsed_gram_matrix_is_a_fixed_point_with_our_kappa_alone() -> None:
    labels = torch.arange(3).repeat(5)
    best, predictor, feature_map = collapsed_kernel(labels), 0.01, 0.5
    through = agop_gram(best + feature_map * eye(15), labels, predictor)
    ours = fixed_point_kappa(5, predictor, feature_map)
    torch.testing.assert_close(
        through / ours, best, rtol=0, atol=factorised(best, 15, condition=11)
    )
    assert (through / published_kappa(predictor, feature_map) - best).abs().max() > 0.05


def test_lemma_c2_gives_the_fixed_point_and_not_the_papers_kappa() -> None:
    # YᵀY(A*)⁻¹ = YᵀY/(n + λ_map)
    labels, n, feature_map = torch.arange(3).repeat(5), 5, 0.5
    best = collapsed_kernel(labels)
    product = best @ torch.linalg.inv(best + feature_map * eye(15))
    torch.testing.assert_close(product, best / (n + feature_map))


def test_with_the_papers_kappa_the_distance_left_is_of_first_order() -> None:
    _, gram, labels = data()
    left = []
    for predictor in (1e-3, 1e-4, 1e-5):
        kappa = published_kappa(predictor, 1.0)
        curve = collapse_curve(gram, labels, 30, predictor=predictor, feature_map=1.0, kappa=kappa)
        left.append(float(curve[-1]) / predictor)
    # 2n(1 + 1/λ_map − 1/(n + λ_map)), where the theorem has λ_k/λ_map² → 0
    assert left == pytest.approx([2 * 5 * (2 - 1 / 6)] * 3, rel=0.03)


def test_the_recursion_needs_data_of_full_rank_and_matching_shapes() -> None:
    _, gram, labels = data()
    low = torch.ones(15, 15, dtype=torch.float64)
    with pytest.raises(InputError, match=r"assumption 5\.2"):
        agop_gram(low - 1e-3 * eye(15), labels, 0.0)
    with pytest.raises(InputError):
        agop_gram(gram, labels, -1.0)
    with pytest.raises(InputError, match="labels"):
        agop_gram(gram, labels[1:], 0.1)
    with pytest.raises(InputError, match=r"\(15, 14\)"):
        agop_gram(gram[:, 1:], labels, 0.1)
    with pytest.raises(InputError, match="κ"):
        collapse_curve(
            gram, labels, 2, predictor=1.0, feature_map=1.0, kappa=published_kappa(1.0, 1.0)
        )
