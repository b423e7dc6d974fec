"""Polar factors by matrix products: the steps, the inverse square root, the Sylvester equation."""

import math

import numpy as np
import pytest
import torch
from bounds import factorised, infeasibility, rounding
from hypothesis import given, settings
from hypothesis import strategies as st

from ddnkit.linalg import (
    departure_from_orthonormal,
    gram,
    inverse_square_root,
    largest_eigenvalue_bounds,
    odd_quintics,
    polar,
    polar_adjoint,
    polar_adjoint_by_products,
    polar_adjoint_by_vectors,
    positive_inverse,
    skew_sylvester,
)
from ddnkit.linalg.inverse_root import ACCURACY, best_quintic
from ddnkit.linalg.sylvester import doublings_for

DOUBLE = {"dtype": torch.float64}


def frame(*shape):
    return torch.linalg.qr(torch.randn(*shape, **DOUBLE))[0]


def positive(values):
    Q = frame(len(values), len(values))
    return (Q * values) @ Q.T


# -- the steps -------------------------------------------------------------------------------------


@pytest.mark.parametrize("lower", [1e-6, 1e-3, 0.1, 0.9, 0.999])
def test_no_other_quintic_comes_nearer_to_one(lower):
    x = np.linspace(lower, 1, 20_001)

    def error(coefficients):
        a, b, c = coefficients
        return abs(1 - (a * x + b * x**3 + c * x**5)).max()

    best = best_quintic(lower, 1.0)
    least = error(best)
    assert least < 1
    draw = np.random.default_rng(0)
    for size in (1e-6, 1e-3, 0.1):
        for _ in range(200):
            # The maximum is that of a grid, which misses the true one by the square of its spacing.
            assert error(best + size * draw.normal(size=3)) > least - (1 / 20_000) ** 2


def test_on_a_short_interval_it_is_the_step_of_newton_and_schulz():
    found = best_quintic(1 - 1e-6, 1 + 1e-6)
    # To first order in the length of the interval, whose square is below what a limit is taken at.
    assert found == pytest.approx((15 / 8, -10 / 8, 3 / 8), rel=1e-6)
    assert best_quintic(1 - 1e-4, 1 + 1e-4) == pytest.approx(found, rel=1e-4)


@pytest.mark.parametrize("least", [1e-7, 1e-4, 1e-2, 0.5])
def test_steps_take_the_whole_interval_to_one(least):
    x = np.geomspace(least, 1, 10_001)
    for a, b, c in odd_quintics(least):
        x = a * x + b * x**3 + c * x**5
    assert abs(x - 1).max() <= 1.01 * ACCURACY  # between the points that the steps were chosen at


@pytest.mark.parametrize(("least", "steps"), [(1e-7, 13), (1e-4, 9), (1e-2, 6), (0.5, 3)])
def test_as_few_steps_as_the_polar_express(least, steps):
    assert len(odd_quintics(least)) == steps


# -- G^{-1/2} ---------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.floats(-4, 0), st.integers(0, 10**6))
def test_inverse_square_root(C, exponent, seed):
    torch.manual_seed(seed)
    s = torch.logspace(exponent, 0, C, **DOUBLE)
    G = torch.stack([positive(s.square()), positive(s.square())])
    Z = inverse_square_root(G, 10**exponent * 0.9)
    eye = torch.eye(C, **DOUBLE).expand_as(G)
    # Of the iteration ACCURACY, of rounding the condition of G.
    rounded = factorised(G, C, condition=float(s[0]) ** -2)
    E = Z @ G @ Z - eye
    assert torch.linalg.matrix_norm(E, 2).max() < 2.1 * ACCURACY + rounded
    assert torch.equal(Z, Z.mT)
    torch.testing.assert_close(inverse_square_root(G, 10**exponent * 0.9, G @ G), Z)


def test_what_is_below_the_interval_stays_below_one():
    s = torch.tensor([0.0, 1e-6, 0.01, 1.0], **DOUBLE)
    Z = inverse_square_root(torch.diag(s.square()), 0.005)
    reached = Z.diagonal() * s
    assert reached[0] == 0
    assert 0 < reached[1] < 0.1
    torch.testing.assert_close(reached[2:], torch.ones(2, **DOUBLE), atol=2 * ACCURACY, rtol=0)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.floats(-6, 0), st.integers(0, 10**6))
def test_bounds_of_the_largest_eigenvalue(C, exponent, seed):
    torch.manual_seed(seed)
    values = torch.logspace(exponent, 0, C, **DOUBLE)
    G = positive(values)
    lower, upper = largest_eigenvalue_bounds(G, G @ G)
    largest = float(values.max())
    close = 1 + factorised(G, C)
    assert largest * C**-0.25 / close <= float(lower) <= largest * close
    assert largest / close <= float(upper) <= largest * C**0.25 * close
    assert float(lower) >= float(upper) * C**-0.25 / close


def test_bounds_of_nothing_are_zero():
    zero = torch.zeros(2, 3, 3, **DOUBLE)
    assert all((bound == 0).all() for bound in largest_eigenvalue_bounds(zero, zero))


# -- the Sylvester equation ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("condition", [1.0, 5.0, 1e2, 1e4])
@pytest.mark.parametrize("alone", [False, True])
def test_skew_sylvester(dtype, condition, alone):
    C = 20
    s = torch.logspace(-math.log10(condition), 0, C, **DOUBLE)
    if alone:  # one small value among equal ones: the nearest ETF at collapse
        s[1:] = 1
    S = torch.stack([positive(s), 7 * positive(s)])
    T = torch.randn(2, C, C, **DOUBLE)
    K = T - T.mT
    values, Q = torch.linalg.eigh(S)
    expected = Q.mT @ K @ Q / (values.unsqueeze(-1) + values.unsqueeze(-2))
    expected = Q @ expected @ Q.mT
    scale = torch.tensor([1.0, 7.0], **DOUBLE)
    # Bounds that are not sharp, as the caller's are not.
    X, residual = skew_sylvester(
        S,
        K.to(dtype),
        0.4 * scale / condition,
        2 * scale,
        doublings=doublings_for(0.2 / condition, dtype),
    )
    assert X.dtype == residual.dtype == dtype
    error = (X - expected).norm(dim=(-2, -1)) / expected.norm(dim=(-2, -1))
    # Its terms Σ e^{−tS} K e^{−tS} have one sign where S is positive: 20 of them, of C products each, at
    # √C in the mean square, and the root of the condition, as halves of S are inverted.
    assert (error < rounding(dtype, 20 * C**0.5, condition=condition**0.5)).all()
    assert (residual < rounding(dtype, 20 * C**0.5, condition=condition)).all()
    assert torch.equal(X, -X.mT)


def test_too_few_doublings_show_in_the_residual():
    s = torch.logspace(-3, 0, 12, **DOUBLE)
    T = torch.randn(12, 12, **DOUBLE)
    bounds = s[0], s[-1]
    enough = skew_sylvester(positive(s), T - T.T, *bounds, doublings=doublings_for(1e-3, s.dtype))
    too_few = skew_sylvester(positive(s), T - T.T, *bounds, doublings=2)
    assert enough[1] < rounding(s, 20 * 12, condition=1e3)
    assert too_few[1] > 1e-2  # with two, products of s over ¼: e^{-4·1e-3}


def test_nothing_to_solve_is_solved():
    S = positive(torch.linspace(1, 2, 4, **DOUBLE))
    zero = torch.zeros(4, 4, **DOUBLE)
    X, residual = skew_sylvester(S, zero, S.new_tensor(1.0), S.new_tensor(2.0), doublings=3)
    assert torch.equal(X, zero)
    assert residual == 0


def test_positive_inverse():
    M = torch.stack([positive(torch.logspace(-4, 0, 6, **DOUBLE)), torch.eye(6, **DOUBLE)])
    torch.testing.assert_close(positive_inverse(M) @ M, torch.eye(6, **DOUBLE).expand_as(M))


# -- AᵀA --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(30, 7), (450, 401), (2, 520, 430)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gram_by_blocks(shape, dtype):
    A = torch.randn(*shape, dtype=dtype)
    G = gram(A)
    # Sums of d terms of size one: d in the diagonal, √d elsewhere.
    tolerance = rounding(dtype, shape[-2] ** 0.5, size=shape[-2] ** 0.5)
    expected = A.mT @ A
    assert ((G - expected).abs() <= tolerance + rounding(dtype, shape[-2]) * expected.abs()).all()
    assert ((G - G.mT).abs() <= tolerance + rounding(dtype, shape[-2]) * expected.abs()).all()
    departure = torch.linalg.matrix_norm(expected - torch.eye(shape[-1], dtype=dtype))
    tolerance = rounding(dtype, shape[-2] ** 0.5 + shape[-1])
    torch.testing.assert_close(departure_from_orthonormal(A), departure, atol=0, rtol=tolerance)


def test_gram_of_a_matrix_with_a_graph_can_be_differentiated():
    A = torch.randn(410, 405, **DOUBLE).requires_grad_()
    V = torch.randn(405, 405, **DOUBLE)
    (gradient,) = torch.autograd.grad((gram(A) * V).sum(), A)
    torch.testing.assert_close(gradient, A.detach() @ (V + V.T))


@pytest.mark.parametrize("columns", [10, 410])
def test_departure_is_small_for_a_frame_and_not_for_its_neighbour(columns):
    U = frame(450, columns)
    # With what Householder's transformations add, twice that of a frame that is only rounded.
    bound = 2 * infeasibility(U, 450, columns) * columns**0.5
    assert departure_from_orthonormal(U) < bound
    moved = U.clone()
    moved[:, -1] *= 1 + 1e-3
    torch.testing.assert_close(departure_from_orthonormal(moved), moved.new_tensor(2.001e-3))
    moved = U.clone()
    moved[:, -1] = (U[:, 0] + U[:, -1]) / 2**0.5
    torch.testing.assert_close(departure_from_orthonormal(moved), moved.new_tensor(1.0))


# -- the adjoint ------------------------------------------------------------------------------------


def by_definition(U, s, Q, V):
    """U X + (V − U T) S⁻¹, S X + X S = T − Tᵀ, straight from the text."""
    T = U.mT @ V
    X = Q.mT @ (T - T.mT) @ Q / (s.unsqueeze(-1) + s.unsqueeze(-2))
    return U @ Q @ X @ Q.mT + (V - U @ T) @ (Q / s.unsqueeze(-2)) @ Q.mT


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.integers(0, 5), st.floats(-3, 0), st.integers(0, 10**6))
def test_every_form_of_the_adjoint_is_the_same(C, extra, exponent, seed):
    torch.manual_seed(seed)
    s = torch.logspace(exponent, 0, C, **DOUBLE)
    Q = torch.stack([frame(C, C), frame(C, C)])
    U = torch.stack([frame(C + extra, C), frame(C + extra, C)])
    s = s.expand(2, C)
    V = torch.randn_like(U)
    expected = by_definition(U, s, Q, V)
    found = [
        polar_adjoint(U, Q, s, V),
        polar_adjoint_by_vectors(U @ Q, Q, s, V),
        polar_adjoint_by_products(
            U,
            (Q * s.unsqueeze(-2)) @ Q.mT,
            (Q / s.unsqueeze(-2)) @ Q.mT,
            (s[..., 0], s[..., -1]),
            V,
            ratio=10**exponent * 0.5,
        )[0],
    ]
    for gradient in found:
        # Where d = C the definition's second term is a rounding error divided by s, and products have
        # S and its inverse with the rounding of either.
        error = (gradient - expected).norm() / V.norm()
        assert error < factorised(V, C + extra, condition=float(s.min()) ** -2)
    bound = factorised(V, C + extra, condition=float(s.min()) ** -1)
    assert (found[0] - found[1]).norm() < bound * V.norm() / float(s.min())


@pytest.mark.parametrize("shape", [(9, 4), (4, 4), (3, 1), (1, 1)])
def test_a_batch_of_one_and_more_vectors_than_frames(shape):
    A, V = torch.randn(2, *shape, **DOUBLE), torch.randn(3, 2, *shape, **DOUBLE)
    U, Q, s = polar(A)
    bound = factorised(V, shape[0], condition=float((s[:, 0] / s[:, -1]).max()) / float(s.min()))
    for i in range(2):
        alone = [x[i : i + 1] for x in (U, Q, s)]
        together = polar_adjoint(*alone, V[:, i : i + 1])
        assert together.shape == (3, 1, *shape)
        for v, found in zip(V[:, i], together[:, 0], strict=True):
            for other in (
                polar_adjoint(*alone, v.unsqueeze(0)).squeeze(0),
                polar_adjoint(*(x[i] for x in (U, Q, s)), v),
                by_definition(U[i], s[i], Q[i], v),
            ):
                assert (found - other).norm() <= bound * v.norm()
        v = V[0, i : i + 1]
        assert polar_adjoint(*alone, v.float()).dtype == torch.float64
        # U's type is that of the gradient, whatever the others are of.
        U_narrow, Q_i, s_i = alone[0].float(), *alone[1:]
        narrow = polar_adjoint(U_narrow, Q_i, s_i, v)
        assert narrow.dtype == torch.float32
        wide = rounding(torch.float32, 8 * shape[0]) * float(s[i, 0] / s[i, -1]) / float(s[i].min())
        assert (narrow - polar_adjoint(*alone, v)).norm() <= wide * v.norm()


def test_small_values_cost_the_adjoint_no_more_than_their_own_directions():
    # Of A = diag(s) on top of zeros all is known: U = [I; 0], Q = I, and the adjoint of V is, row by row,
    # (Vᵢⱼ − Vⱼᵢ)/(sᵢ + sⱼ) above and Vᵢⱼ/sⱼ below.
    s = torch.tensor([1.0, 1e-3, 1e-9, 1e-12], **DOUBLE)
    U, V = torch.eye(6, 4, **DOUBLE), torch.randn(6, 4, **DOUBLE)
    expected = V / s
    expected[:4] = (V[:4] - V[:4].T) / (s.unsqueeze(-1) + s)
    found = polar_adjoint(U, torch.eye(4, **DOUBLE), s, V)
    # V/s less what of it is normal: in each column of the size of V/s there.
    assert ((found - expected).abs() <= rounding(s, 30) * V.abs().max() / s).all()


@pytest.mark.parametrize("C", [40, 300])
def test_adjoints_in_float32_against_float64(C):
    # One singular value a thousandth of the others, as in the null direction of the nearest ETF.
    s = torch.linspace(1, 3, C, **DOUBLE)
    s[0] = 1e-3
    A = (frame(C + 50, C) * s) @ frame(C, C).T
    U, Q, s = polar(A)
    V = torch.randn_like(A)
    expected = polar_adjoint(U, Q, s, V)
    S, inverse = (Q * s) @ Q.T, (Q / s) @ Q.T
    left, right = (U @ Q).float(), Q.float()
    by_vectors = polar_adjoint_by_vectors(left, right, s, V.float())
    by_products, residual = polar_adjoint_by_products(
        U.float(), S, inverse, (s.min() / 2, s.max() * 2), V.float(), ratio=1e-4
    )
    # Products of C terms in float32, √C in the mean square, one after the other; a vector of the small
    # value, which makes most of the gradient, is rounded itself.
    tolerance = rounding(torch.float32, 4 * C**0.5)
    assert residual < tolerance
    for gradient in (by_vectors, by_products):
        assert (gradient - expected).norm() < tolerance * expected.norm()


def test_where_there_is_no_normal_space_one_value_may_be_zero():
    s = torch.tensor([2.0, 1.0, 0.0], **DOUBLE)
    U, Q, V = frame(3, 3), frame(3, 3), torch.randn(3, 3, **DOUBLE)
    gradient = polar_adjoint(U, Q, s, V)
    near = polar_adjoint(U, Q, s + 1e-9, V)
    # To first order in 1e-9, over sums of two values, 1 and more.
    torch.testing.assert_close(gradient, near, rtol=0, atol=1e-7)
