"""Simplex ETFs and frames."""

import pytest
import torch
from ddnkit_etf import canonical_frame, etf_of_frame, haar_frame, simplex_etf
from ddnkit_etf.simplex import complete_frame, expand, reduce
from hypothesis import given, settings
from hypothesis import strategies as st

from ddnkit import InputError

DOUBLE = {"dtype": torch.float64}


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 12), st.integers(-1, 5), st.sampled_from(["canonical", "haar"]))
def test_simplex_etf_has_unit_columns_and_equal_angles(C, extra, direction):
    M = simplex_etf(C, C + extra, direction=direction, **DOUBLE)
    cosines = torch.full((C, C), -1 / (C - 1), **DOUBLE).fill_diagonal_(1)
    assert M.shape == (C + extra, C)
    torch.testing.assert_close(M.T @ M, cosines)


@given(st.integers(2, 10), st.integers(1, 5))
def test_reduce_and_expand_are_an_orthonormal_basis(C, d):
    E = reduce(torch.eye(C, **DOUBLE))
    torch.testing.assert_close(E.T @ E, torch.eye(C - 1, **DOUBLE))
    torch.testing.assert_close(E.sum(0), torch.zeros(C - 1, **DOUBLE))
    X = torch.randn(d, C, **DOUBLE)
    torch.testing.assert_close(reduce(X), X @ E)
    torch.testing.assert_close(expand(X @ E), X @ E @ E.T)


@pytest.mark.parametrize(("d", "C"), [(5, 5), (8, 5), (2, 2)])
def test_complete_frame_is_a_frame_and_differentiable(d, C):
    Y = reduce(haar_frame(d, C, **DOUBLE)).requires_grad_()
    U = complete_frame(Y)
    torch.testing.assert_close(U.T @ U, torch.eye(C, **DOUBLE))
    torch.testing.assert_close(reduce(U), Y)
    assert torch.autograd.gradcheck(complete_frame, Y)


def test_complete_frame_where_the_preferred_direction_is_taken():
    d = C = 3
    u = torch.tensor([[1.0], [-1.0], [0.0]], **DOUBLE) / 2**0.5  # orthogonal to (1, 1, 1)
    Y = torch.linalg.svd(torch.eye(d, **DOUBLE) - u @ u.T)[0][:, :2]
    U = complete_frame(Y)
    torch.testing.assert_close(U.T @ U, torch.eye(C, **DOUBLE))


def test_frames():
    assert canonical_frame(5, 3).tolist()[0] == [1, 0, 0]
    haar = haar_frame(6, 4, **DOUBLE)
    torch.testing.assert_close(haar.T @ haar, torch.eye(4, **DOUBLE))
    torch.testing.assert_close(etf_of_frame(canonical_frame(3, 3)), simplex_etf(3))


def test_what_has_no_simplex_etf():
    with pytest.raises(InputError, match=r"\b4\b.*\b3\b"):
        simplex_etf(5, 3)
    with pytest.raises(InputError, match="2 classes"):
        simplex_etf(1)
    with pytest.raises(InputError, match="'canonical' or 'haar'"):
        simplex_etf(3, direction="random")
