"""AGOPs of kernel machines against autograd's Jacobians, in both forms and in blocks; square roots."""

from __future__ import annotations

import math

import pytest
import torch
from bounds import eps, factorised, rounding
from ddnkit_rfm import (
    Gaussian,
    Kernel,
    KernelRegression,
    L1Laplace,
    Laplace,
    agop,
    label_targets,
    matrix_sqrt,
)
from ddnkit_rfm.kernel_agop import gradient_sum, gram_sum, own_gram_sum
from ddnkit_rfm.kernels import RadialKernel
from hypothesis import given, settings
from hypothesis import strategies as st
from rfm_data import KERNELS, LargestTensor, Linear, blobs, relative_error, scalar
from torch import Tensor
from torch.func import jacrev, vmap

from ddnkit import InputError

PLENTY = 1 << 30


def machine(
    kernel: Kernel, outputs: int = 4, *, each: int = 15, dimension: int = 5, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Samples, two of which coincide with others, and coefficients that mean nothing."""
    X, _ = blobs(each=each, dimension=dimension, seed=seed)
    X[1], X[2] = X[0], X[7]
    generator = torch.Generator().manual_seed(seed)
    alpha = torch.randn(len(X), outputs, generator=generator, dtype=torch.float64)
    return X, alpha


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm())


def by_jacobians(kernel: Kernel, X: Tensor, alpha: Tensor, Z: Tensor) -> Tensor:
    k = scalar(kernel)
    J = vmap(jacrev(lambda x: alpha.T @ vmap(lambda z: k(x, z))(Z)))(X)
    return torch.einsum("ncd,nce->de", J, J) / len(X)


def sums(kernel: Kernel, X: Tensor, alpha: Tensor, Z: Tensor) -> float:
    """What an AGOP in float64 may be off by, in norm, in any order of its sums and by either form.

    It is a sum of N·C products of two gradients, each a sum of n terms α ∂k(x, z): the rounding of that
    is of the size of the sum of their absolute values. Each term is known to ε/D, at a distance of x and
    z of D relative to their norms, and the form by Gram matrix promises ε^⅔ (its docstring).
    """
    slope = torch.func.grad(scalar(kernel))
    slopes = vmap(lambda x: vmap(lambda z: slope(x, z))(Z))(X).abs()
    centre = Z.mean(dim=0)
    norms = (X - centre).norm(dim=1)[:, None] + (Z - centre).norm(dim=1)
    apart = (X[:, None] - Z).norm(dim=-1)
    grown = torch.where(apart > 0, 1 + norms / torch.where(apart > 0, apart, 1.0), 1.0)
    plain, felt = (
        torch.einsum("nz...,zc->nc...", s, alpha.abs()) for s in (slopes, slopes * grown[..., None])
    )
    size = float((torch.einsum("ncd,nce->de", plain, felt) / len(X)).norm())
    promised = 2 * eps(X) ** (2 / 3) * float(agop(kernel, X, alpha, centres=Z).trace())
    return rounding(X, len(X) * alpha.shape[1] + 2 * len(Z), size=size) + promised


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@pytest.mark.parametrize("outputs", [1, 4, 200])
def test_it_is_that_of_autograd_s_jacobians(kernel: Kernel, outputs: int) -> None:
    X, alpha = machine(kernel, outputs)
    M = agop(kernel, X, alpha)
    assert M.shape == (5, 5) and M.dtype == torch.float64
    assert distance(M, by_jacobians(kernel, X, alpha, X)) < sums(kernel, X, alpha, X)


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@pytest.mark.parametrize("outputs", [2, 200])
def test_points_may_be_others_than_the_centres(kernel: Kernel, outputs: int) -> None:
    Z, alpha = machine(kernel, outputs)
    X = torch.cat([blobs(seed=1, dimension=5)[0], Z[:3]])
    M = agop(kernel, X, alpha, centres=Z)
    assert distance(M, by_jacobians(kernel, X, alpha, Z)) < sums(kernel, X, alpha, Z)


@pytest.mark.parametrize("kernel", [Laplace(2.0), Gaussian(1.5)], ids=repr)
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_both_forms_are_the_same(kernel: RadialKernel, offset: float) -> None:
    Z, alpha = machine(kernel)
    X, Z = offset + blobs(seed=1, dimension=5)[0], offset + Z
    by_gradients = gradient_sum(kernel, X, Z, alpha, PLENTY)
    by_gram = gram_sum(kernel, X, Z, alpha, PLENTY)
    assert by_gram is not None
    assert distance(by_gram / len(X), by_gradients / len(X)) < sums(kernel, X, alpha, Z)
    own = own_gram_sum(kernel, Z, alpha, PLENTY)
    assert own is not None
    by_gradients = gradient_sum(kernel, Z, Z, alpha, PLENTY)
    assert distance(own / len(Z), by_gradients / len(Z)) < sums(kernel, Z, alpha, Z)


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@pytest.mark.parametrize("memory", [4_000, 5_000, 7_777, 20_000, 60_000, 200_000])
def test_blocks_change_nothing(kernel: Kernel, memory: int) -> None:
    X, alpha = machine(kernel)
    Z = X[:11]
    whole = gradient_sum(kernel, X, Z, alpha[:11], PLENTY)
    bound = len(X) * sums(kernel, X, alpha[:11], Z)
    assert distance(gradient_sum(kernel, X, Z, alpha[:11], memory), whole) < bound
    if isinstance(kernel, RadialKernel):
        whole, part = (gram_sum(kernel, X, Z, alpha[:11], m) for m in (PLENTY, memory))
        assert whole is not None and part is not None
        assert distance(part, whole) < bound


@pytest.mark.parametrize("each", [15, 60])
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_blocks_change_nothing_at_the_machine_s_own_centres(each: int, rows: int) -> None:
    Z, alpha = machine(Laplace(2.0), each=each)
    n = len(Z)
    memory = 8 * n * n + 40 * n * rows
    whole, part = (own_gram_sum(Laplace(2.0), Z, alpha, m) for m in (PLENTY, memory))
    assert whole is not None and part is not None
    assert distance(part, whole) < n * sums(Laplace(2.0), Z, alpha, Z)
    assert torch.equal(whole, whole.T)
    assert own_gram_sum(Laplace(2.0), Z, alpha, 8 * n * n) is None


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from([Laplace, Gaussian, L1Laplace]),
    bandwidth=st.floats(0.3, 10),
    points=st.integers(1, 6),
    centres=st.integers(1, 6),
    dimension=st.integers(1, 5),
    outputs=st.integers(1, 8),
    seed=st.integers(0, 1000),
)
def test_it_is_that_of_the_jacobians_at_all_sizes(
    kind: type[Kernel],
    bandwidth: float,
    points: int,
    centres: int,
    dimension: int,
    outputs: int,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    X, Z, alpha = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((points, dimension), (centres, dimension), (centres, outputs))
    )
    kernel = kind(bandwidth)
    expected = by_jacobians(kernel, X, alpha, Z)
    found = agop(kernel, X, alpha, centres=Z)
    assert distance(found, expected) <= sums(kernel, X, alpha, Z)


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@pytest.mark.parametrize("outputs", [4, 200])
def test_it_is_symmetric_semidefinite_and_the_same_again(kernel: Kernel, outputs: int) -> None:
    X, alpha = machine(kernel, outputs)
    M = agop(kernel, X, alpha)
    assert torch.equal(M, M.T)
    assert torch.equal(M, agop(kernel, X, alpha))
    eigenvalues = torch.linalg.eigvalsh(M)
    assert eigenvalues[0] > -rounding(M, len(X) * outputs) * eigenvalues[-1]


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@pytest.mark.parametrize("outputs", [4, 200])
def test_float32_is_near_float64(kernel: Kernel, outputs: int) -> None:
    X, alpha = (part.to(torch.float32) for part in machine(kernel, outputs))
    M = agop(kernel, X, alpha)
    assert M.dtype == torch.float32 and torch.equal(M, M.T)
    expected = agop(kernel, X.to(torch.float64), alpha.to(torch.float64))
    # The sums of 45 terms cancel to 1/√45, as such of random signs do.
    assert relative_error(M, expected) < rounding(M, 45, condition=45**0.5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("spread", [1e-1, 1e-3, 1e-5])
def test_samples_that_have_nearly_collapsed(dtype: torch.dtype, spread: float) -> None:
    """The form by Gram matrix would lose ε/spread², and is given up before it does."""
    X, labels = blobs(each=10, spread=spread, dimension=30)
    kernel, X = Laplace(2.0), X.to(dtype)
    wide = X.to(torch.float64)
    # A hundred outputs, for the Gram matrix to be the cheaper form.
    alpha = KernelRegression(kernel).fit(wide, label_targets(labels).repeat(1, 34)).coefficients
    expected = by_jacobians(kernel, wide, alpha, wide)
    assert relative_error(agop(kernel, X, alpha.to(dtype)), expected) < max(
        2 * eps(dtype) ** (2 / 3), rounding(dtype, 30, condition=1 / spread)
    )
    for found in (
        gram_sum(kernel, X, X, alpha.to(dtype), PLENTY),
        own_gram_sum(kernel, X, alpha.to(dtype), PLENTY),
    ):
        assert (found is not None) == (spread == 1e-1)


def test_samples_at_the_distance_of_rounding_do_not_blow_up() -> None:
    X = torch.tensor([[1.0, 0.0], [1.0, 1e-30], [-1.0, 0.5]])
    for outputs in (1, 50):
        alpha = torch.ones(3, outputs)
        M = agop(Laplace(2.0), X, alpha)
        coinciding = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.5]])
        torch.testing.assert_close(M, agop(Laplace(2.0), coinciding, alpha))


def test_slopes_whose_squares_overflow_do_not_reach_the_result() -> None:
    X = 1e-25 * blobs(dimension=5)[0].to(torch.float32)
    M = agop(Laplace(1.0), X, torch.randn(len(X), 100))
    assert M.isfinite().all() and M.trace() > 0


@pytest.mark.parametrize("outputs", [3, 300])  # gradients of 29 kB, and of 2.9 MB: N×C×d
@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_no_tensor_is_larger_than_the_memory(kernel: Kernel, outputs: int) -> None:
    X, alpha = machine(kernel, outputs, each=50, dimension=8)
    memory = 400_000
    with LargestTensor() as seen:
        M = agop(kernel, X, alpha, memory=memory)
    assert seen.bytes <= memory
    assert distance(M, agop(kernel, X, alpha)) < sums(kernel, X, alpha, X)


def test_a_machine_of_one_sample_or_of_samples_that_coincide_is_flat() -> None:
    for kernel in KERNELS:
        for X in (torch.ones(1, 3), torch.ones(5, 3)):
            for outputs in (1, 50):
                M = agop(kernel, X, torch.ones(len(X), outputs))
                assert torch.equal(M, torch.zeros(3, 3))


def test_a_kernel_of_ones_own_and_section_5_1_s_agop_of_a_linear_machine() -> None:
    """f(x) = βᵀx has the gradient β everywhere: M = ββᵀ."""
    X, alpha = machine(Linear(2.0))
    beta = X.T @ alpha / 4
    torch.testing.assert_close(agop(Linear(2.0), X, alpha), beta @ beta.T)


def test_the_gram_form_is_left_alone_where_memory_holds_no_matrix_of_its_size() -> None:
    X, alpha = machine(Laplace(2.0), 200, each=40)
    memory = 8 * len(X) ** 2
    assert gram_sum(Laplace(2.0), X, X, alpha, memory) is None
    found = agop(Laplace(2.0), X, alpha, memory=memory)
    assert distance(found, agop(Laplace(2.0), X, alpha)) < sums(Laplace(2.0), X, alpha, X)


def test_what_does_not_fit_is_refused() -> None:
    X, alpha = machine(Laplace(2.0))
    with pytest.raises(InputError, match=r"coefficients .*\(44, 4\)"):
        agop(Laplace(2.0), X, alpha[:-1])
    with pytest.raises(InputError, match=r"coefficients .*row 3"):
        agop(Laplace(2.0), X, alpha.index_fill(0, torch.tensor([3]), math.nan))
    with pytest.raises(InputError, match="5 and 2"):
        agop(Laplace(2.0), X, alpha, centres=X[:, :2])
    with pytest.raises(InputError, match="X"):
        agop(Laplace(2.0), X / 0, alpha)
    with pytest.raises(InputError, match="bytes"):
        agop(Laplace(2.0), X, alpha, memory=100)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_square_root_squares_to_its_matrix(dtype: torch.dtype) -> None:
    A = torch.randn(7, 4, dtype=torch.float64)
    M = (A @ A.T).to(dtype)
    root, clipped = matrix_sqrt(M)
    assert root.dtype == dtype and torch.equal(root, root.T)
    tolerance = factorised(dtype, 7)
    assert relative_error(root @ root, M) < tolerance
    eigenvalues = torch.linalg.eigvalsh(root.to(torch.float64))
    assert eigenvalues[0] > -tolerance * eigenvalues[-1]
    assert 0 <= clipped < tolerance


def test_negative_rounding_is_clipped_and_noted() -> None:
    M = torch.diag(torch.tensor([4.0, 1.0, -4e-6], dtype=torch.float64))
    root, clipped = matrix_sqrt(M)
    torch.testing.assert_close(root, torch.diag(torch.tensor([2.0, 1.0, 0.0]).to(M)))
    assert clipped == pytest.approx(1e-6)
    assert matrix_sqrt(torch.zeros(3, 3)).clipped == 0
    assert torch.equal(matrix_sqrt(torch.zeros(3, 3)).root, torch.zeros(3, 3))


@pytest.mark.parametrize(
    ("M", "told"),
    [
        (torch.zeros(2, 3), r"\(2, 3\)"),
        (torch.zeros(0, 0), r"\(0, 0\)"),
        (torch.tensor([[1.0, 2.0], [0.0, 1.0]]), "symmetric"),
        (torch.diag(torch.tensor([1.0, -0.1])), "-0.1"),
        (-torch.eye(2), "semidefinite"),
        (torch.diag(torch.tensor([1.0, math.nan])), "NaN"),
    ],
)
def test_matrices_without_a_square_root_are_refused(M: Tensor, told: str) -> None:
    with pytest.raises(InputError, match=told):
        matrix_sqrt(M)
