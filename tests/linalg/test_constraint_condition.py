"""Constraints from well conditioned to dependent: multipliers, tangent space and LICQ margin hold."""

import math

import mpmath
import numpy as np
import pytest
import torch
from bounds import condition, factorised, rounding
from hypothesis import given, settings
from hypothesis import strategies as st

from ddnkit import DdnkitWarning, DeclarativeLayer, DeclarativeNode
from ddnkit.backward import Dense
from ddnkit.certificate import TOLERANCE


class Projection(DeclarativeNode):
    """min ½‖y − t‖², A y = 0, solved by singular values; dy/dt = I − A⁺A."""

    input_dims = (1, 2)

    def objective(self, t, A, y):
        return ((y - t) ** 2).sum() / 2

    def equality_constraints(self, t, A, y):
        return A @ y

    def solve(self, t, A):
        return projected(t, A)


def projected(t, A):
    """t − A⁺A t, to rounding error times the condition of A once its rows have unit length."""
    _, sizes, basis = torch.linalg.svd(A / A.norm(dim=-1, keepdim=True), full_matrices=False)
    basis = basis[sizes > rounding(sizes, 9) * sizes[0]]
    return t - basis.T @ (basis @ t)


def instance(log_condition, rows, seed):
    """t and A, which has about that condition, and units of its own."""
    torch.manual_seed(seed)
    A = torch.randn(rows, 9).double()
    A[-1] = A[0] + 10**-log_condition * A[-1]
    A *= 10 ** torch.linspace(-1, 1, rows).double().unsqueeze(-1)
    return torch.randn(9).double(), A


@settings(max_examples=60, deadline=None)
@given(
    log_condition=st.floats(0, 9),
    rows=st.integers(2, 5),
    form=st.sampled_from(["krylov", "dense", "embedded_field"]),
    seed=st.integers(0, 10**6),
)
def test_gradients_at_any_condition(log_condition, rows, form, seed):
    t, A = instance(log_condition, rows, seed)
    t.requires_grad_()
    layer = DeclarativeLayer(Projection(), form, policy="nan")
    v = torch.randn(9, generator=torch.Generator().manual_seed(seed)).double()
    (gradient,) = torch.autograd.grad(layer(t, A), t, v)
    right = projected(v, A)
    # The rows that were drawn beside the last may be near to dependent as well.
    kappa = condition(A / A.norm(dim=-1, keepdim=True))
    if layer.certificate.verdicts() == ["doubtful"]:
        # Promised from a margin of eps over the layer's tolerance on, and no sooner.
        assert 1 / kappa < 1.01 * rounding(A) / TOLERANCE[A.dtype]
        assert gradient.isnan().all()
        return
    # What rounding the entries of A does to its row space; and krylov's tolerance, which is 1e-12.
    bound = factorised(A, 9, condition=kappa) + 10 * 1e-12
    assert float((gradient - right).norm() / v.norm()) < bound


@pytest.mark.parametrize("log_condition", [0.5, 2, 3, 4, 6, 9])
def test_the_margin_is_that_of_the_singular_values(log_condition):
    t, A = instance(log_condition, 3, 1)
    layer = DeclarativeLayer(Projection(), "dense", policy="nan")
    layer(t, A)
    values = torch.linalg.svdvals(A / A.norm(dim=-1, keepdim=True))
    margin = float(layer.certificate.licq)
    # A singular value is known to rounding of the largest; one found by the Gram matrix, whose figures
    # are squares, is told by its root.
    assert margin == pytest.approx(float(values[-1] / values[0]), rel=1e-6, abs=rounding(values, 9))


def test_dependent_rows_in_one_item_of_a_batch():
    items = [instance(0.5, 2, 3), instance(math.inf, 2, 4)]
    t, A = (torch.stack(x) for x in zip(*items, strict=True))
    t.requires_grad_()
    layer = DeclarativeLayer(Projection(), "krylov", policy="nan")
    (gradient,) = torch.autograd.grad(layer(t, A).sum(), t)
    assert float(layer.certificate.licq[0]) > 0.1
    assert float(layer.certificate.licq[1]) < rounding(t, 2 * 9)
    right = torch.stack([projected(torch.ones(9).double(), item) for item in A])
    # krylov's tolerance, 1e-12, for a Hessian that is the identity.
    torch.testing.assert_close(gradient, right, rtol=0, atol=10 * 1e-12)


@pytest.mark.parametrize(
    ("log_condition", "verdict"), [(3, "trusted"), (11.5, "doubtful"), (math.inf, "trusted")]
)
def test_nearly_dependent_constraints_are_said_to_be(log_condition, verdict):
    t, A = instance(log_condition, 3, 1)
    t.requires_grad_()
    layer = DeclarativeLayer(Projection(), "krylov", policy="nan")
    (gradient,) = torch.autograd.grad(layer(t, A).sum(), t)
    assert layer.certificate.verdicts() == [verdict]
    assert bool(gradient.isnan().all()) == (verdict == "doubtful")
    if verdict == "doubtful":
        y = DeclarativeLayer(Projection(), "krylov", policy="warn")(t, A)
        with pytest.warns(DdnkitWarning, match="dependent"):
            torch.autograd.grad(y.sum(), t)


@pytest.mark.parametrize("form", ["dense", "krylov", "embedded_field"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_constraints_do_not_feel_is_no_doubt_about_their_multipliers(form, dtype):
    """One constraint written twice, and an incoming gradient at right angles to it: μ is 0, and what is
    computed for it is rounding alone, which changes with each step of refinement."""
    torch.manual_seed(0)
    t, A = torch.randn(8, 9).double(), torch.randn(8, 2, 9).double()
    v = torch.stack([projected(*item) for item in zip(torch.randn(8, 9).double(), A, strict=True)])
    A = torch.cat([A, 3.7 * A[:, :1]], dim=1)
    given = [x.to(dtype, copy=True).requires_grad_() for x in (t, A)]
    layer = DeclarativeLayer(Projection(), form, policy="raise")
    found = torch.autograd.grad(layer(*given), given, v.to(dtype))
    # v·(I − A⁺A)t at A + dA, of the same rank, is to first order −v·dAᵀ(A⁺)ᵀt.
    pseudo = torch.linalg.pinv(A, rtol=1e-10)
    right = v, -(pseudo.mT @ t.unsqueeze(-1)) * v.unsqueeze(-2)
    kappa = max(1 / float(torch.linalg.svdvals(item)[1]) for item in A)
    bound = factorised(dtype, 9, condition=kappa**2 * condition(A[:, :2])) + 10 * 1e-12
    for a, b in zip(found, right, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=bound * float(b.norm()))


class Coupled(DeclarativeNode):
    """min ½ (y − t)ᵀ H (y − t), A y = 0 with an H that is not diagonal."""

    input_dims = (1, 2)

    def objective(self, t, A, y):
        return (y - t) @ coupling(y.dtype) @ (y - t) / 2

    def equality_constraints(self, t, A, y):
        return A @ y

    def solve(self, t, A):
        return coupled(coupling(torch.float64) @ t.double(), A.double()).to(t.dtype)


def coupling(dtype):
    R = torch.randn(9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (R @ R.T / 9 + torch.eye(9, dtype=torch.float64)).to(dtype)


def coupled(right, A):
    """z with H z − right at right angles to the z with A z = 0, of A's two independent rows."""
    W = A[:2] / A[:2].norm(dim=1, keepdim=True)
    K = torch.cat([torch.cat([coupling(A.dtype), W.T], 1), torch.cat([W, A.new_zeros(2, 2)], 1)])
    return torch.linalg.solve(K, torch.cat([right, A.new_zeros(2)]))[:9]


@pytest.mark.parametrize("form", ["auto", "dense", "krylov", "embedded_field"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("third", [lambda W: 3.7 * W[:, :1], lambda W: W.sum(dim=1, keepdim=True)])
@pytest.mark.parametrize("node", [Projection(), Coupled()], ids=lambda node: type(node).__name__)
def test_a_constraint_that_others_say_but_for_its_rounding(node, third, dtype, form):
    torch.manual_seed(0)
    W, t, v = (torch.randn(shape).to(dtype) for shape in ((40, 2, 9), (40, 9), (40, 9)))
    # Alone as well: what one item shows, another that is told apart in the same batch may hide.
    alone = [slice(i, i + 1) for i in range(6)] if form == "krylov" else []
    for some in [slice(8), *alone]:
        check_dependent(node, form, torch.cat([W, third(W)], dim=1)[some], t[some], v[some])


def check_dependent(node, form, A, t, v):
    t.requires_grad_()
    layer = DeclarativeLayer(node, form, policy="raise")
    (found,) = torch.autograd.grad(layer(t, A), t, v)
    wide, W = v.double(), A[:, :2].double()
    if isinstance(node, Coupled):
        H = coupling(torch.float64)
        right = torch.stack([H @ coupled(one, rows) for one, rows in zip(wide, W, strict=True)])
    else:
        right = torch.stack([projected(one, rows) for one, rows in zip(wide, W, strict=True)])
    # Of each part of the system, and krylov's tolerance beside the rounding.
    kappa = condition(coupling(torch.float64)) * condition(W / W.norm(dim=-1, keepdim=True)) ** 2
    bound = factorised(t, 11, condition=kappa) + 10 * 1e-12 * kappa
    assert float((found - right).norm() / right.norm()) < bound


class InUnits(Projection):
    """The same with unknowns y' = y/s, each in its own unit."""

    input_dims = (1, 2, 1)

    def objective(self, t, A, s, y):
        return ((s * y - t) ** 2).sum() / 2

    def equality_constraints(self, t, A, s, y):
        return A @ (s * y)

    def solve(self, t, A, s):
        return at_right_angles(t, A).to(t.dtype) / s


def at_right_angles(t, A):
    """t less its part in the span of A's rows, however near these are to dependent."""
    with mpmath.workdps(50):
        convert = np.vectorize(lambda value: mpmath.mpf(float(value)), otypes=[object])
        kept = []
        for row in convert(A.numpy()):
            for _ in range(2):
                for q in kept:
                    row = row - (q @ row) * q
            if row @ row > 0:
                kept.append(row / mpmath.sqrt(row @ row))
        left = convert(t.detach().numpy())
        for q in kept:
            left = left - (q @ left) * q
        return torch.tensor([float(x) for x in left], dtype=torch.float64)


NEARLY_DEPENDENT = {
    "dtype": st.sampled_from([torch.float64, torch.float32]),
    "rows": st.integers(2, 4),
    "more": st.integers(1, 4),
    "roundings": st.floats(-1, 5),
    "units": st.sampled_from([0, 3, 12]),
    "tangent": st.booleans(),
    "seed": st.integers(0, 10**6),
}


@settings(max_examples=20, deadline=None)
@given(**NEARLY_DEPENDENT)
def test_rows_at_any_distance_from_dependent(**drawn):
    check_nearly_dependent(**drawn)


@pytest.mark.long
@settings(max_examples=50, deadline=None)
@given(**NEARLY_DEPENDENT)
def test_more_rows_at_any_distance_from_dependent(**drawn):
    check_nearly_dependent(**drawn)


def check_nearly_dependent(dtype, rows, more, roundings, units, tangent, seed):
    """The last row is 10^roundings eps from a sum of the others."""
    torch.manual_seed(seed)
    n = rows + more
    A, weights = torch.randn(rows, n).double(), torch.randn(rows - 1).double()
    basis = torch.linalg.qr(A[:-1].T).Q
    last, off = weights @ A[:-1], A[-1] - basis @ (basis.T @ A[-1])
    A[-1] = last + 10**roundings * rounding(dtype) * last.norm() * off / off.norm()
    A = (A.to(dtype) * 2.0 ** torch.randint(-20, 21, (rows, 1))).to(dtype)
    t, v = torch.randn(n).to(dtype), torch.randn(n).to(dtype)
    if tangent:  # multipliers of 0, of whatever rows: stationarity says nothing about them
        t = at_right_angles(t, A).to(dtype)
    # Powers of 2, which round nothing.
    s = (2.0 ** torch.randint(-units, units + 1, (n,))).to(dtype)
    check_right_or_not_trusted(A, t, v, s)


@pytest.mark.parametrize(
    ("dtype", "apart"), [(torch.float32, 2e-6), (torch.float64, 6e-15), (torch.float64, 2e-15)]
)
def test_two_rows_beside_each_other(dtype, apart):
    A = torch.tensor([[1.3, 0.7, 0.2], [1.3, 0.7, 0.2 + apart]], dtype=dtype)
    t, v = torch.tensor([0.3, -0.8, 1.7], dtype=dtype), torch.tensor([1.0, 2, 3], dtype=dtype)
    check_right_or_not_trusted(A, t, v, torch.ones_like(t))


def check_right_or_not_trusted(A, t, v, s):
    """In every form: the gradient of independent rows, or that of dependent ones where they are nearer
    than rounding tells, or it is not trusted."""
    rows, n = A.shape
    margins = [torch.linalg.svdvals(scaled(x.double())) for x in (A, A * s)]
    margin = min(float(values[-1] / values[0]) for values in margins)
    right = [at_right_angles(v, A)]
    # Taken as dependent are a margin of max(p, m) roundings, which singular values are known to; and rows
    # with |u'A| <= 4 eps |u|'|A|, entry by entry, which is 4 sqrt(p) at most.
    if margin < rounding(A, 2 * n + 4 * rows**0.5):
        right.append(at_right_angles(v, A[:-1]))
    # The margin of a verdict is that of one of the two units; so far does rounding of the rows turn their
    # span.
    bound = rounding(A, n, condition=TOLERANCE[A.dtype] / rounding(A))
    for form in ("auto", "dense", "krylov", "embedded_field", Dense(schur=True)):
        given = t.clone().requires_grad_()
        layer = DeclarativeLayer(InUnits(), form, policy="nan")
        (found,) = torch.autograd.grad(s * layer(given, A, s), given, v)
        if layer.certificate.verdicts() == ["trusted"]:
            assert min(float((found - x).norm()) for x in right) < bound * float(v.norm()), form


def scaled(A):
    """A with rows of unit length."""
    return A / A.norm(dim=-1, keepdim=True)
