"""Nodes on manifolds where rounding decides: right by a formula or more digits, or refused."""

import mpmath
import pytest
import torch
from bounds import factorised
from ddnkit_manifolds import (
    SPD,
    FixedRank,
    Grassmann,
    Hyperbolic,
    PositiveSimplex,
    SpecialOrthogonal,
    Stiefel,
)

import ddnkit
from ddnkit.certificate import MOST_ERROR

#: The others share their system with the one that "auto" takes.
FORMS = [
    "auto",
    "krylov",
    *(pytest.param(f, marks=pytest.mark.long) for f in ("dense", "embedded_field")),
]
mpmath.mp.dps = 60


def symmetric(A):
    return (A + A.mT) / 2


def gradient(node, x, form, observed=None):
    """Of Σ cos(k) yₖ, and the certificate."""
    x = x.clone().requires_grad_()
    layer = ddnkit.DeclarativeLayer(node, form, policy="nan")
    y = layer(x)
    y = y if observed is None else observed(y)
    (found,) = torch.autograd.grad((weights(y) * y).sum(), x)
    return found, layer.certificate


def weights(y):
    return torch.arange(1, y.numel() + 1, dtype=torch.float64).cos().reshape(y.shape).to(y)


def right_or_refused(node, x, form, expected, observed=None):
    """The relative error, None where it was refused: never beyond what a certificate lets pass."""
    found, certificate = gradient(node, x, form, observed)
    if certificate.verdicts() != ["trusted"]:
        assert certificate.causes()
        return None
    error = (found.double() - expected).norm() / expected.norm()
    assert error <= MOST_ERROR, f"{form}: {certificate}"
    return float(error)


def with_more_digits(function, x):
    """The gradient of Σ cos(k) yₖ for y of a matrix in mpmath, by differences in sixty digits."""
    X, h = mpmath.matrix(x.tolist()), mpmath.mpf(10) ** -25

    def value(i, j, step):
        moved = X.copy()
        moved[i, j] += step
        y = function(moved)
        w = weights(torch.zeros(y.rows, y.cols).double())
        return sum(
            mpmath.mpf(float(w[a, b])) * y[a, b] for a in range(y.rows) for b in range(y.cols)
        )

    rows = [
        [float((value(i, j, h) - value(i, j, -h)) / (2 * h)) for j in range(X.cols)]
        for i in range(X.rows)
    ]
    return torch.tensor(rows, dtype=torch.float64)


def matrix(values, d=None, det=1, seed=0):
    """A matrix (d, n) with these singular values."""
    generator = torch.Generator().manual_seed(seed)
    n = len(values)
    U, V = (
        torch.linalg.qr(torch.randn(k, n, generator=generator, dtype=torch.float64))[0]
        for k in (d or n, n)
    )
    if d is None and torch.linalg.det(U @ V) * det < 0:
        U[:, 0] *= -1
    return U @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ V.mT


# -- probabilities of very different size ----------------------------------------------------------


class Softmax(ddnkit.DeclarativeNode):
    """min Σ yₖ log yₖ − xᵀy + ½(aᵀy)² on the simplex: y = softmax(x − a s) with s = aᵀy."""

    manifold = PositiveSimplex()
    input_dims = (1,)

    def __init__(self, a):
        self.a = a

    def objective(self, x, y):
        return (y * y.log()).sum() - x @ y + (self.a @ y) ** 2 / 2

    def solve(self, x):
        s = x.new_zeros(())
        for _ in range(100):  # by Newton's method: the derivative of aᵀy by s is −var a
            y = torch.softmax(x - self.a * s, -1)
            mean = self.a @ y
            s = s - (s - mean) / (1 + (self.a - mean) ** 2 @ y)
        return torch.softmax(x - self.a * s, -1)


def of_logarithms(x, a):
    """The gradient of Σ wₖ log yₖ: with r = w − (Σw) y,  r − a∘… by the equation for ds."""
    y = Softmax(a).solve(x)
    w, mean = weights(y), a @ y
    covariance = y * (a - mean)  # of a with each unknown
    r = w - w.sum() * y  # by x, at fixed s
    return r - (r @ a) * covariance / (1 + covariance @ a)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("spread", [1, 5, 20])
@pytest.mark.parametrize("n", [4, 100])
def test_small_probabilities_keep_their_digits(n, spread, coupled, form):
    generator = torch.Generator().manual_seed(n)
    x, a = torch.randn(2, n, generator=generator, dtype=torch.float64)
    x, a = spread * x, a if coupled else torch.zeros_like(a)
    found = right_or_refused(Softmax(a), x, form, of_logarithms(x, a), torch.log)
    # A probability of 1e-40 takes digits from the others, coupled and by an iteration.
    assert found is not None and found < (MOST_ERROR if coupled and spread == 20 else 1e-8)


@pytest.mark.parametrize("n", [1500, 6000])
def test_many_small_probabilities_keep_their_digits(n):
    generator = torch.Generator().manual_seed(n)
    x = 20 * torch.randn(n, generator=generator, dtype=torch.float64)
    a = torch.zeros_like(x)
    found = right_or_refused(Softmax(a), x, "auto", of_logarithms(x, a), torch.log)
    assert found is not None and found < 1e-8


@pytest.mark.parametrize("form", ["auto", "krylov"])
def test_small_probabilities_are_as_unique_as_large_ones(form):
    x, a = torch.tensor([[0.0, 7.0, 20.0, -40.0], [1.0, -1.0, 0.5, 2.0]], dtype=torch.float64)
    x.requires_grad_()
    layer = ddnkit.DeclarativeLayer(Softmax(a), form, policy="raise", certify="full")
    y = layer(x).log()
    (weights(y) * y).sum().backward()
    assert layer.certificate.curvature > 0.1 and layer.certificate.error_bound < 1e-8


# -- gaps that close -------------------------------------------------------------------------------

GAPS = [1e-2, 1e-6, 1e-8, 1e-10, 1e-12, 0.0]
#: Where half of the digits are left there is no reason to refuse.
CLEAR = 1e-8


class Wahba(ddnkit.DeclarativeNode):
    """The nearest rotation."""

    manifold = SpecialOrthogonal()
    input_dims = (2,)

    def objective(self, A, y):
        return (y - A).square().sum()

    def solve(self, A):
        return self.manifold.project(A)


def nearest_rotation(X):
    U, _, V = mpmath.svd_r(X)
    D = mpmath.eye(X.rows)
    D[X.rows - 1, X.rows - 1] = mpmath.sign(mpmath.det(U) * mpmath.det(V))
    return U * D * V


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("det", [1, -1])
def test_rotations(det, gap, form):
    # The two least singular values add up to the gap, or differ by it for a reflection.
    A = matrix([3, 1, 1 - gap] if det < 0 else [3, gap / 2, gap / 2], det=det)
    expected = with_more_digits(nearest_rotation, A) if gap else torch.full_like(A, torch.nan)
    found = right_or_refused(Wahba(), A, form, expected)
    assert (found is None) == (gap < CLEAR) or 0 < gap < CLEAR


@pytest.mark.parametrize("short_of", [1e-3, 1e-9, 0.0])
def test_a_rotation_by_pi_is_like_any_other(short_of):
    axis = torch.tensor([1.0, 2.0, 2.0]).double() / 3
    K = torch.linalg.cross(torch.eye(3).double(), axis.expand(3, 3)).mT
    angle = torch.tensor(torch.pi - short_of, dtype=torch.float64)
    R = torch.eye(3).double() + angle.sin() * K + (1 - angle.cos()) * K @ K
    A = R @ torch.tensor([1.0, 1.1, 1.3], dtype=torch.float64).diag()
    found = right_or_refused(Wahba(), A, "auto", with_more_digits(nearest_rotation, A))
    # Of a polar factor whose singular values add up to two at least.
    assert found is not None and found < factorised(torch.float64, 3, condition=10)


class Polar(ddnkit.DeclarativeNode):
    """The nearest matrix with orthonormal columns."""

    manifold = Stiefel()
    input_dims = (2,)

    def objective(self, A, y):
        return -(y * A).sum()

    def solve(self, A):
        return self.manifold.project(A)


def polar_factor(X):
    U, _, V = mpmath.svd_r(X)
    return U * V


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("d", [3, 5])
@pytest.mark.parametrize(
    "values", [[2, 1, 1], [2, 1, 1e-8], [2, 1e-8, 1e-8], [2, 1e-11, 1e-11], [2, 1e-14, 1e-14]]
)
def test_orthonormal_factors(values, d, form):
    A = matrix(values, d)
    found = right_or_refused(Polar(), A, form, with_more_digits(polar_factor, A))
    # The factor has a derivative where the two least values have a sum, or the only ones beside a row.
    assert found is not None or max(values[1:]) < CLEAR


class Subspace(ddnkit.DeclarativeNode):
    """The leading subspace of dimension 2."""

    manifold = Grassmann()
    input_dims = (2,)

    def objective(self, A, y):
        return -(y.mT @ symmetric(A) @ y).trace()

    def solve(self, A):
        return torch.linalg.eigh(symmetric(A))[1][:, -2:]


def projector(X):
    _, V = mpmath.eigsy((X + X.T) / 2)
    U = V[:, X.rows - 2 :]
    return U * U.T


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gap", GAPS)
def test_subspaces(gap, form):
    Q = matrix([1, 1, 1, 1])
    A = symmetric(Q @ torch.tensor([1, 3, 3 + gap, 5], dtype=torch.float64).diag() @ Q.mT)
    expected = with_more_digits(projector, A) if gap else torch.full_like(A, torch.nan)
    found = right_or_refused(Subspace(), A, form, expected, lambda U: U @ U.mT)
    assert (found is None) == (gap < CLEAR) or 0 < gap < CLEAR


class LowRank(ddnkit.DeclarativeNode):
    """The nearest matrix of rank 2."""

    manifold = FixedRank(4)
    input_dims = (2,)

    def objective(self, A, y):
        return (self.manifold.matrix(y) - A).square().sum()

    def solve(self, A):
        return self.manifold.of_matrix(A, 2)


def truncated(X):
    U, S, V = mpmath.svd_r(X)
    return U[:, :2] * mpmath.diag(S[:2]) * V[:2, :]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("values", "clear"),
    [
        ([3, 3, 1, 0.5], True),
        ([3, 2, 2 - 1e-6, 0.5], True),
        ([3, 2, 2 - 1e-10, 0.5], None),
        ([3, 2, 2, 0.5], False),
        ([3, 1e-6, 1e-9, 1e-10], True),
        ([3, 1e-12, 1e-14, 1e-14], None),
        ([3, 0, 0, 0], False),
    ],
)
def test_low_rank(values, clear, form):
    A = matrix(values)
    expected = torch.full_like(A, torch.nan) if clear is False else with_more_digits(truncated, A)
    found = right_or_refused(LowRank(), A, form, expected, LowRank.manifold.matrix)
    assert clear is None or (found is not None) == clear


# -- far from the middle ---------------------------------------------------------------------------


class GeometricMean(ddnkit.DeclarativeNode):
    """min tr(A⁻¹Y) + tr(Y⁻¹B): the geometric mean A # B."""

    manifold = SPD()
    input_dims = (3,)

    def objective(self, x, y):
        A, B = symmetric(x)
        return torch.linalg.solve(A, y).trace() + torch.linalg.solve(y, B).trace()

    def solve(self, x):
        A, B = (mpmath.matrix(one.tolist()) for one in symmetric(x))
        Y = geometric_mean(A, B)
        return x.new_tensor([[float(Y[i, j]) for j in range(3)] for i in range(3)])


def geometric_mean(A, B):
    def power(X, function):
        values, vectors = mpmath.eigsy((X + X.T) / 2)
        return vectors * mpmath.diag([function(value) for value in values]) * vectors.T

    root, inverse = power(A, mpmath.sqrt), power(A, lambda value: 1 / mpmath.sqrt(value))
    return root * power(inverse * B * inverse, mpmath.sqrt) * root


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("condition", [1e2, 1e6, 1e8, 1e10, 1e14])
def test_means_near_the_boundary(condition, form):
    values = [1, condition**-0.5, 1 / condition]
    x = torch.stack(
        [
            symmetric(Q @ torch.tensor(values, dtype=torch.float64).diag() @ Q.mT)
            for Q in (matrix([1, 1, 1], seed=k) for k in range(2))
        ]
    )
    expected = with_more_digits(
        lambda X: geometric_mean((X[:3, :] + X[:3, :].T) / 2, (X[3:, :] + X[3:, :].T) / 2),
        x.reshape(6, 3),
    ).reshape(x.shape)
    found = right_or_refused(GeometricMean(), x, form, expected)
    assert found is not None or condition > 1e8


class AboveCone(ddnkit.DeclarativeNode):
    """max ⟨a, y⟩ of the Lorentz model: y = a/√−⟨a, a⟩."""

    manifold = Hyperbolic()
    input_dims = (1,)

    def objective(self, a, y):
        return a[0] * y[0] - a[1:] @ y[1:]

    def solve(self, a):
        return self.manifold.project(a / (a[0] ** 2 - a[1:] @ a[1:]).sqrt())


def on_sheet(X):
    return X / mpmath.sqrt(X[0] ** 2 - X[1] ** 2 - X[2] ** 2 - X[3] ** 2)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("far", [1, 1e2, 1e4, 1e6, 1e7])
def test_points_far_out(far, form):
    r = far * torch.tensor([0.3, -1.2, 0.8]).double()
    a = 1.5 * torch.cat([(1 + r @ r).sqrt().reshape(1), r])
    expected = with_more_digits(on_sheet, a.unsqueeze(0))[0]
    found = right_or_refused(AboveCone(), a, form, expected)
    assert found is not None or far > 1e4
