"""Kernels against their formulas, their distances against differences, gradients and spectral densities."""

from __future__ import annotations

import math

import pytest
import torch
from bounds import rounding
from ddnkit_rfm import Gaussian, Kernel, L1Laplace, Laplace, RadialKernel
from ddnkit_rfm.kernels import squared_distances
from hypothesis import given, settings
from hypothesis import strategies as st
from rfm_data import KERNELS, Linear, blobs, relative_error, scalar
from torch import Tensor
from torch.func import grad, vmap

from ddnkit import InputError

KINDS = [Laplace, Gaussian, L1Laplace]
#: What `squared_distances` promises of a distance; of few dimensions ten times that is its worst case.
DIGITS = 1e-10


def every_pair(kernel: Kernel, X: Tensor, Z: Tensor) -> Tensor:
    k = scalar(kernel)
    return vmap(lambda x: vmap(lambda z: k(x, z))(Z))(X)


def by_differences(X: Tensor, Z: Tensor) -> Tensor:
    return (X.to(torch.float64)[:, None] - Z.to(torch.float64)).norm(dim=2)


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_are_those_of_the_formula(kernel: Kernel, dtype: torch.dtype) -> None:
    X, Z = (blobs(seed=seed)[0].to(dtype) for seed in (0, 1))
    found = kernel(X, Z[:7])
    assert found.shape == (60, 7) and found.dtype == dtype
    expected = every_pair(kernel, X.to(torch.float64), Z[:7].to(torch.float64))
    # An exponent of six terms is off relative to itself, and so the value by that times the exponent.
    rtol = rounding(dtype, 6, condition=1 - float(expected.log().min()))
    if dtype == torch.float64:  # the precision in which the terms of a distance cancel
        square = by_differences(X, Z[:7]).square()
        norms = X.square().sum(dim=1)[:, None] + Z[:7].square().sum(dim=1)
        rtol *= float((norms / square).max())
    torch.testing.assert_close(found.to(torch.float64), expected, rtol=rtol, atol=0)


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_diagonal_is_one_exactly_and_so_is_a_coinciding_pair(
    kernel: Kernel, dtype: torch.dtype
) -> None:
    X = 1e3 + blobs()[0].to(dtype)
    X[1] = X[0]
    K = kernel(X)
    assert (K.diagonal() == 1).all()
    assert (kernel.diagonal(X) == 1).all()
    assert K[0, 1] == 1 and K[1, 0] == 1
    torch.testing.assert_close(K, K.T, rtol=rounding(dtype, 6, condition=50), atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("spread", [1.0, 1e-1, 1e-2, 4e-3, 1e-3, 1e-6])
def test_distances_keep_their_digits_where_samples_are_near(
    dtype: torch.dtype, offset: float, spread: float
) -> None:
    X = (blobs(dimension=300, spread=spread)[0] + offset).to(dtype)
    found, expected = squared_distances(X, X).sqrt(), by_differences(X, X)
    apart = expected > 0
    assert ((found - expected).abs()[apart] <= DIGITS * expected[apart]).all()
    assert (found[~apart] == 0).all()


def test_the_usual_product_in_float32_would_lose_them() -> None:
    X = blobs(dimension=300, spread=1e-3)[0].to(torch.float32)
    norms = X.square().sum(dim=1)
    naive = (norms[:, None] + norms - 2 * X @ X.T).clamp(min=0).sqrt().to(torch.float64)
    expected = by_differences(X, X)
    within = (expected < 1) & (expected > 0)
    assert ((naive - expected).abs() / expected)[within].median() > 0.02


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
    dimension=st.integers(1, 8),
    offset=st.floats(-1e6, 1e6),
    spread=st.floats(1e-9, 1e6),
    single=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_distances_of_any_size(
    rows: int, columns: int, dimension: int, offset: float, spread: float, single: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    both = torch.randn(rows + columns, dimension, generator=generator, dtype=torch.float64)
    both = (offset + spread * both).to(torch.float32 if single else torch.float64)
    X, Z = both.split([rows, columns])
    expected = by_differences(X, Z)
    torch.testing.assert_close(squared_distances(X, Z).sqrt(), expected, rtol=10 * DIGITS, atol=0)


def test_pairs_that_count_as_coinciding_have_distance_zero() -> None:
    X = torch.tensor([[1.0, 0.0], [1.0, 1e-9], [-1.0, 0.0]], dtype=torch.float64)
    assert squared_distances(X, X)[0, 1] > 0
    near = squared_distances(X, X, coincidence=1e-8)
    assert near[0, 1] == 0 and near[0, 2] == 4
    # Relative to a centre that is given: of two points alone the mean is too near.
    assert squared_distances(X[:2], X[:2], coincidence=1e-8)[0, 1] > 0
    given = squared_distances(X[:2], X[:2], coincidence=1e-8, centre=X.mean(dim=0))
    assert given[0, 1] == 0


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_gradients_are_autograds(kernel: Kernel) -> None:
    X, Z = blobs()[0][:9], blobs(seed=1)[0]
    Z[:3] = X[:3]  # where the Laplace kernels have no derivative, and 0 is taken
    alpha = torch.randn(len(Z), 4, dtype=torch.float64)
    k = scalar(kernel)
    found = kernel.gradients(X, Z, alpha)
    assert found.shape == (9, 4, 6)
    for c in range(4):
        expected = vmap(grad(lambda x, c=c: vmap(lambda z: k(x, z))(Z) @ alpha[:, c]))(X)
        torch.testing.assert_close(
            found[:, c],
            expected,
            rtol=0,
            atol=rounding(alpha, 60, size=float(alpha[:, c].abs().sum())),
        )


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_gradients_do_not_suffer_from_a_common_offset(kernel: Kernel) -> None:
    X, _ = blobs()
    alpha = torch.randn(len(X), 2, dtype=torch.float64)
    found = kernel.gradients(X + 2.0**20, X + 2.0**20, alpha)
    # The sums round the samples themselves; 60 terms of them cancel.
    bound = rounding(X, 60, condition=2.0**20)
    assert relative_error(found, kernel.gradients(X, X, alpha)) < bound


def test_samples_at_the_distance_of_rounding_count_as_coinciding() -> None:
    """At such a distance D the weight 1/(LD) would multiply rounding by as much as 1e23."""
    X = torch.tensor([[1.0, 0.0], [1.0, 1e-30], [-1.0, 0.5]], dtype=torch.float32)
    slopes = Laplace(2.0).slopes(X, X)
    assert slopes[0, 1] == 0 and (slopes.diagonal() == 0).all()
    gradients = Laplace(2.0).gradients(X, X, torch.eye(3))
    assert gradients.abs().max() <= 0.5


def test_the_slopes_of_near_samples_are_finite_and_right() -> None:
    X = torch.tensor([[1.0, 0.0], [1.0, 1e-7], [-1.0, 0.5]], dtype=torch.float64)
    assert float(Laplace(2.0).slopes(X, X)[0, 1]) == pytest.approx(-1 / 2e-7, rel=1e-6)


class Cauchy(RadialKernel):
    """A stranger's kernel, 1/(1 + D²/L²)."""

    def profile(self, distance: Tensor) -> Tensor:
        return 1 / (1 + (distance / self.bandwidth) ** 2)

    def slope(self, distance: Tensor) -> Tensor:
        return -2 / self.bandwidth**2 * self.profile(distance) ** 2


def test_a_kernel_of_ones_own() -> None:
    X, _ = blobs()
    kernel = Cauchy(2.0)
    torch.testing.assert_close(kernel(X), 1 / (1 + by_differences(X, X) ** 2 / 4))
    alpha = torch.randn(len(X), 1, dtype=torch.float64)
    expected = vmap(grad(lambda x: (1 / (1 + (x - X).square().sum(1) / 4)) @ alpha[:, 0]))(X)
    torch.testing.assert_close(kernel.gradients(X, X, alpha)[:, 0], expected)
    with pytest.raises(InputError, match="Cauchy"):
        kernel.frequencies(3, 2, torch.Generator())
    linear = Linear(2.0)
    torch.testing.assert_close(linear.diagonal(X), X.square().sum(dim=1) / 4)


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_frequencies_are_of_the_spectral_density(kernel: Kernel) -> None:
    """E cos⟨ω, x − z⟩ = k(x, z); the mean of 20,000 has a deviation of at most 0.005."""
    X, _ = blobs(each=4, dimension=3)
    omega = kernel.frequencies(20_000, 3, torch.Generator().manual_seed(0))
    differences = (X[:, None] - X).flatten(0, 1)
    found = (differences @ omega.T).cos().mean(dim=1)
    torch.testing.assert_close(found, kernel(X).flatten(), rtol=0, atol=0.02)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bandwidth", [0.0, -1.0, math.nan, math.inf])
def test_a_bandwidth_that_is_no_length_is_refused(kind: type[Kernel], bandwidth: float) -> None:
    with pytest.raises(InputError, match=f"{bandwidth}"):
        kind(bandwidth)


@pytest.mark.parametrize(
    ("X", "Z", "told"),
    [
        (torch.zeros(3), None, r"X .*\(3,\).*\(n, d\)"),
        (torch.zeros(3, 0), None, r"shape \(3, 0\)"),
        (torch.zeros(0, 2), None, r"shape \(0, 2\)"),
        (torch.zeros(3, 2, dtype=torch.int64), None, r"int64\b.*torch\.float32"),
        (torch.zeros(3, 2, dtype=torch.float16), None, r"float16\b.*torch\.float32"),
        (torch.tensor([[0.0], [math.nan]]), None, "X .*row 1"),
        (torch.tensor([[math.inf], [1.0]]), None, "X .*row 0"),
        (torch.zeros(3, 2), torch.zeros(3, 4), r"X and Z .*\b2\b.*\b4\b"),
        (torch.zeros(3, 2), torch.zeros(3, 2).double(), "X and Z .*dtype"),
        (torch.zeros(3, 2), torch.tensor([[0.0, math.nan]]), "Z .*row 0"),
    ],
)
def test_samples_that_cannot_be_are_refused(X: Tensor, Z: Tensor | None, told: str) -> None:
    with pytest.raises(InputError, match=told):
        Laplace(2.0)(X, Z)
