"""Nodes on quotients: the same gradient from every representative, and what tells representatives apart."""

import pytest
import torch
from bounds import factorised
from ddnkit_manifolds import Euclidean, FixedRank, Grassmann, Product

import ddnkit

FORMS = ["auto", "dense", "embedded_field", "krylov"]
#: What the gauge may change: rounding of a solve of order 24 at a condition of at most 100.
ROUNDING = factorised(torch.float64, 24, condition=100)
N = torch.tensor([2.0, 1.0]).double()
B = torch.diag(torch.arange(5.0)).double()
b = torch.tensor([1.0, 2.0, 0.0, 0.0, 1.0]).double() / 6**0.5


def symmetric(A):
    return (A + A.mT) / 2


def leading(A):
    return torch.linalg.eigh(symmetric(A))[1][..., -2:]


class Subspace(ddnkit.DeclarativeNode):
    """The leading subspace of A, by the basis ``solution(A) @ turned``."""

    manifold = Grassmann()
    input_dims = (2,)
    solution = staticmethod(leading)

    def __init__(self, turned=None):
        self.turned = torch.eye(2).double() if turned is None else turned

    def objective(self, A, y):
        return -(y.mT @ symmetric(A) @ y).trace()

    def solve(self, A):
        return self.solution(A) @ self.turned

    def observed(self, y):
        return y @ y.mT


def with_mean_row(A):
    """The leading subspace of those with tr(UᵀBU) = 4: that of A + μB."""
    low, high = -20.0, 20.0
    for _ in range(60):
        mu = (low + high) / 2
        U = leading(A + mu * B)
        low, high = (mu, high) if (U.mT @ B @ U).trace() < 4 else (low, mu)
    return U


class SubspaceOfMeanRow(Subspace):
    solution = staticmethod(with_mean_row)

    def equality_constraints(self, A, y):
        return (y.mT @ B @ y).trace() - 4


class SubspaceBesideVector(Subspace):
    """Of the subspaces at right angles to b: Uᵀb = 0 is the same for every basis, and Uᵀb is not."""

    @staticmethod
    def solution(A):
        P = torch.eye(5).double() - torch.outer(b, b)
        return leading(P @ symmetric(A) @ P - 9 * torch.outer(b, b))

    def equality_constraints(self, A, y):
        return b @ y


class LowRank(ddnkit.DeclarativeNode):
    """The nearest matrix of rank 2."""

    manifold = FixedRank(4)
    input_dims = (2,)

    def __init__(self, turned=None):
        self.turned = torch.eye(2).double() if turned is None else turned

    def objective(self, A, y):
        return (self.manifold.matrix(y) - A).square().sum()

    def solve(self, A):
        return self.manifold.of_matrix(A, 2) @ self.turned

    def observed(self, y):
        return self.manifold.matrix(y)


class Shifted(ddnkit.DeclarativeNode):
    """A plane through a point: a quotient beside a part without a gauge."""

    manifold = Product(Grassmann(), Euclidean())
    input_dims = (2,)

    def __init__(self, turned=None):
        self.turned = torch.eye(2).double() if turned is None else turned

    def objective(self, A, y):
        U, p = y
        return Subspace.objective(self, A, U) + (p - A[0] * (U @ (U.mT @ A[1]))).square().sum()

    def solve(self, A):
        U = leading(A) @ self.turned
        return U, A[0] * (U @ (U.mT @ A[1]))

    def observed(self, y):
        return torch.cat([(y[0] @ y[0].mT).reshape(-1), y[1]])


def data(seed=0):
    return torch.randn(5, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def derivatives(node, form):
    """First and second, and the certificate."""
    A = data() if not isinstance(node, LowRank) else data()[:4]
    A.requires_grad_()
    layer = ddnkit.DeclarativeLayer(node, form, policy="raise")
    out = node.observed(layer(A))
    weights = torch.arange(1.0, out.numel() + 1, dtype=out.dtype).cos().reshape(out.shape)
    (first,) = torch.autograd.grad((weights * out).sum(), A, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), A)
    return first.detach(), second, layer.certificate


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "node", [Subspace, SubspaceOfMeanRow, SubspaceBesideVector, LowRank, Shifted]
)
def test_every_representative_has_the_same_gradient(node, form):
    Q = torch.linalg.qr(data(1)[:2, :2])[0]
    one, two = derivatives(node(), form), derivatives(node(Q), form)
    for mine, other, rounding in zip(one[:2], two[:2], (ROUNDING, 100 * ROUNDING), strict=True):
        assert (mine - other).norm() <= rounding * mine.norm()
    assert one[2].verdicts() == ["trusted"] and one[2].told_apart < ROUNDING


class SlopeAlongGauge(Subspace):
    def objective(self, A, y):
        return super().objective(A, y) + (y**3).sum() / 10


class SlopeBesideConstraint(SubspaceOfMeanRow):
    """Multipliers of the slice would take the slope up."""

    def objective(self, A, y):
        w = self.solve(A) @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]]).double()
        return super().objective(A, y) + (w.detach() * y).sum() / 10


class CurvatureAlongGauge(Subspace):
    """Brockett's problem: stationary at the eigenvectors, and at no other basis of their space."""

    def objective(self, A, y):
        return -((y.mT @ symmetric(A) @ y).diagonal() * N).sum()

    def solve(self, A):
        return leading(A).flip(-1)


class ConstraintAcrossGauge(Subspace):
    """Kept by the gauge alone, and by no move of the space."""

    def equality_constraints(self, A, y):
        return y[0, 0] - y[0, 1]

    def solve(self, A):
        U = leading(A)
        turn = torch.atan2(U[0, 1], U[0, 0]) - torch.pi / 4
        c, s = turn.cos(), turn.sin()
        return U @ torch.stack([torch.stack([c, -s]), torch.stack([s, c])])


class FactorsToldApart(LowRank):
    def objective(self, A, y):
        return super().objective(A, y) + y[0, 0] / 10


class PartToldApart(Shifted):
    def objective(self, A, y):
        return super().objective(A, y) + (y[0] ** 3).sum() / 10


@pytest.mark.parametrize(
    "node",
    [
        SlopeAlongGauge,
        SlopeBesideConstraint,
        CurvatureAlongGauge,
        ConstraintAcrossGauge,
        FactorsToldApart,
        PartToldApart,
    ],
)
def test_what_is_not_the_same_for_every_representative_is_told(node):
    with pytest.raises(ddnkit.UntrustedGradientError, match="mean the same"):
        derivatives(node(), "auto")


def test_gradient_of_lower_rank_is_refused():
    class Low(LowRank):
        def solve(self, A):
            return super().solve(A).nan_to_num()

    A = torch.outer(data()[0, :4], data()[1]).requires_grad_()
    layer = ddnkit.DeclarativeLayer(Low(), "krylov", policy="nan")
    layer(A)
    assert layer.certificate.verdicts() == ["invalid"] and layer.certificate.feasibility >= 1
