"""Coefficients of kernel regression: three solvers, singular kernel matrices, memory, and what is refused."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from bounds import eps, factorised, rounding
from ddnkit_rfm import (
    Gaussian,
    Kernel,
    KernelRegression,
    Laplace,
    SingularKernelWarning,
    UnsolvedKernelWarning,
    label_targets,
)
from ddnkit_rfm import blocks as blocks_module
from ddnkit_rfm.blocks import allowed_memory, row_blocks
from ddnkit_rfm.factorisations import cholesky, minimum_norm_solution
from ddnkit_rfm.kernel_system import KernelSystem, nystrom_preconditioner
from ddnkit_rfm.regression import TOLERANCE
from hypothesis import given, settings
from hypothesis import strategies as st
from rfm_data import KERNELS, LargestTensor, blobs, relative_error
from torch import Tensor

from ddnkit import DdnkitWarning, InputError

SOLVERS: list[Any] = ["cholesky", "eigh", "iterative"]


def problem(**kwargs: Any) -> tuple[Tensor, Tensor]:
    X, labels = blobs(**kwargs)
    return X, label_targets(labels)


def with_duplicates(*, same: bool) -> tuple[Tensor, Tensor]:
    """Six samples twice: with the same targets, or the first of them with two."""
    X, Y = problem(each=8)
    Y = torch.cat([Y, Y[:6]])
    if not same:
        Y[-6] = -Y[0]
    return torch.cat([X, X[:6]]), Y


def coefficients_bound(X: Tensor) -> float:
    """What a factorisation leaves the coefficients of Laplace(2) off by, for targets of ±1."""
    K = Laplace(2.0)(X)
    return factorised(X, len(X), size=float(torch.linalg.inv(K).norm(2)), condition=len(X) ** 0.5)


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@pytest.mark.parametrize("ridge", [0.0, 1e-3, 1.0])
@pytest.mark.parametrize("solver", [*SOLVERS, "auto"])
def test_every_solver_finds_the_solution(kernel: Kernel, ridge: float, solver: Any) -> None:
    X, Y = problem()
    fitted = KernelRegression(kernel, ridge, solver, tolerance=1e-12).fit(X, Y)
    K = kernel(X) + ridge * torch.eye(len(X), dtype=X.dtype)
    # The residual that was asked for, or that of a solve, grows by the condition.
    condition = float(torch.linalg.cond(K))
    bound = 1e-12 + factorised(K, len(K))
    assert relative_error(fitted.coefficients, torch.linalg.solve(K, Y)) < bound * condition
    report = fitted.report
    assert report.solver == ("cholesky" if solver == "auto" else solver)
    assert report.solved and report.reason == ""
    assert report.rank == (60 if solver == "eigh" else None)
    assert (report.iterations is not None) == (solver == "iterative")
    measured = (K @ fitted.coefficients - Y).norm() / Y.norm()
    size = float(K.norm() * fitted.coefficients.norm() / Y.norm())
    assert report.residual == pytest.approx(float(measured), abs=rounding(K, 60, size=size))
    assert report.residual < 1e-12 + factorised(K, len(K), size=size)


@pytest.mark.parametrize("solver", SOLVERS)
def test_predictions_are_the_machines(solver: Any) -> None:
    (X, Y), Z = problem(), blobs(seed=1)[0]
    fitted = KernelRegression(Laplace(2.0), solver=solver).fit(X, Y)
    expected = Laplace(2.0)(Z, X) @ fitted.coefficients
    size = float(fitted.coefficients.abs().sum(dim=0).max())  # a kernel is at most 1
    torch.testing.assert_close(fitted.predict(Z), expected, rtol=0, atol=rounding(X, 60, size=size))
    torch.testing.assert_close(fitted.predict(X), Y, rtol=0, atol=TOLERANCE * float(Y.norm()))


@pytest.mark.parametrize("solver", SOLVERS)
def test_float32_samples_are_solved_for_in_float64(solver: Any) -> None:
    X, Y = (part.to(torch.float32) for part in problem(spread=0.01, dimension=20))
    kernel = Laplace(2.0)
    fitted = KernelRegression(kernel, solver=solver, tolerance=1e-10).fit(X, Y)
    assert fitted.coefficients.dtype == fitted.predict(X).dtype == torch.float32
    wide = X.to(torch.float64)
    exact = torch.linalg.solve(kernel(wide), Y.to(torch.float64))
    # As they are rounded to float32; solved for in float32 they would be off by the condition as well.
    condition = float(torch.linalg.cond(kernel(wide)))
    assert condition > 100
    assert relative_error(fitted.coefficients, exact) < eps(torch.float32) + 1e-10 * condition
    assert fitted.report.solved
    rounded = kernel(wide) @ fitted.coefficients.to(torch.float64) - Y
    assert fitted.report.residual == pytest.approx(float(rounded.norm() / Y.norm()), rel=1e-3)
    size = float(kernel(wide).norm() * exact.norm() / Y.norm())
    assert rounding(wide, 60, size=size) < fitted.report.residual < eps(torch.float32) * size


@pytest.mark.parametrize("solver", ["auto", "cholesky"])
def test_duplicates_of_one_label_are_interpolated_and_told_of(solver: Any) -> None:
    X, Y = with_duplicates(same=True)
    with pytest.warns(SingularKernelWarning, match="6 of 30.*rank 24") as caught:
        fitted = KernelRegression(Laplace(2.0), solver=solver).fit(X, Y)
    assert len(caught) == 1 and caught[0].filename == __file__
    report = fitted.report
    assert (report.solver, report.rank, report.solved) == ("cholesky", 24, True)
    assert report.reason
    solved = coefficients_bound(X[:24])
    assert report.residual < solved
    # Of least norm: each of a pair has the same coefficients, half of those of the sample by itself.
    alpha = fitted.coefficients
    torch.testing.assert_close(alpha[:6], alpha[24:], rtol=0, atol=solved)
    single = KernelRegression(Laplace(2.0)).fit(X[:24], Y[:24]).coefficients
    torch.testing.assert_close(alpha[:6], single[:6] / 2, rtol=0, atol=solved)
    torch.testing.assert_close(alpha[6:24], single[6:], rtol=0, atol=solved)


def test_duplicates_of_two_labels_get_the_mean_and_a_warning_more() -> None:
    X, Y = with_duplicates(same=False)
    with pytest.warns(DdnkitWarning) as caught:
        fitted = KernelRegression(Laplace(2.0)).fit(X, Y)
    assert [w.category for w in caught] == [SingularKernelWarning, UnsolvedKernelWarning]
    assert "(a)" in str(caught[1].message)
    assert not fitted.report.solved
    # One pair in 30 is ±1 off, in all of its targets of ±1.
    assert fitted.report.residual == pytest.approx(
        math.sqrt(2 / 30), abs=coefficients_bound(X[:24])
    )
    torch.testing.assert_close(
        fitted.predict(X[:1]),
        torch.zeros(1, 3, dtype=X.dtype),
        atol=coefficients_bound(X[:24]),
        rtol=0,
    )


@pytest.mark.filterwarnings("ignore::ddnkit_rfm.UnsolvedKernelWarning")
@pytest.mark.parametrize("same", [True, False])
def test_coinciding_samples_get_the_minimum_norm_solution(same: bool) -> None:
    X, Y = with_duplicates(same=same)
    X, Y = torch.cat([X, X[:1]]), torch.cat([Y, Y[1:2]])  # one of them three times
    with pytest.warns(SingularKernelWarning):
        fitted = KernelRegression(Laplace(2.0)).fit(X, Y)
    expected, rank = minimum_norm_solution(Laplace(2.0)(X), Y)
    assert fitted.report.rank == rank == 24
    torch.testing.assert_close(
        fitted.coefficients, expected, rtol=0, atol=coefficients_bound(X[:24])
    )


def test_samples_nearer_than_rounding_are_left_to_eigenvalues() -> None:
    X, Y = with_duplicates(same=True)
    X[:6] += 1e-15
    with pytest.warns(SingularKernelWarning, match="'eigh'") as caught:
        fitted = KernelRegression(Laplace(2.0)).fit(X, Y)
    assert len(caught) == 1
    assert fitted.report.solver == "eigh" and fitted.report.solved and fitted.report.rank == 24


def test_a_ridge_makes_duplicates_regular() -> None:
    for same in (True, False):
        fitted = KernelRegression(Laplace(2.0), ridge=1e-3).fit(*with_duplicates(same=same))
        assert fitted.report.solver == "cholesky" and fitted.report.solved


def test_a_ridge_below_rounding_is_no_ridge() -> None:
    with pytest.warns(SingularKernelWarning):
        fitted = KernelRegression(Laplace(2.0), ridge=1e-16).fit(*with_duplicates(same=True))
    assert fitted.report.solver == "eigh"


def test_a_factorisation_of_digits_of_rounding_is_not_believed() -> None:
    X, Y = problem(dimension=2)
    with pytest.warns(DdnkitWarning) as caught:
        fitted = KernelRegression(Gaussian(1e3), ridge=1e-12).fit(X, Y)
    assert [w.category for w in caught] == [SingularKernelWarning, UnsolvedKernelWarning]
    assert fitted.report.solver == "eigh" and not fitted.report.solved


def test_a_kernel_matrix_that_is_singular_without_duplicates() -> None:
    X, Y = problem(dimension=2)
    with pytest.warns(DdnkitWarning) as caught:
        fitted = KernelRegression(Gaussian(1e3)).fit(X, Y)
    assert [w.category for w in caught] == [SingularKernelWarning, UnsolvedKernelWarning]
    assert "(b)" in str(caught[1].message)
    assert fitted.report.rank is not None and fitted.report.rank < 20
    assert fitted.coefficients.isfinite().all()


def test_asked_for_least_squares_there_is_nothing_to_explain() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = KernelRegression(Laplace(2.0), solver="eigh").fit(*with_duplicates(same=True))
    assert fitted.report.rank == 24 and fitted.report.reason == ""


def test_conjugate_gradients_interpolate_duplicates_of_one_label() -> None:
    X, Y = with_duplicates(same=True)
    fitted = KernelRegression(Laplace(2.0), solver="iterative").fit(X, Y)
    assert fitted.report.solved
    expected = KernelRegression(Laplace(2.0)).fit(X[:24], Y[:24])
    Z = blobs(seed=2)[0]
    # Between samples a residual grows by the condition, of the order of ten.
    atol = 10 * TOLERANCE * float(Y.norm())
    torch.testing.assert_close(fitted.predict(Z), expected.predict(Z), rtol=0, atol=atol)


def test_conjugate_gradients_that_do_not_converge_say_so() -> None:
    with pytest.warns(UnsolvedKernelWarning, match=r"\d+ iterations"):
        fitted = KernelRegression(Laplace(2.0), solver="iterative").fit(
            *with_duplicates(same=False)
        )
    assert not fitted.report.solved and fitted.report.residual > 0.1


def test_too_few_iterations_are_told_of() -> None:
    X, Y = problem()
    few = KernelRegression(Laplace(2.0), solver="iterative", max_iterations=2, rank=0)
    with pytest.warns(UnsolvedKernelWarning, match="max_iterations"):
        fitted = few.fit(X, Y)
    report = fitted.report
    assert report.iterations == 2 and not report.solved and report.residual > TOLERANCE


def test_the_preconditioner_spares_iterations_and_is_positive_definite() -> None:
    X, Y = problem(each=60, dimension=4)
    spent = []
    for rank in (0, 20, 180):
        fitted = KernelRegression(Laplace(5.0), solver="iterative", rank=rank).fit(X, Y)
        assert fitted.report.iterations is not None
        spent.append(fitted.report.iterations)
    assert spent[2] <= 3 < spent[1] < 0.6 * spent[0]
    system = KernelSystem(Laplace(5.0), X, 0.1, 1 << 30)
    identity = torch.eye(len(X), dtype=X.dtype)
    P = nystrom_preconditioner(system, 20)(identity)
    torch.testing.assert_close(P, P.T)
    assert torch.linalg.eigvalsh(P)[0] > 0
    # Of full rank it is the inverse, but for the factor λ_r + γ.
    P = nystrom_preconditioner(system, len(X))(identity) @ system.matrix()
    condition = float(torch.linalg.cond(system.matrix()))
    atol = factorised(P, len(P), size=float(P[0, 0]), condition=condition)
    torch.testing.assert_close(P, P[0, 0] * identity, rtol=0, atol=atol)


def test_memory_decides_between_the_solvers() -> None:
    X, Y = problem(each=100, dimension=3)
    n = len(X)
    exact = KernelRegression(Laplace(2.0)).fit(X, Y)
    assert exact.report.solver == "cholesky"
    little = KernelRegression(Laplace(2.0), memory=4 * n * n).fit(X, Y)
    assert little.report.solver == "iterative"
    condition = float(torch.linalg.cond(Laplace(2.0)(X)))
    assert relative_error(little.coefficients, exact.coefficients) < TOLERANCE * condition
    with pytest.raises(InputError, match=f"'cholesky' on {n} .*solver='iterative'"):
        KernelRegression(Laplace(2.0), solver="cholesky", memory=4 * n * n).fit(X, Y)
    with pytest.raises(InputError, match="'eigh'"):
        KernelRegression(Laplace(2.0), solver="eigh", memory=16 * n * n).fit(X, Y)


def test_without_memory_for_eigenvalues_the_iteration_takes_over() -> None:
    X, Y = problem(each=100, dimension=3)
    X, Y = torch.cat([X, X[:5] + 1e-15]), torch.cat([Y, Y[:5]])
    with pytest.warns(SingularKernelWarning, match="'iterative'") as caught:
        fitted = KernelRegression(Laplace(2.0), memory=10 * len(X) ** 2).fit(X, Y)
    assert len(caught) == 1
    assert fitted.report.solver == "iterative" and fitted.report.solved


@pytest.mark.parametrize("solver", ["iterative", "cholesky"])
def test_no_tensor_is_larger_than_the_memory(solver: Any) -> None:
    X, Y = problem(each=100, dimension=3)
    memory = {"iterative": 400_000, "cholesky": 900_000}[solver]
    assert 8 * len(X) ** 2 > 400_000
    with LargestTensor() as seen:
        fitted = KernelRegression(Laplace(2.0), solver=solver, memory=memory).fit(X, Y)
        fitted.predict(X)
    assert 8 * len(X) < seen.bytes <= memory
    assert fitted.report.solved


def test_a_memory_that_holds_no_row_is_refused() -> None:
    X, Y = problem()
    with pytest.raises(InputError, match="1,440 bytes"):
        KernelRegression(Laplace(2.0), memory=1000).fit(X, Y)
    with pytest.raises(InputError):
        KernelRegression(Laplace(2.0), memory=0).fit(X, Y)


def test_free_memory_is_read_from_the_system(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    device = torch.device("cpu")
    assert allowed_memory(123, device) == 123
    assert 1 << 20 < allowed_memory(None, device) < 1 << 50
    monkeypatch.setattr(blocks_module, "Path", lambda _: tmp_path / "none")
    assert 1 << 20 < allowed_memory(None, device) < 1 << 50


def test_blocks_cover_every_row_once() -> None:
    for memory in (10, 25, 100, 10**9):
        slices = list(row_blocks(10, 10, memory, "a row"))
        assert [i for block in slices for i in range(10)[block]] == list(range(10))
        assert max(block.stop - block.start for block in slices) <= memory // 10


@pytest.mark.parametrize("n", [1, 2, 31, 32, 33, 70, 600])
def test_a_factorisation_in_place_keeps_its_matrix_above_the_diagonal(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    root = torch.randn(n, n + 5, generator=generator, dtype=torch.float64)
    A = root @ root.T
    exact, Y = A.clone(), torch.randn(n, 3, generator=generator, dtype=torch.float64)
    factor = cholesky(A)
    assert factor is not None and factor.matrix.data_ptr() == A.data_ptr()
    assert torch.equal(factor.matrix.triu(1), exact.mT.triu(1))
    L = factor.matrix.tril()
    torch.testing.assert_close(L, torch.linalg.cholesky(exact))
    torch.testing.assert_close(factor.apply(Y), exact @ Y)
    atol = factorised(A, n, size=float(Y.norm()), condition=float(torch.linalg.cond(exact)))
    torch.testing.assert_close(factor.solve(factor.apply(Y)), Y, rtol=0, atol=atol)


@pytest.mark.parametrize("row", [0, 40, 99])
def test_a_factorisation_of_a_singular_or_indefinite_matrix_is_none(row: int) -> None:
    A = 2 * torch.eye(100, dtype=torch.float64)
    for pivot in (0.0, 1e-16, -1.0, math.nan):
        A[row, row] = pivot
        assert cholesky(A.clone()) is None


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@pytest.mark.parametrize("n", [1, 63, 64, 65, 300])
def test_half_of_a_kernel_matrix_is_all_of_it(kernel: Kernel, n: int) -> None:
    X = blobs(each=100)[0][:n]
    K = KernelSystem(kernel, X, 0.5, 1 << 30).matrix()
    assert torch.equal(K, K.T)
    expected = kernel(X) + 0.5 * torch.eye(n).to(X)
    torch.testing.assert_close(K, expected, rtol=rounding(K, 6, condition=50), atol=0)


@settings(deadline=None, max_examples=30)
@given(
    n=st.integers(1, 12),
    rank=st.integers(1, 12),
    outputs=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_the_minimum_norm_solution_is_that_of_the_pseudo_inverse(
    n: int, rank: int, outputs: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rank = min(rank, n)
    Q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    eigenvalues = torch.arange(1, n + 1, dtype=torch.float64)
    eigenvalues[rank:] = 0
    A = (Q * eigenvalues) @ Q.T
    Y = torch.randn(n, outputs, generator=generator, dtype=torch.float64)
    inverse = torch.where(eigenvalues > 0, 1 / eigenvalues, 0)
    found, counted = minimum_norm_solution((A + A.T) / 2, Y)
    assert counted == rank
    atol = factorised(A, n, size=float(Y.norm()), condition=n)
    torch.testing.assert_close(found, (Q * inverse) @ Q.T @ Y, rtol=0, atol=atol)


@pytest.mark.parametrize("solver", SOLVERS)
def test_one_sample(solver: Any) -> None:
    X, Y = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, -1.0]])
    fitted = KernelRegression(Laplace(2.0), solver=solver).fit(X, Y)
    torch.testing.assert_close(fitted.coefficients, Y)
    torch.testing.assert_close(fitted.predict(X), Y)


@pytest.mark.parametrize("solver", SOLVERS)
def test_targets_of_zero(solver: Any) -> None:
    X, Y = problem()
    fitted = KernelRegression(Laplace(2.0), solver=solver).fit(X, 0 * Y)
    assert (fitted.coefficients == 0).all()
    assert fitted.report.residual == 0 and fitted.report.solved


def test_fitting_again_forgets_the_first_fit() -> None:
    X, Y = problem()
    regression = KernelRegression(Laplace(2.0))
    regression.fit(X[:20], Y[:20])
    assert regression.fit(X, Y) is regression
    torch.testing.assert_close(
        regression.coefficients, KernelRegression(Laplace(2.0)).fit(X, Y).coefficients
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"ridge": -1.0}, "ridge.* -1.0"),
        ({"ridge": math.nan}, "not nan"),
        ({"solver": "choleski"}, "'choleski'.* 'cholesky'"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"max_iterations": 0}, "0"),
        ({"rank": -1}, "-1"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        KernelRegression(Laplace(2.0), **arguments)


@pytest.mark.parametrize(
    ("Y", "told"),
    [
        (torch.zeros(60), r"Y .*\(60,\)"),
        (torch.zeros(59, 2), r"\(59, 2\)"),
        (torch.zeros(60, 0), r"\(60, 0\)"),
        (torch.zeros(60, 2, dtype=torch.float64), "torch.float64"),
        (torch.full((60, 2), math.nan), "Y .*row 0"),
    ],
)
def test_targets_that_do_not_fit_are_refused(Y: Tensor, told: str) -> None:
    X = blobs()[0].to(torch.float32)
    with pytest.raises(InputError, match=told):
        KernelRegression(Laplace(2.0)).fit(X, Y)


def test_predictions_that_cannot_be_are_refused() -> None:
    X, Y = problem()
    regression = KernelRegression(Laplace(2.0))
    with pytest.raises(InputError):
        regression.predict(X)
    regression.fit(X, Y)
    with pytest.raises(InputError, match="2 and 6"):
        regression.predict(X[:, :2])
